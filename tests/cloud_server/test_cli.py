"""The command line: help, usage, --check-config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloud_server import cli
from cloud_server.engine.spawn import spawn_engine
from cloud_server.settings import Settings, load
from protos.errors import ConfigError, ModelError
from tests.cloud_server.conftest import Files


def test_help_names_every_setting_every_exit_code_and_the_version_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "see cloud-server --help" in text and "NEURAL_BRIDGE_CLOUD_" in text
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for said in ("--config FILE", "--check-config", "serve --help", "10  config", "bundle_layout"):
        assert said in text
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("cloud-server ")


@pytest.mark.parametrize(
    "arguments", [[], ["nosuch"], ["serve", "--nosuch"], ["serve", "--port"]], ids=" ".join
)
def test_wrong_usage_is_a_config_error_without_a_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == ConfigError.exit_code
    message = capsys.readouterr().err
    assert message.startswith("cloud-server: config: ") and "--help" in message
    assert len(message.splitlines()) == 1


def test_check_config_prints_the_settings_or_ends_with_the_errors_code(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ["serve", "--check-config", "--model", str(files.model), "--bundles", str(files.bundle)]
    assert cli.main(good) == 0
    assert json.loads(capsys.readouterr().out)["bundles"] == [str(files.bundle)]
    assert cli.main([*good, "--bundles", str(files.bundle)]) == ConfigError.exit_code
    assert cli.main([*good, "--backend", "abacus"]) == ConfigError.exit_code
    assert cli.main([*good, "--engine", "steam"]) == ConfigError.exit_code
    assert cli.main([*good, "--model", str(tmp_path)]) == ModelError.exit_code
    assert "config.json" in capsys.readouterr().err
    assert cli.main(["serve", "--check-config"]) == ConfigError.exit_code


def test_the_databases_password_is_neither_printed_nor_among_an_engines_arguments(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://bridge:hunter2@db.example/bridge"
    flags = {"model": files.model, "bundles": [files.bundle], "database": url}
    for spare in (True, False):
        spawn: Any = spawn_engine(load(flags | {"spare": spare}, environ={}), "ipc:///nowhere")
        assert "hunter2" not in " ".join(spawn._command)
    told = ["serve", "--check-config", "--model", str(files.model), "--bundles", str(files.bundle)]
    assert cli.main([*told, "--database", url]) == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert json.loads(shown)["database"] == "postgresql://bridge:***@db.example/bridge"


@pytest.mark.parametrize("where", ["alone", "before", "after"])
def test_config_and_check_config_stand_with_or_without_the_command(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'model = "{files.model}"\nbundles = ["{files.bundle}"]\nport = 7\n')
    options = ["--check-config", "--config", str(config)]
    arguments = {"alone": options, "before": [*options, "serve"], "after": ["serve", *options]}
    assert cli.main(arguments[where]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["port"] == 7 and set(shown) == set(Settings.model_fields)
    config.write_text("prot = 7\n")
    assert cli.main(arguments[where]) == ConfigError.exit_code
    assert "did you mean port?" in capsys.readouterr().err
