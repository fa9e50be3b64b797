"""Failed calls: the trailer names the error, or else the status does."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from edge_agent.uplink.call_errors import cap_in, error_of, unhidden
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameTooLargeError,
    OfflineError,
    OverloadedError,
    UnknownSessionError,
)
from protos.refusals import trailer_of

ABOVE = "CLIENT: Received message larger than max (9 vs. 7)"


def failed(status: grpc.StatusCode, text: str, *trailer: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailer), text)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "gone", OfflineError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", OfflineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", OverloadedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ABOVE, FrameTooLargeError),
        (grpc.StatusCode.INTERNAL, "broke", EngineUnavailableError),
        (grpc.StatusCode.PERMISSION_DENIED, "no", BridgeError),
    ],
)
def test_without_a_trailer_the_status_decides(
    status: grpc.StatusCode, text: str, kind: type[BridgeError]
) -> None:
    error = error_of(failed(status, text))
    assert type(error) is kind and text in str(error)


def test_a_trailer_says_more_than_the_status() -> None:
    trailer = trailer_of(UnknownSessionError("x"))
    error = error_of(failed(grpc.StatusCode.UNAVAILABLE, "expired", *trailer))
    assert type(error) is UnknownSessionError and "expired" in str(error)


def test_the_cap_that_grpc_names_is_read() -> None:
    assert cap_in(FrameTooLargeError(ABOVE)) == 7
    assert cap_in(FrameTooLargeError("too large")) is None


def test_a_masked_status_is_looked_up_and_any_other_stands() -> None:
    class Call:
        async def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

        async def details(self) -> str:
            return "real"

        async def trailing_metadata(self) -> grpc.aio.Metadata:
            return grpc.aio.Metadata()

    masked = failed(grpc.StatusCode.INTERNAL, "write failed")
    found = asyncio.run(unhidden(Call(), masked))
    assert (found.code(), found.details()) == (grpc.StatusCode.NOT_FOUND, "real")
    plain = failed(grpc.StatusCode.UNAVAILABLE, "gone")
    assert asyncio.run(unhidden(Call(), plain)) is plain
