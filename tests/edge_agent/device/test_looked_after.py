"""A running agent as systemd, an operator and the next start see it, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent.cli import main
from edge_agent.remote.kept import RemoteSettings
from edge_agent.settings import PREFIX, Settings
from protos.errors import ConfigError
from tests.fakes.fake_bridge import FakeBridge

AGENT = """
import sys, time
sys.modules["torch"] = None  # as on a device; its import takes longer than the run
from edge_agent import assemble, cli
from tests.fakes.fake_edge import FakeModel
class Model(FakeModel):
    def see(self, seen):
        if getattr(seen, "width", 0) == 13:
            time.sleep(10_000)  # a driver that never returns
        if getattr(seen, "width", 0) == 14:
            import ctypes
            ctypes.string_at(0)
        if getattr(seen, "width", 0) == 15:
            raise ZeroDivisionError("by nothing")
        return super().see(seen)
assemble.load = lambda *_: Model()
sys.exit(cli.main(sys.argv[1:]))
"""


class Stage:
    """A device's folders, systemd's socket, and its agent."""

    def __init__(self, folder: Path, server: FakeBridge) -> None:
        self.folder, self.server = folder, server
        self.state = folder / "state"
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "pictures").mkdir()
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(str(folder / "notify"))
        self.systemd.settimeout(200)
        self.agent: subprocess.Popen[str] | None = None
        self.picture("first", 9)

    def picture(self, name: str, width: int) -> None:
        draft = self.folder / "pictures" / f".{name}.png"
        Image.new("RGB", (width, 9), (1, 2, width)).save(draft)
        draft.rename(draft.with_name(f"{name}.png"))

    def start(self, watchdog_s: float = 2.0, *more: str) -> None:
        self.systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # what an earlier run said
            while True:
                self.systemd.recv(4096)
        self.systemd.settimeout(200)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        self.agent = subprocess.Popen(
            [
                *(sys.executable, "-c", AGENT, "run", "--model", "model"),
                *("--server", self.server.address, "--state-dir", "state"),
                *("--source", "folder://pictures?watch=1", "--question", "x"),
                *("--output", "out.jsonl", *more),
            ],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
            env=environ
            | {
                "PYTHONPATH": os.getcwd(),
                "NOTIFY_SOCKET": str(self.folder / "notify"),
                "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
            },
        )

    def until(self, wanted: str) -> list[str]:
        """What systemd hears, up to a state that has a text."""
        heard: list[str] = []
        while wanted not in (heard or [""])[-1]:
            heard.append(self.systemd.recv(4096).decode())
        return heard

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        assert self.agent is not None
        self.agent.send_signal(number)
        said = self.agent.communicate(timeout=200)[1]
        self.agent = None
        return said

    def reports(self) -> list[dict[str, object]]:
        files = sorted((self.state / "reports").glob("report-*.json"))
        assert all(file.stat().st_size <= 64 << 10 for file in files)
        return [json.loads(file.read_text()) for file in files]


@pytest.fixture
def stage(tmp_path: Path, server: FakeBridge) -> Iterator[Stage]:
    made = Stage(tmp_path, server)
    yield made
    if made.agent is not None:
        made.end(signal.SIGKILL)
    made.systemd.close()


def status(stage: Stage, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["status", "--json", "--state-dir", str(stage.state)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_systemd_hears_of_start_work_and_end_and_an_operator_sees_it(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    RemoteSettings(stage.state, Settings).take(7, {"log_level": "info", "mask": "x"})
    stage.start()
    before = stage.until("READY=1")
    assert before[0] == "EXTEND_TIMEOUT_USEC=900000000"
    assert "STATUS=loading the model" in before and "WATCHDOG=1" not in before
    assert "WATCHDOG=1" in stage.until("connected; ")
    found = status(stage, capsys)
    assert (found["state"], found["stuck"]) == ("running", None)
    assert found["pid"] == stage.agent.pid if stage.agent else False
    assert main(["status", "--state-dir", str(stage.state)]) == 0
    shown = capsys.readouterr().out
    assert "newest scene" in shown and "running" in shown
    assert "revision 7 of the service; in use: log_level; refused: mask" in shown
    assert found["service_settings"]["revision"] == 7
    doctor = ["doctor", "--json", "--state-dir", str(stage.state), "--model", "no/model"]
    assert main([*doctor, "--source", str(stage.folder / "pictures")]) == ConfigError.exit_code
    lines = {line["subject"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["server"]["found"] == "the running agent is connected"
    assert lines["agent"]["level"] == "green" and lines["model"]["level"] == "red"
    assert stage.agent is not None
    stage.agent.send_signal(signal.SIGHUP)
    stage.until("RELOADING=1\nMONOTONIC_USEC=")
    stage.until("READY=1")
    stage.end()
    stage.systemd.setblocking(True)
    assert stage.until("STOPPING=1")
    assert stage.reports() == [] and not (stage.state / "agent.sock").exists()
    log = (stage.state / "logs" / "agent.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["event"] == "done"
    assert main(["status", "--state-dir", str(stage.state)]) == ConfigError.exit_code
    assert "no agent runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_hangs_ends_the_pings_and_the_status_says_so(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.picture("second", 13)
    stage.start(watchdog_s=1.0)
    stage.until("STATUS=STUCK: model does not move")
    assert status(stage, capsys)["stuck"] == "model"
    stage.systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            stage.systemd.recv(4096)
    stage.systemd.settimeout(1.5)
    with pytest.raises(TimeoutError):  # one and a half times what systemd waits
        while stage.systemd.recv(4096) != b"WATCHDOG=1":
            pass
    stage.end(signal.SIGKILL)


@pytest.mark.slow
def test_the_next_start_reports_a_crash_in_c_and_a_killed_run(stage: Stage) -> None:
    stage.picture("second", 14)
    stage.start()
    assert stage.agent is not None
    stage.agent.communicate(timeout=200)
    assert stage.agent.returncode == -signal.SIGSEGV
    (stage.folder / "pictures" / "second.png").unlink()
    stage.start()
    stage.until("connected; ")
    stage.end(signal.SIGKILL)
    stage.start()
    stage.until("connected; ")
    fault, killed = stage.reports()
    assert fault["kind"] == "fault" and "Segmentation fault" in str(fault["cause"])
    assert "string_at" in str(fault["cause"])
    assert killed["kind"] == "killed"
    assert any("model" in line for line in killed["log"])  # type: ignore[attr-defined]
    assert "settings" in killed and "version" in killed
    assert "ended_badly" in stage.end()


def test_an_error_of_the_agent_is_reported_at_once(stage: Stage) -> None:
    stage.picture("second", 15)
    stage.start()
    assert stage.agent is not None
    stage.agent.communicate(timeout=200)
    (report,) = stage.reports()
    assert report["kind"] == "exception" and "ZeroDivisionError: by nothing" in str(report["cause"])
