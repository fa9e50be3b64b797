"""Sessions are opened at a bounded rate, on the bundle that serves the edge's model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import grpc
import pytest

from protos.calls import PROTOCOL_VERSION
from protos.digest import session_constants
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.points import points_from_json
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


def test_negotiate_names_the_bundle_limits_points_and_the_key_of_every_digest(
    client: stage.Client,
) -> None:
    session = client.session
    assert len(session.session_id) == 16
    assert session.session_constants == session_constants(
        session.session_id, stage.SOURCE.fingerprint, session.bundle_digest
    )
    assert (session.bundle_id, session.bundle_version) == ("random-edge-a", "1")
    assert Limits.from_proto(session.limits) == Limits()
    points = {point.name for point in points_from_json(session.operating_points_json)}
    assert points == {"fp8", "int8", "none", "uniform", "raw_kv_fp8", "picture"}
    assert session.default_point == "fp8" and list(session.ladder) == ["uniform", "fp8"]


def test_two_edge_models_are_served_side_by_side_each_with_its_own_bundle(
    server: stage.Server,
) -> None:
    with server.channel() as channel:
        one, two = stage.Client(channel), stage.Client(channel, stage.OTHER_SOURCE)
        assert one.negotiate().bundle_id == "random-edge-a"
        assert two.negotiate().bundle_id == "random-edge-b"
        assert one.answer(one.frame(seed=1)).tokens and two.answer(two.frame(seed=1)).tokens


def test_an_edge_with_few_codecs_is_offered_only_what_it_can_encode(server: stage.Server) -> None:
    with server.channel() as channel:
        session = stage.Client(channel, codecs=("int8",)).negotiate()
        names = {point.name for point in points_from_json(session.operating_points_json)}
        assert names == {"int8", "picture"} and session.default_point == "int8"


def test_the_fetched_encoder_is_the_one_that_was_named(client: stage.Client) -> None:
    request = pb.FetchEncoderRequest(
        session_id=client.session.session_id, encoder_digest=client.session.encoder_digest
    )
    chunks = list(client.stub.FetchEncoder(request, timeout=20))
    blob = b"".join(chunk.data for chunk in chunks)
    assert hashlib.sha256(blob).hexdigest() == client.session.encoder_digest
    assert {chunk.total_bytes for chunk in chunks} == {len(blob)}
    for offset in (1, len(blob) // 2, len(blob) - 1):
        request.offset = offset
        rest = list(client.stub.FetchEncoder(request, timeout=20))
        assert b"".join(chunk.data for chunk in rest) == blob[offset:]
        assert rest[0].offset == offset and rest[0].total_bytes == len(blob)
    for offset in (len(blob), len(blob) + 1, 2**64 - 1):
        request.offset = offset
        with pytest.raises(grpc.RpcError, match=f"offset {offset} is not in the encoder") as beyond:
            list(client.stub.FetchEncoder(request, timeout=20))
        assert dict(beyond.value.trailing_metadata())["nb-error-code"] == "203"
    request.offset = 0
    request.encoder_digest = "0" * 64
    with pytest.raises(grpc.RpcError) as failure:
        list(client.stub.FetchEncoder(request, timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "203"


def test_a_bundle_whose_map_is_not_known_to_be_any_good_is_warned_of(server: stage.Server) -> None:
    """In the log, in the metrics, and to the device that negotiates it."""
    doubts = {}
    for layout in (stage.SOURCE, stage.OTHER_SOURCE):
        with server.channel() as channel:
            reply = bridge_pb2_grpc.BridgeStub(channel).Negotiate(
                pb.NegotiateRequest(
                    protocol_version=PROTOCOL_VERSION,
                    source_layout_json=layout.to_json(),
                    codecs=["fp8_e4m3"],
                ),
                timeout=60,
            )
        doubts[reply.bundle_id] = reply.bundle_doubt
    told = [json.loads(line) for line in server.log if "bundle in doubt" in line]
    assert {row["bundle"]: row["doubt"] for row in told} == doubts
    assert all(row["level"] == "warning" for row in told)
    unknown, worse = (doubts[f"random-{of.model_id}"] for of in (stage.SOURCE, stage.OTHER_SOURCE))
    assert unknown.startswith("not known: there are no figures of answers")
    assert worse == (
        "no better than its controls: right in 31.1%, beside blind 31.0%, mean state 30.0%, other "
        "picture 29.0%"
    )
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as page:
        metrics = page.read().decode()
    for id, verdict in zip(doubts, ("not known", "no better than its controls"), strict=True):
        line = f'neural_bridge_cloud_bundle_doubtful{{bundle="{id}",verdict="{verdict}"}} 1.0'
        assert line in metrics


def test_a_stranger_and_another_protocol_version_are_refused_at_the_door(
    server: stage.Server,
) -> None:
    with server.channel() as channel:
        stranger = stage.Client(channel, stage.STRANGER)
        with pytest.raises(grpc.RpcError) as failure:
            stranger.negotiate()
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "301"
        assert "weights" in str(failure.value.details())
        assert "edge-a" in str(failure.value.details())
        request = pb.NegotiateRequest(
            protocol_version=9, source_layout_json=stage.SOURCE.to_json(), codecs=["fp8_e4m3"]
        )
        with pytest.raises(grpc.RpcError) as failure:
            stranger.stub.Negotiate(request, timeout=20)
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "305"
        with pytest.raises(grpc.RpcError) as failure:
            stranger.stub.Negotiate(
                pb.NegotiateRequest(protocol_version=1, source_layout_json="{}"), timeout=20
            )
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "203"


def test_an_edge_that_can_encode_nothing_useful_is_told_what_it_would_need(
    server: stage.Server,
) -> None:
    with server.channel() as channel:
        client = stage.Client(channel, codecs=("morse",))
        with pytest.raises(grpc.RpcError) as failure:
            client.negotiate()
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "205"
        assert "fp8_e4m3" in str(failure.value.details())
