"""What strangers, slow peers and large requests may do to the HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest

from tests.cloud_server.api.over_http import Asking, asking, data_url


async def raw(it: Asking, sent: bytes) -> bytes:
    """What comes back on a connection of its own, until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.server.api_port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.slow
def test_a_connection_whose_request_does_not_arrive_is_closed(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths, request_arrival_s=0.3) as it:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            for begun in (
                b"",
                b"GET /v1/mod",
                head,
                head + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{",
            ):
                assert await raw(it, begun) == b"", begun
            assert await it.text("slow") == "0", "an answer may take longer than its request"

    asyncio.run(work())


def test_garbage_and_long_headers_end_their_connection_alone(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            for sent in (b"\x16\x03\x01\x02\x00" * 50, b"GET / HTTP/9\r\n\r\n", b"\0" * 100):
                assert (await raw(it, sent)).startswith(b"HTTP/1.1 400"), sent
            long = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000
            assert (await raw(it, long)).startswith(b"HTTP/1.1 4")
            assert await it.text("count 1") == "0"

    asyncio.run(work())


def test_a_body_is_bounded_before_it_is_read(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths, max_picture_bytes=30_000, body_memory_bytes=1 << 10) as it:
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                "content-type: application/json\r\n"
            )
            announced = await raw(it, f"{head}content-length: 900000000\r\n\r\n".encode())
            assert b"413" in announced.split(b"\r\n")[0], announced
            assert json.loads(announced.partition(b"\r\n\r\n")[2])["error"]["number"] == 204
            chunked = f"{head}transfer-encoding: chunked\r\n\r\n".encode()
            chunked += b"10000\r\n" + b" " * 0x10000 + b"\r\n0\r\n\r\n"
            assert b"413" in (await raw(it, chunked)).split(b"\r\n")[0]
            # One large body takes the whole budget until it has arrived; another is told to wait.
            size = 60_000
            reader, writer = await asyncio.open_connection("127.0.0.1", it.server.api_port)
            writer.write(f"{head}content-length: {size}\r\n\r\n".encode() + b" " * 20_000)
            await writer.drain()

            async def refused() -> bool:
                body = json.dumps(it.body("count 1")) + " " * size
                reply = await it.http.post(
                    "/v1/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                return reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1

            await it.server.until(refused)
            assert await it.server.metric("http_body_memory_bytes") == size
            assert await it.server.metric("http_connections") >= 2
            assert await it.text("count 1") == "0", "small bodies need no room"
            writer.close()
            made = await it.ai.chat.completions.create(
                model=it.model, messages=it.looking_at(data_url(), "count 1")
            )
            assert made.choices[0].message.content == "0"

    asyncio.run(work())


@pytest.mark.slow
def test_a_peer_that_does_not_read_its_answer_loses_its_connection(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        async with asking(paths, max_new_tokens=65_535, keepalive_timeout_s=0.3) as it:
            body = json.dumps(it.body("count 60000", stream=True)).encode()
            with socket.socket() as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.setblocking(False)
                await asyncio.get_running_loop().sock_connect(
                    peer, ("127.0.0.1", it.server.api_port)
                )
                peer.send(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                    b"content-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (len(body), body)
                )

                def read() -> bytes:
                    """What the system had taken in, until the connection's end."""
                    taken = b""
                    with contextlib.suppress(ConnectionResetError):
                        while piece := peer.recv(1 << 20):
                            taken += piece
                    return taken

                async def over() -> bool:
                    name = 'http_requests_total{method="POST",status="200"}'
                    return await it.server.metric(name) == 1

                await it.server.until(over)
                peer.settimeout(60)
                assert b"[DONE]" not in await asyncio.to_thread(read)
            assert await it.text("count 1") == "0"

    asyncio.run(work())
    assert "exception" not in capfd.readouterr().err, "that is the peer's doing, not a fault"


@pytest.mark.slow
def test_answers_that_nobody_reads_are_counted_and_bounded_in_bytes(
    paths: dict[str, Any],
) -> None:
    """The bound is above what one answer can take, and below what two leave unread."""
    bound = 32 << 20

    async def work() -> None:
        few = {"outbox_memory_bytes": bound, "keepalive_timeout_s": 600}
        async with asking(paths, max_new_tokens=65_535, **few) as it:
            body = json.dumps(it.body("count 50000", stream=True)).encode()

            async def asked() -> socket.socket:
                peer = socket.socket()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.setblocking(False)
                await asyncio.get_running_loop().sock_connect(
                    peer, ("127.0.0.1", it.server.api_port)
                )
                peer.send(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                    b"content-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (len(body), body)
                )
                return peer

            waiting = 'held_memory_bytes{store="outboxes",tenant="local"}'
            overloads = 'overloads_total{cause="outbox"}'

            async def counted() -> bool:
                return await it.server.metric(waiting) > bound / 2

            async def ended() -> bool:
                return await it.server.metric(overloads) == 1

            async def dropped() -> bool:
                return await it.server.metric(waiting) == 0

            with await asked():
                await it.server.until(counted)
                assert await it.server.metric(overloads) == 0
                with await asked():
                    await it.server.until(ended)
                    await it.server.until(counted)
                    assert await it.server.metric(waiting) <= bound
            await it.server.until(dropped)
            assert await it.server.metric(overloads) == 1
            assert await it.text("count 1") == "0"

    asyncio.run(work())


def test_connections_above_the_bound_are_closed_as_they_come(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths, api_connections=8) as it:
            held = [
                await asyncio.open_connection("127.0.0.1", it.server.api_port) for _ in range(6)
            ]
            assert await raw(it, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n") == b""
            for _, writer in held:
                writer.close()
                await writer.wait_closed()

            async def served() -> bool:
                asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                return b" 200 " in await raw(it, asked)

            await it.server.until(served)

    asyncio.run(work())


def test_every_answer_names_its_request_and_unknown_urls_are_json_errors(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            answered = await it.post(it.body("count 1"))
            request_id = answered.headers["x-request-id"]
            assert answered.json()["id"] == f"chatcmpl-{request_id}", "the engine's log has it too"
            for path, status, code in (
                ("/v1/nothing", 404, "unknown_url"),
                ("/docs", 404, "unknown_url"),
                ("/v1/chat/completions", 405, "method_not_allowed"),
                ("/v1/scenes?cursor=x", 400, "invalid_value"),
                ("/v1/scenes/0123", 404, "unknown_scene"),
                ("/v1/devices/nobody", 404, "missing"),
            ):
                failed = await it.http.get(path)
                assert (failed.status_code, failed.json()["error"]["code"]) == (status, code)
                assert len(failed.headers["x-request-id"]) == 32
            assert (await it.http.get("/v1/chat/completions")).headers["allow"] == "POST"

    asyncio.run(work())


def test_a_service_that_drains_refuses_questions_and_closes_connections(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths, drain_s=30) as it:
            held = asyncio.create_task(it.text("hold"))

            async def waits() -> bool:
                return await it.server.metric("running_requests") == 1

            await it.server.until(waits)
            it.server.service.stop()

            async def draining() -> bool:
                return (await it.http.get("/healthz")).status_code == 503

            await it.server.until(draining)
            refused = await it.post(it.body("count 1"))
            assert refused.status_code == 503 and refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "engine_unavailable"
            held.cancel()

    asyncio.run(work())


def test_scenes_come_in_pages_that_new_scenes_do_not_shift(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            for seed in range(2, 8):
                assert (await it.edge.say("", seed=seed)).HasField("accepted")
            whole = (await it.http.get("/v1/scenes")).json()
            assert whole["has_more"] is False and len(whole["data"]) == 7
            seen, cursor = [], ""
            while True:
                page = (await it.http.get(f"/v1/scenes?limit=3{cursor}")).json()
                seen += [scene["id"] for scene in page["data"]]
                if page["next_cursor"] is None:
                    break
                await it.edge.say("", seed=100 + len(seen))
                cursor = f"&cursor={page['next_cursor']}"
            assert seen == [scene["id"] for scene in whole["data"]]
            one = (await it.http.get(f"/v1/scenes/{seen[0]}")).json()
            assert one["token_map"] == ["1111"] * 4 and one["payload_bytes"] > 0
            assert (await it.http.get("/v1/scenes?device=nobody")).json()["data"] == []
            device = (await it.http.get(f"/v1/devices/{it.device}")).json()
            assert device["latest_scene"]["age_s"] >= 0

    asyncio.run(work())
