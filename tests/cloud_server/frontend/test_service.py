"""The front-end process: ports, strangers' connections, its engine's end, its own end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.errors import ConfigError
from tests.cloud_server.front_end import make, running


@pytest.mark.slow
def test_the_front_end_imports_no_tensor_library() -> None:
    code = (
        "import sys, cloud_server.cli\n"
        "import cloud_server.frontend.service, cloud_server.frontend.bridge\n"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_ready_file_holds_the_ports_which_no_other_service_can_take(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def scene() -> None:
        async with running(paths, ready_file=tmp_path / "ready.json") as server:
            ready = json.loads((tmp_path / "ready.json").read_text())
            assert ready.pop("event") == "ready"
            assert ready == {"port": server.port, "metrics_port": server.metrics_port}
            for flag, port in ready.items():
                with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}"):
                    await make(paths, print, **{flag: port}).run()

    asyncio.run(scene())


def test_the_engines_socket_is_where_the_setting_says_and_the_owners_alone(
    paths: dict[str, Any], short_dir: Path
) -> None:
    async def scene() -> None:
        async with running(paths, engine_socket_dir=short_dir / "sockets") as server:
            assert os.stat(short_dir / "sockets").st_mode & 0o777 == 0o700
            held = {path.name for path in (short_dir / "sockets").iterdir()}
            assert held == {"engine.sock", "lock"}
            assert (await (await server.edge()).say("count 2")).answer.text == "0 1"

    asyncio.run(scene())


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


async def closed_by_the_server(port: int, *, says: bytes = b"") -> None:
    """Connect, say something, and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(says)
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(1 << 16), 120):
            pass
    writer.close()


@pytest.mark.quick(1)
@pytest.mark.parametrize("says", [b"", b"GET", PREFACE], ids=["nothing", "not-http2", "preface"])
def test_connections_that_go_silent_are_closed_and_those_that_answer_stay(
    paths: dict[str, Any], says: bytes
) -> None:
    async def scene() -> None:
        quick = {"handshake_timeout_s": 0.3, "keepalive_s": 0.3, "keepalive_timeout_s": 0.3}
        async with running(paths, **quick) as server:
            edge = await server.edge()
            call = edge.open()
            await call.write(edge.frame(seed=1, question="count 1"))
            await call.read()
            await asyncio.gather(*(closed_by_the_server(server.port, says=says) for _ in range(40)))
            await closed_by_the_server(server.metrics_port, says=says)
            await call.write(edge.frame(seed=2, question="count 1"))
            while not (event := await call.read()).HasField("answer") or event.frame_number != 2:
                assert event is not grpc.aio.EOF
            call.cancel()

    asyncio.run(scene())


def test_a_connection_without_any_call_is_not_held_for_ever(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, idle_connection_s=0.2) as server:
            await server.edge()
            await server.until(lambda: _not_ready(server.channel))
            assert (await (await server.edge()).say("count 1")).HasField("answer")

    asyncio.run(scene())


async def _not_ready(channel: Any) -> bool:
    return channel.get_state() is not grpc.ChannelConnectivity.READY


def test_connections_beyond_the_cap_are_closed_and_those_before_it_are_served(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, max_connections=8) as server:
            edge = await server.edge()  # one connection
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(7)]
            await asyncio.gather(*(closed_by_the_server(server.port) for _ in range(20)))
            assert (await edge.say("count 1")).HasField("answer")
            for reader, writer in silent:
                assert not reader.at_eof()
                writer.close()

    asyncio.run(scene())


@pytest.mark.slow
def test_the_metrics_port_has_a_cap_of_its_own_and_is_free_again_when_they_leave(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, metrics_connections=4) as server:
            port = server.metrics_port
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            await asyncio.gather(*(closed_by_the_server(port) for _ in range(20)))
            for _, writer in silent:
                writer.close()

            async def served() -> bool:
                with contextlib.suppress(Exception):
                    return (await server.get("/healthz"))[0] == 200
                return False

            await server.until(served)

    asyncio.run(scene())


def test_what_the_event_loop_reports_over_and_over_is_told_a_few_times_and_then_counted(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with running(paths, log_burst=3, log_interval_s=3600.0):
            loop = asyncio.get_running_loop()
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            for _ in range(14_080):
                loop.call_exception_handler(
                    {"message": "socket.accept() out of system resource", "exception": error}
                )

    asyncio.run(scene())
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in told].count("event loop") == 3
    assert told[-1]["count"] == 14_080 - 3
