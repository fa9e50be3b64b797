"""HTTP proxies: never for this machine, named where they refuse, used where they work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.settings import PREFIX
from protos.errors import OfflineError
from protos.process.proxies import proxy_of
from tests.edge_agent.test_standard_streams import AGENT, server, stage  # noqa: F401
from tests.fakes.fake_bridge import FakeBridge


class Proxy:
    """Takes CONNECT; refuses it, or tunnels every connection to one port of this machine."""

    def __init__(self, to_port: int | None) -> None:
        self.asked: list[str] = []
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        self.asked.append(head.decode().split()[1])
        if self._to_port is None:
            near.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._to_port))
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        self._pump(near, far)

    def _pump(self, reading: socket.socket, writing: socket.socket) -> None:
        try:
            while data := reading.recv(1 << 16):
                writing.sendall(data)
            writing.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()


@contextmanager
def proxy(to_port: int | None = None) -> Iterator[Proxy]:
    made = Proxy(to_port)
    try:
        yield made
    finally:
        made.close()


def ask(stage: Path, address: str, **environ: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(PREFIX) and not k.lower().endswith("_proxy")
    }
    arguments = ["--model", "model", "--server", address, "--state-dir", "state"]
    return subprocess.run(
        [sys.executable, "-c", AGENT, "ask", "pictures/0.png", "x", *arguments, "--retries", "0"],
        cwd=stage,
        capture_output=True,
        text=True,
        timeout=240,
        env=inherited | environ | {"PYTHONPATH": os.getcwd()},
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_server_of_this_machine_is_reached_past_every_proxy(
    stage: Path,  # noqa: F811
    server: FakeBridge,  # noqa: F811
    variable: str,
) -> None:
    with proxy() as refusing:
        done = ask(stage, server.address, **{variable: f"http://127.0.0.1:{refusing.port}"})
    assert (done.returncode, done.stdout) == (0, "about x\n"), done.stderr
    assert refusing.asked == []


@pytest.mark.slow
def test_a_refusal_by_a_proxy_names_the_proxy_and_keeps_its_password(stage: Path) -> None:  # noqa: F811
    with proxy() as refusing:
        url = f"http://user:secret@127.0.0.1:{refusing.port}"
        done = ask(stage, "bridge.example:50051", http_proxy=url)
    assert done.returncode == OfflineError.exit_code
    last = done.stderr.splitlines()[-1]
    assert f"HTTP proxy 127.0.0.1:{refusing.port} (http_proxy)" in last and "403" in last
    assert "secret" not in done.stderr
    assert refusing.asked and set(refusing.asked) == {"bridge.example:50051"}


@pytest.mark.slow
def test_a_server_elsewhere_is_reached_through_the_proxy(
    stage: Path,  # noqa: F811
    server: FakeBridge,  # noqa: F811
) -> None:
    with proxy(int(server.address.rpartition(":")[2])) as working:
        url = f"http://127.0.0.1:{working.port}"
        done = ask(stage, "bridge.example:50051", https_proxy=url)
    assert (done.returncode, done.stdout) == (0, "about x\n"), done.stderr
    assert set(working.asked) == {"bridge.example:50051"}


@pytest.mark.parametrize(
    ("target", "environ", "expected"),
    [
        ("cloud.example:1", {}, ""),
        ("cloud.example:1", {"http_proxy": "http://p:3128"}, "p:3128 (http_proxy)"),
        ("cloud.example:1", {"http_proxy": "http://u:x@p:3128/"}, "p:3128 (http_proxy)"),
        ("cloud.example:1", {"http_proxy": "http://[fd00::1]:3128"}, "[fd00::1]:3128 (http_proxy)"),
        ("a.b:1", {"http_proxy": "http://p:1", "grpc_proxy": "http://q:2"}, "q:2 (grpc_proxy)"),
        ("cloud.example:1", {"http_proxy": "http://p:1", "no_proxy": "x,.example"}, ""),
        ("10.1.2.3:1", {"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, ""),
        ("dns:cloud.example:1", {"http_proxy": "http://p:1"}, "p:1 (http_proxy)"),
        ("localhost:1", {"http_proxy": "http://p:1"}, ""),
        ("[::1]:1", {"http_proxy": "http://p:1"}, ""),
        ("unix:/run/x", {"http_proxy": "http://p:1"}, ""),
        ("cloud.example:1", {"http_proxy": "https://p:1"}, ""),
        ("cloud.example:1", {"http_proxy": "p:1"}, ""),
    ],
)
def test_the_proxy_on_the_way_is_known(target: str, environ: dict[str, str], expected: str) -> None:
    assert proxy_of(target, environ) == expected
