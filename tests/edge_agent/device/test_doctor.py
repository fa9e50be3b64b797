"""`edge-agent doctor` on good and broken devices: every check has a line, never a traceback."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent import assemble
from edge_agent.cameras.states import STATES
from edge_agent.cli import main
from edge_agent.device.checks import Checks
from edge_agent.settings import load
from protos.errors import ConfigError
from protos.process.findings import Finding, findings
from tests.edge_agent.cameras.clips import clip
from tests.edge_agent.device import boards
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(assemble, "load", lambda *_: FakeModel())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "one.png")
    return tmp_path


def report(
    capsys: pytest.CaptureFixture[str], *typed: str | Path
) -> tuple[int, dict[str, dict[str, Any]]]:
    code = main(["doctor", "--json", *map(str, typed)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, {line["subject"]: line for line in json.loads(said.out)}


def test_a_good_device_has_no_red_line_and_a_picture_of_its_camera(
    device: Path, server: FakeBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = report(
        capsys,
        *("--model", device / "model", "--state-dir", device / "state"),
        *("--server", server.address, "--source", f"file://{clip(device / 'a.mp4')}?name=gate"),
    )
    assert code == 0, [line for line in lines.values() if line["level"] == "red"]
    assert lines["camera, gate"]["level"] == "green" and "×" in lines["camera, gate"]["found"]
    assert lines["server"]["level"] == "green" and "bundle fake@1" in lines["server"]["found"]
    assert "checkpoint for torch, runs on cpu" in lines["model"]["found"]
    assert lines["agent"]["found"] == "does not run"
    assert lines["certificate"]["level"] == "yellow", "it is not enrolled"
    assert all(line["advice"] or line["level"] == "green" for line in lines.values())


def test_a_camera_that_fails_at_once_has_its_line_at_once_with_cause_and_advice(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--source", "v4l2:///dev/video77?name=a&open_s=600"]  # longer than the check may take
    given += ["--source", "v4l2:///dev/null?name=b&open_s=600"]
    _, lines = report(capsys, "--state-dir", device / "state", *given)
    absent, wrong = lines["camera, a"], lines["camera, b"]
    assert f"no_device: {STATES['no_device']} ([Errno" in absent["found"]
    assert absent["level"] == "red" and "plug it in" in absent["advice"]
    assert f"wrong_device: {STATES['wrong_device']} ([Errno" in wrong["found"]
    assert wrong["level"] == "red" and "other number" in wrong["advice"]


def test_with_everything_broken_each_line_is_red_and_says_what_to_do(
    device: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = device / "state"
    (state / "identity").mkdir(parents=True)
    (state / "identity" / "identity.json").write_text("{ no identity")
    (device / "output").write_text("a file where a folder should be")
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, lines = report(
        capsys,
        *("--model", device / "no-model", "--state-dir", state),
        *("--server", "no-such-host.invalid:50051", "--output", device / "output" / "x"),
        *("--source", f"file://{device}/none.mp4?name=gate", "--mask", "gate=0,0 1,0 1,1"),
    )
    assert code == ConfigError.exit_code
    for subject in ("certificate", "memory", "model", "cameras", "network", "disk, state"):
        assert lines[subject]["level"] == "red", lines[subject]
        assert lines[subject]["advice"]
    assert {"clock", "power", "temperature", "server", "agent"} <= lines.keys()


def test_settings_that_cannot_be_read_are_one_red_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edge.toml").write_text("no_such_setting = 1\n")
    code, lines = report(capsys, "--config", tmp_path / "edge.toml")
    assert code == ConfigError.exit_code and list(lines) == ["settings"]


def test_a_server_that_refuses_is_named_and_a_closed_port_too(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = report(
        capsys,
        *("--model", device / "model", "--state-dir", device / "state"),
        *("--server", "127.0.0.1:1", "--source", device / "pictures"),
    )
    assert lines["network"]["level"] == "red" and "refused" in lines["network"]["found"]
    assert lines["server"]["level"] == "red" and lines["sources"]["level"] == "green"


def test_a_check_that_never_ends_is_a_red_line_after_its_time() -> None:
    release = threading.Event()

    def hangs() -> list[Finding]:
        release.wait()
        return []

    (line,) = findings("camera", hangs, 0.01)
    assert line.level == "red" and "no answer within" in line.found
    release.set()


@pytest.mark.parametrize(
    ("files", "subject", "level"),
    [
        ({}, "power", "green"),
        ({"var/lib/nvpmodel/status": "pmode:0002"}, "power", "yellow"),
        ({"sys/devices/virtual/thermal/cooling_device1/cur_state": "4"}, "power", "yellow"),
        ({"sys/devices/virtual/thermal/thermal_zone0/temp": "86000"}, "temperature", "yellow"),
        ({"sys/devices/virtual/thermal/thermal_zone0/temp": "98000"}, "temperature", "red"),
    ],
)
def test_power_mode_and_heat(
    files: dict[str, str], subject: str, level: str, tmp_path: Path
) -> None:
    root = boards.write(boards.orin_nano(tmp_path), files)
    checks = Checks(load({}, environ={}), root=root)
    (line,) = checks.power() if subject == "power" else checks.temperature()
    assert line.level == level and bool(line.advice) == (level != "green")


def test_a_clock_at_1970_is_no_red_line_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    (line,) = Checks(load({}, environ={})).clock()
    assert line.level == "yellow" and "corrects its times" in line.advice
    (line,) = Checks(load({"ca": "system"}, environ={})).clock()
    assert line.level == "red", "another authority's certificate begins later"
