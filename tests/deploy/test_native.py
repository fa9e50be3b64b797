"""`run-native.sh` from the release's archive: from nothing to an answer, again, and stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT
from tests.cloud_server.state.postgresql import binaries
from tests.deploy.test_dist import dist, full

__all__ = ["dist"]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ANSWER_S = 120.0


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nothing listens on."""
    for first in range(21000, 31000, count):
        with tempfile.TemporaryFile():
            taken = False
            for port in range(first, first + count):
                with socket.socket() as probe:
                    taken = taken or probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return first
    raise RuntimeError("no ports")


def lives(pid: str) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to look."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Stack:
    """The unpacked archive and the folder that it runs in."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.folder = folder / "stack"
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        (self.top,) = folder.glob("neural-bridge-*")
        self.port = free_ports(10)
        constraints = folder / "constraints.txt"
        shutil.copy(ROOT / ".ci/constraints.txt", constraints)
        constraints.chmod(0o644)
        self._environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._environ |= {"PATH": PATH, "PIP_CONSTRAINT": str(constraints)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.top / "deploy/cloud/run-native.sh"), *words]
        command += ["--directory", str(self.folder)]
        if os.getuid() == 0:
            command += ["--user", "nobody"]
        return subprocess.run(command, env=self._environ, capture_output=True, text=True)

    def start(self) -> str:
        words = ("--demo", "--no-install", "--torch-index", "", "--host", "127.0.0.1")
        done = self.run("start", *words, "--ports", str(self.port))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pids(self) -> dict[str, str]:
        return {f.stem: f.read_text() for f in (self.folder / "run").glob("*.pid")}

    @property
    def owner(self) -> str:
        return (self.folder / "keys/owner").read_text()

    def http(self, path: str, body: dict[str, Any] | None = None, port: int = 2) -> Any:
        scheme = "https" if port == 2 else "http"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{scheme}://localhost:{self.port + port}{path}", data)
        if scheme == "https":
            request.add_header("Authorization", f"Bearer {self.owner}")
        request.add_header("Content-Type", "application/json")
        roots = str(self.folder / "service/authority/roots.pem")
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=roots))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
        with opener.open(request, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def answer(self) -> str:
        """Ask about the camera's newest scene, as soon as there is one."""
        scene = {"type": "image_url", "image_url": {"url": "bridge://main/camera-1/latest"}}
        content = [scene, {"type": "text", "text": "is there a fire ?"}]
        asked = {"model": "cloud", "messages": [{"role": "user", "content": content}]}
        end = time.monotonic() + ANSWER_S
        while True:
            try:
                told = self.http("/v1/chat/completions", asked)
            except urllib.error.HTTPError as error:
                if error.code != 404 or time.monotonic() > end:
                    raise
                time.sleep(0.5)
                continue
            return str(told["choices"][0]["message"]["content"])


@pytest.fixture
def stack(dist: Any, tmp_path: Path) -> Iterator[Stack]:
    if shutil.which("prometheus", path=PATH) is None or binaries() is None:
        pytest.skip("no Prometheus or PostgreSQL (make prometheus postgresql)")
    assert dist.main(["--out", str(tmp_path / "dist"), "--no-bom"]) == 0
    (archive,) = (tmp_path / "dist").glob("*-deploy.tar.gz")
    folder = Path(tempfile.mkdtemp(prefix="nb"))
    folder.chmod(0o755)
    made = Stack(folder, archive)
    try:
        yield made
    finally:
        made.run("stop")
        shutil.rmtree(folder)


@full
@pytest.mark.timeout(3600)
def test_a_machine_gets_from_an_archive_to_an_answer_with_one_command(stack: Stack) -> None:
    began = time.monotonic()
    told = stack.start()
    assert stack.owner in told and f":{stack.port + 2}/live" in told
    assert stack.answer() in ("yes", "no")
    print(f"from the archive to the first answer: {time.monotonic() - began:.0f} s")
    # Prometheus reads the service with its key, has the rules, and knows the Alertmanager.
    end = time.monotonic() + ANSWER_S
    query = "/api/v1/query?query=neural_bridge_cloud_answering"
    while not (found := stack.http(query, port=4)["data"]["result"]):
        assert time.monotonic() < end, stack.http("/api/v1/targets", port=4)
        time.sleep(0.5)
    assert found[0]["value"][1] == "1"
    assert stack.http("/api/v1/rules", port=4)["data"]["groups"]
    assert stack.http("/api/v1/alertmanagers", port=4)["data"]["activeAlertmanagers"]

    # Again: nothing starts twice, nothing is made twice.
    pids, owner = stack.pids(), stack.owner
    again = stack.start()
    assert "service runs already" in again and stack.pids() == pids
    assert stack.owner == owner and "your key" not in again

    # A process that ended by itself is named, and started again.
    assert stack.run("status").returncode == 0
    os.kill(int(pids["camera-1"].split()[0]), 9)
    end = time.monotonic() + 30
    while (status := stack.run("status")).returncode == 0 and time.monotonic() < end:
        pass
    assert "camera-1      has ended by itself" in status.stdout
    stack.start()
    assert stack.pids()["camera-1"] != pids["camera-1"]

    # Stopped: no process is left, everything is kept.
    alive = stack.pids()
    assert stack.run("stop").returncode == 0
    assert not [name for name, line in alive.items() if lives(line.split()[0])]
    assert not (stack.folder / "postgresql/postmaster.pid").exists()
    assert stack.run("status").returncode == 1
    stack.start()
    assert stack.owner == owner and stack.answer() in ("yes", "no")
    assert "<!doctype html>" in stack.http("/live").lower()
