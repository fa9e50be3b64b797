"""Sessions are opened at a bounded rate, on the bundle that serves the edge's model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from protos.digest import session_constants
from tests.cloud_server import stage
from tests.cloud_server.front_end import Edge, running


def test_sessions_beyond_an_addresss_rate_are_refused_with_the_time_to_wait(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        slow = {"negotiations_per_s": 0.001, "negotiation_burst": 3}
        async with running(paths, **slow) as server:
            edges = [await server.edge() for _ in range(3)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await server.edge()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            trailer = dict(refused.value.trailing_metadata())
            assert trailer["nb-error-code"] == "501"
            assert int(str(trailer["nb-retry-after-ms"])) > 900_000
            assert (await edges[0].say("count 1")).HasField("answer")
            assert await server.metric('overloads_total{cause="negotiations"}') == 1

    asyncio.run(scene())


def test_a_bundle_digest_that_is_none_is_refused_and_not_kept(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = Edge(server.channel)
            edge.known_digest = "x" * 100_000
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await edge.meet()
            assert dict(refused.value.trailing_metadata())["nb-error-code"] == "203"

    asyncio.run(scene())


def test_an_edge_that_tells_its_settings_is_answered_from_a_bundle_of_before(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            edge.layout = replace(stage.SOURCE, settings_digest="5" * 64)
            reply = await edge.meet()
            assert reply.session_constants == session_constants(
                reply.session_id, stage.SOURCE.fingerprint, reply.bundle_digest
            )
            assert (await edge.say("count 1")).HasField("answer")

    asyncio.run(scene())
