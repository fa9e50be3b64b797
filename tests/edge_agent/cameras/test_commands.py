"""The command line with cameras: what is checked before the start, and what is never printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent import cli
from protos.errors import ConfigError, MaskError, SourceError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def check(model: Path, *flags: str) -> int:
    return cli.main(["run", "--model", str(model), "--check-config", *flags])


def test_the_settings_are_printed_without_the_password(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "rtsp://admin:sesame@cam/live?name=gate"
    mask = "gate=0,0 1,0 1,1"
    assert check(model, "--source", address, "--mask", mask, "--trigger", "every=10s") == 0
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert shown["source"] == ["rtsp://***@cam/live?name=gate"] and shown["mask"] == [mask]
    assert "sesame" not in told.out + told.err


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        (["--mask", "gate=/nowhere.png"], MaskError, "camera gate"),
        (["--mask", "gaet=0,0 1,0 1,1"], ConfigError, "did you mean gate"),
        (["--trigger", "evry=1s"], ConfigError, "did you mean every"),
        (["--source", "rtsp://admin:sesame@b/x?widht=3"], SourceError, "did you mean width"),
        (["--source", "rtps://admin:sesame@b/x"], SourceError, "did you mean 'rtsp"),
    ],
)
def test_mistakes_end_the_start_with_what_to_write_and_no_password(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    error: type[ConfigError],
    says: str,
) -> None:
    source = "rtsp://admin:sesame@cam/live?name=gate"
    assert check(model, "--source", source, *flags) == error.exit_code
    told = capsys.readouterr()
    assert says in told.err and "sesame" not in told.out + told.err


def test_several_sources_come_from_the_environment_and_from_a_file(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURAL_BRIDGE_EDGE_SOURCE", "csi://0?name=a\ncsi://1?name=b")
    assert check(model) == 0
    assert json.loads(capsys.readouterr().out)["source"] == ["csi://0?name=a", "csi://1?name=b"]
    monkeypatch.delenv("NEURAL_BRIDGE_EDGE_SOURCE")
    (model / "edge.toml").write_text('source = ["csi://0", "csi://1"]\ntrigger = "motion"\n')
    assert check(model, "--config", str(model / "edge.toml")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["source"] == ["csi://0", "csi://1"] and shown["trigger"] == ["motion"]
