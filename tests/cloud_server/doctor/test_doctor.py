"""`cloud-server doctor` on good and broken machines: one line for each check, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cloud_server.cli import main
from cloud_server.doctor import machine
from cloud_server.settings import load
from protos.errors import ConfigError
from protos.process.findings import Finding, ending, findings
from tests.checkout import ROOT

MODEL, BUNDLE = ROOT / "reference/models/cloud", ROOT / "reference/bundles/edge-a-cloud"
FREE = ("--port", "0", "--open-port", "0", "--metrics-port", "0", "--api-port", "0")


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", str(tmp_path / "home")]) == 0
    capsys.readouterr()
    return tmp_path / "home"


def report(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--quick", "--json", *typed])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, {line["subject"]: line for line in json.loads(said.out)}


def served(home: Path, *more: str) -> tuple[str, ...]:
    return ("--directory", str(home), "--model", str(MODEL), "--bundles", str(BUNDLE), *FREE, *more)


def test_good_premises_have_no_red_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = report(capsys, *served(home))
    assert code == 0, [line for line in lines.values() if line["level"] == "red"]
    for subject in ("database", "server certificate", "model", "torch", "open files", "memory"):
        assert lines[subject]["level"] in ("green", "yellow"), lines[subject]
    assert lines["bundle, edge-a-cloud"]["level"] == "green"
    assert lines["root key"]["level"] == "yellow", "it lies beside the service"
    assert all(line["advice"] or line["level"] == "green" for line in lines.values())


def test_each_fault_is_red_and_says_what_to_do(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chmod(home / "server.pem", 0o644)
    (home / "state.db").write_bytes(b"no database at all, but long enough to be read as one" * 99)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "bundle.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        code, lines = report(
            capsys,
            *("--directory", str(home), "--model", str(tmp_path / "none"), "--port", port),
            *("--bundles", str(damaged), "--device", "cuda", "--backend", "tensorrt"),
            *("--open-port", "0", "--metrics-port", "0", "--api-port", "0"),
        )
    assert code == ConfigError.exit_code
    for subject in ("private keys", "database", "model", "bundles", "port, gRPC", "GPU", "torch"):
        assert lines[subject]["level"] == "red", lines[subject]
        assert lines[subject]["advice"]
    assert "chmod 600" in lines["private keys"]["advice"]


def test_settings_that_cannot_be_read_are_one_red_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("no_such_setting = 1\n")
    code, lines = report(capsys, "--config", str(file))
    assert code == ConfigError.exit_code and list(lines) == ["settings"]
    code = main(["doctor", "--config", str(file)])
    assert code == ConfigError.exit_code
    assert capsys.readouterr().out.startswith("RED ")


def test_memory_that_is_too_small_for_the_settings_is_red() -> None:
    given = {"model": MODEL, "bundles": [BUNDLE], "scene_memory_bytes": 1 << 50}
    (line,) = machine.memory(load(given, environ={}))
    assert line.level == "red" and "--scene-memory-bytes" in line.advice


def test_more_connections_than_files_may_be_open_is_red() -> None:
    (line,) = machine.open_files(load({"max_connections": 999_999}, environ={}))
    assert line.level == "red" and "LimitNOFILE" in line.advice


def test_a_clock_before_this_program_existed_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load({}, environ={})
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    (line,) = machine.clock(settings)
    assert line.level == "red"


def test_a_certificate_that_ends_soon_is_yellow_and_one_that_ended_red() -> None:
    now = time.time()
    levels = [ending("x", "y", now + days * 86400, True).level for days in (-1, 3, 99)]
    assert levels == ["red", "yellow", "green"]


def test_a_check_that_fails_is_a_red_line_of_its_own() -> None:
    def ill() -> list[Finding]:
        raise ZeroDivisionError("by nothing")

    (line,) = findings("something", ill)
    assert line.level == "red" and "ZeroDivisionError" in line.found
