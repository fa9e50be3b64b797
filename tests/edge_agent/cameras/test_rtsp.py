"""RTSP cameras, against a real server: what it sends, and what follows when it stops or refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.cameras.camera import Camera
from edge_agent.sources.address import Address
from tests.edge_agent.cameras.watched_camera import QUICK, Watched, children, value, wait_for

SERVER = Path(__file__).resolve().parents[2] / "fakes" / "rtsp_server.py"
PYTHON = "/usr/bin/python3"
BY = ("pyav", "gstreamer")


@dataclass
class Served:
    pid: int
    port: int
    locked: int


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with subprocess.Popen([PYTHON, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        if not ports:
            pytest.skip("no RTSP server: make gstreamer")
        try:
            yield Served(process.pid, *map(int, ports))
        finally:
            process.kill()


def seen(watch: Callable[[Camera], Watched], uri: str) -> Watched:
    return watch(Camera(Address.parse(uri), "gate", patience=QUICK))


@pytest.mark.quick(1)
@pytest.mark.parametrize("by", BY)
def test_a_stream_is_seen_and_its_size_may_change(
    server: Served, watch: Callable[[Camera], Watched], by: str
) -> None:
    watched = seen(watch, f"rtsp://127.0.0.1:{server.port}/sizes?by={by}")
    sizes: set[tuple[int, int]] = set()

    def both() -> bool:
        if watched.last is not None and watched.last.picture is not None:
            sizes.add(watched.last.picture.size)
        return sizes == {(320, 240), (640, 480)}

    wait_for(both)
    assert value(watched.camera, "restarts_total", cause="crashed") == 0


@pytest.mark.slow
def test_a_server_that_stops_answering_costs_one_process_and_comes_back(
    server: Served, watch: Callable[[Camera], Watched]
) -> None:
    watched = seen(watch, f"rtsp://127.0.0.1:{server.port}/live?stall_s=1")
    wait_for(lambda: watched.taken > 1)
    (child,) = children()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: value(watched.camera, "restarts_total", cause="silent") >= 1)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    taken = watched.taken
    wait_for(lambda: watched.taken > taken + 1)
    assert child.pid not in [each.pid for each in children()]
    assert watched.camera.state == "seeing"


@pytest.mark.slow
def test_a_frozen_picture_is_noticed(server: Served, watch: Callable[[Camera], Watched]) -> None:
    watched = seen(watch, f"rtsp://127.0.0.1:{server.port}/still?frozen_s=2")
    wait_for(lambda: value(watched.camera, "restarts_total", cause="frozen") >= 1)


@pytest.mark.quick(1)
@pytest.mark.parametrize("by", BY)
def test_a_password_is_used_and_never_shown(
    server: Served, watch: Callable[[Camera], Watched], by: str
) -> None:
    wrong = seen(watch, f"rtsp://user:sesame%2F7@127.0.0.1:{server.locked}/live?by={by}")
    right = seen(watch, f"rtsp://user:pass%2Fword@127.0.0.1:{server.locked}/live?by={by}")
    wait_for(lambda: right.taken > 1 and wrong.camera.state == "unauthorized")
    for child in children():
        assert not {"sesame", "pass"} & set(
            "/".join(child.cmdline()).replace("%2F", "/").split("/")
        )
    text = wrong.logged.getvalue() + right.logged.getvalue()
    assert "unauthorized" in text and "***@127.0.0.1" in text
    assert not any(secret in text for secret in ("sesame", "pass%2F", "pass/", "user:"))


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_given_up(
    watch: Callable[[Camera], Watched],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        watched = seen(watch, f"rtsp://127.0.0.1:{mute.getsockname()[1]}/live?open_s=1")
        wait_for(lambda: value(watched.camera, "restarts_total", cause="silent") >= 2)
        assert watched.taken == 0


@pytest.mark.slow
@pytest.mark.parametrize("state", ["not_found", "unreachable"])
def test_what_is_not_there_is_said_once_and_tried_again(
    server: Served, watch: Callable[[Camera], Watched], state: str
) -> None:
    port = server.port if state == "not_found" else 1
    watched = seen(watch, f"rtsp://127.0.0.1:{port}/nothing")
    wait_for(lambda: value(watched.camera, "restarts_total", cause=state) >= 2)
    assert [event["state"] for event in watched.events()] == [state]
