"""A small frame must draw nothing on the link but itself and its answer."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.link_bytes import Http2Frames
from edge_agent.uplink.dial import dial_insecure
from edge_agent.uplink.stream import open_events
from protos.calls import EVENTS_APART, SESSION_METADATA_KEY
from protos.neuralbridge.v1 import bridge_pb2_grpc
from reference.demo.relay import Relay
from tests.cloud_server.conftest import paths as paths  # noqa: PLC0414 - a fixture
from tests.cloud_server.front_end import Edge, running

FRAMES = 60
GRPC_AND_HTTP2_BYTES = 5 + 9


class _Named:
    """What `open_events` wants of a session."""

    def __init__(self, session_id: bytes) -> None:
        self.session_id = session_id


def test_a_frame_costs_its_message_and_14_bytes_up_and_draws_no_ping_nor_window_update(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            frames = Http2Frames()
            with Relay(f"127.0.0.1:{server.port}", frames) as relay:
                up, down = (dial_insecure(relay.address)() for _ in range(2))
                edge = Edge(up)
                session = await edge.meet()
                events: Any = await open_events(down, _Named(session.session_id), 60)  # type: ignore[arg-type]
                metadata = ((SESSION_METADATA_KEY, session.session_id), EVENTS_APART)
                call = bridge_pb2_grpc.BridgeStub(up).Infer(metadata=metadata)

                async def ask(seed: int) -> tuple[int, int]:
                    request = edge.frame(seed=seed, question="count 1", request_id=b"")
                    await call.write(request)
                    sizes = 0
                    while True:
                        event = await events.read()
                        sizes += event.ByteSize() + GRPC_AND_HTTP2_BYTES
                        if event.HasField("answer"):
                            return request.ByteSize() + GRPC_AND_HTTP2_BYTES, sizes

                await ask(0)
                await asyncio.sleep(0.2)  # what the set-up still had to say
                before, seen = relay.counts(), (frames.up.copy(), frames.down.copy())
                sent = [await ask(seed) for seed in range(1, FRAMES + 1)]
                passed = relay.counts() - before
                told = (frames.up - seen[0], frames.down - seen[1])
                assert passed.downlink_bytes == sum(size for _, size in sent), told
                assert told[1]["DATA"] and set(told[1]) == {"DATA"}
                # Events come on a connection of their own; reading them opens its window again.
                events_up = 13 * told[0]["WINDOW_UPDATE"]
                assert passed.uplink_bytes == sum(size for size, _ in sent) + events_up
                assert told[0]["PING"] == 0 and told[0]["DATA"] == FRAMES
                call.cancel()
                events.cancel()
                await up.close()
                await down.close()

    asyncio.run(scene())


def test_http2_frames_are_counted_by_type_however_they_are_cut() -> None:
    ping = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
    data = bytes((0, 0, 3, 0, 0, 0, 0, 0, 1)) + b"abc"
    whole = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + ping + data + ping
    for size in (1, 7, len(whole)):
        frames = Http2Frames()
        for start in range(0, len(whole), size):
            frames(1, True, whole[start : start + size])
        assert frames.up == {"PING": 2, "DATA": 1} and not frames.down
