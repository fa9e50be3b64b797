"""SIGTERM ends an agent soon, whatever hangs: its model, or the service."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protos.errors import OfflineError
from protos.process import console
from tests.checkout import ROOT
from tests.edge_agent.test_cli import server  # noqa: F401
from tests.fakes.fake_bridge import FakeBridge

_AGENT = """
import signal, sys
from PIL import Image
from edge_agent import assemble, cli, stop, stop_limit
from edge_agent.sources import Capture
from tests.fakes.fake_edge import FakeModel
folder, server, limit_s, stop._GRACE_S = *sys.argv[1:3], float(sys.argv[3]), 0.1
stop_limit.end_soon.__defaults__ = (limit_s,)

class Hanging(FakeModel):
    def see(self, picture):
        print("seeing", flush=True)
        signal.pause()

assemble.load = lambda *_: Hanging()
cli.open_source = lambda uri: (Capture("a", Image.new("RGB", (9, 9)), 1.0),)
open(folder + "/config.json", "w").write("{}")
words = ["run", "--model", folder, "--source", "x", "--question", "x", "--server", server]
sys.exit(cli.main([*words, "--state-dir", folder + "/s", "--log-level", "warning"]))
"""


@contextmanager
def agent(folder: Path, *given: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, str(folder), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_model_that_hangs_keeps_no_agent_running(
    tmp_path: Path,
    server: FakeBridge,  # noqa: F811
) -> None:
    with agent(tmp_path, server.address, "0.5") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "seeing\n"
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == console.TERMINATED
    assert "still running 0.5 s after SIGTERM" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_service_that_says_nothing_keeps_no_agent_running(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        agent(tmp_path, f"127.0.0.1:{mute.getsockname()[1]}", "30") as process,
    ):
        assert process.stderr is not None
        taken, _ = mute.accept()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == OfflineError.exit_code
        taken.close()
    assert "the agent is closing" in said and "Traceback" not in said
