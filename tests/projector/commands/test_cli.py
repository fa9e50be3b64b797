"""The console script `projector`: settings, wrong usage, help, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from projector.commands import cli
from projector.commands.cli import main
from projector.commands.settings import PREFIX, Settings
from protos.errors import (
    ERRORS,
    BundleMissingError,
    ConfigError,
    ModelError,
)
from tests.fakes.toolkit import code_of
from tests.projector.commands.conftest import Program


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--selector", "task_awake"), "task_aware"),
        (("--selector", "task_aware", "--selector-pictures", "0"), "--selector-pictures above 0"),
        (("--fixed", "fp8,int2"), "int2"),
        (("--raw-scale", "layer"), "invalid choice"),
    ],
)
def test_calibrate_refuses_what_it_cannot_do_before_it_reads_anything(
    program: Program, flags: tuple[str, ...], said: str
) -> None:
    names = ("bundle", "data", "corpus", "held", "held-corpus", "out")
    code, _, err = program("calibrate", *names, "--source", "s", "--target", "t", *flags)
    assert code == ConfigError.exit_code and said in err


@pytest.mark.slow
def test_settings_come_from_file_and_environment(
    program: Program,
    bundle: Path,
    pair: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "projector.toml"
    config.write_text(f'source = "{pair[1]}"\nthreads = 1\nbundles = "{bundle.parent}"\n')
    monkeypatch.setenv("NEURAL_BRIDGE_PROJECTOR_TARGET", str(pair[3]))
    assert program("verify", "edge-to-cloud", "--config", config)[0] == 0
    assert program("--config", config, "verify", "edge-to-cloud", "--backend", "torch")[0] == 0
    assert program("catalogue", "--config", config)[0] == 0


def test_check_config_prints_the_settings_and_loads_nothing(
    program: Program, bundle: Path, pair: list[object], tmp_path: Path
) -> None:
    code, out, _ = program("verify", bundle, *pair, "--check-config")
    assert code == 0
    assert json.loads(out)["source"] == str(pair[1])
    config = tmp_path / "projector.toml"
    config.write_text('target = "nowhere"\n')
    assert program("--config", config, "--check-config")[0] == ModelError.exit_code
    config.write_text('bundles = "nowhere"\n')
    assert program("--config", config, "--check-config")[0] == BundleMissingError.exit_code
    config.write_text('backend = "nothing"\n')
    assert program("--config", config, "--check-config")[0] == ConfigError.exit_code
    config.write_text("treads = 1\n")
    code, _, err = program("--config", config, "--check-config")
    assert code == ConfigError.exit_code
    assert "did you mean threads?" in err
    assert program("inspect", tmp_path, "--check-config")[0] == BundleMissingError.exit_code


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["verifi"], ["inspect"], ["inspect", "a", "--nothing"], ["layout", "a", "b"]),
        ["train", "a", "b", "c", "--seed", str(1 << 64)],
        ["guard", "a", "b", "c", "--seed", str(1 << 64)],
        ["head", "train", "a", "b", "c", "d", "--task", "e", "--seed", str(1 << 64)],
    ],
)
def test_wrong_usage_is_a_config_error_without_a_traceback(
    program: Program, arguments: list[str]
) -> None:
    code, out, err = program(*arguments)
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("projector: config: ") and "Traceback" not in err


@pytest.mark.parametrize("command", [[], ["layout"], ["inspect"], ["verify"], ["catalogue"]])
def test_help_has_examples_and_every_exit_code(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  projector " in out or "examples:\n  NEURAL" in out
    if command:
        assert "exit codes: " in out and "see projector --help" in out
    else:
        assert all(f"  {e.exit_code:<3} {e.name}: " in out for e in ERRORS.values())


def test_every_setting_says_what_it_is_and_is_a_flag_of_some_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not [n for n, e in Settings.model_fields.items() if not e.description]
    shown = ""
    for command in ("layout", "inspect", "verify", "catalogue", "corpus"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown += capsys.readouterr().out
    assert not [n for n in Settings.model_fields if f"--{n.replace('_', '-')} " not in shown]


def test_importing_it_does_not_import_a_tensor_library() -> None:
    names = ["torch", "transformers", "onnxruntime", "onnx"]
    script = f"import projector.commands.cli, sys; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_bad_input_ends_with_its_error_and_no_traceback(
    run: Any,
    data: Path,
    corpus: Path,
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[tuple[object, ...], str, str]] = [
        (("corpus", tmp_path / "nothing", tmp_path / "c"), "source", "holds no picture"),
        (("train", data, tmp_path / "none", tmp_path / "o"), "corpus", "holds no shard"),
        (("train", data, corpus, tmp_path / "o", "--family", "rigde"), "fit", "mean 'ridge'"),
        (("train", data, corpus, tmp_path / "o", "--set", "r=0"), "fit", "rank 0"),
        (("train", data, corpus, tmp_path / "o", "--set", "r=x"), "config", "type int"),
        (("train", data, corpus, tmp_path / "o", "--set", "spread=maybe"), "config", "type bool"),
        (("train", data, corpus, tmp_path / "o", "--set", "q=1"), "config", "settings r="),
        (("validate", tmp_path / "m", data, corpus, tmp_path / "o"), "fit", "no map at"),
    ]
    for arguments, name, said in cases:
        assert run(*arguments) == code_of(name), arguments
        shown = capsys.readouterr().err
        assert said in shown and "Traceback" not in shown


@pytest.mark.parametrize("threads", ["-1", "1.5", "many", "999999999"])
def test_threads_are_a_number_within_reason(
    data: Path, corpus: Path, models: tuple[Path, Path], capsys: Any, threads: str
) -> None:
    pair = ("--source", models[0], "--target", models[1], "--threads", threads)
    assert main([*map(str, ("corpus", data, corpus, *pair))]) == code_of("config")
    assert "_" not in capsys.readouterr().err.splitlines()[-1].partition("error")[2]


def test_models_may_be_named_by_the_environment_or_a_file(
    data: Path,
    corpus: Path,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = ["corpus", str(data), str(tmp_path / "made"), "--count", "2"]
    assert cli.main(call) == code_of("config")
    assert "no source model" in capsys.readouterr().err
    file = tmp_path / "pair.toml"
    file.write_text(f"source = '{models[0]}'\nthreads = 1\n")
    monkeypatch.setenv(PREFIX + "TARGET", str(models[1]))
    assert cli.main(["--check-config", "--config", str(file), *call]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["source"], shown["threads"]) == (str(models[0]), 1)
    assert not (tmp_path / "made").exists(), "it was only to be checked"
    assert cli.main(["--config", str(file), *call]) == 0
    assert (tmp_path / "made").exists()
    assert cli.main(["--config", "nowhere.toml", *call]) == code_of("config")
    monkeypatch.setenv(PREFIX + "DEVICE", "nowhere")
    assert cli.main(["--config", str(file), *call]) == code_of("model")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_in_mid_write_leaves_what_was_there(
    run: Any,
    data: Path,
    corpus: Path,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to("/dev/full")

    train = ("train", data, corpus)
    steps = ("--set", "r=4", "--reconstruct-steps", "2", "--batch", "4")
    cases: list[tuple[str, str, tuple[object, ...]]] = [
        ("corpus", "0000000.safetensors.part", ("corpus", data, tmp_path / "corpus")),
        ("map", "map.safetensors.part", (*train, tmp_path / "map", "--set", "r=4")),
        ("step/state", "map.pt.part", (*train, tmp_path / "step", *steps)),
        ("log/state", "log.jsonl", (*train, tmp_path / "log", *steps)),
        ("report", "report.html.part", ("validate", made, data, corpus, tmp_path / "report")),
    ]
    for folder, name, words in cases:
        full(tmp_path / folder, name)
        assert run(*words) == code_of("disk_full"), words
        assert "Traceback" not in capsys.readouterr().err
        left = {p.name for p in (tmp_path / folder).iterdir()}
        assert left <= {"state", "log.jsonl"}, f"{folder} holds {left}"


@pytest.mark.parametrize("command", ["corpus", "train"])
def test_a_device_that_is_not_there_is_a_model_error(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any, command: str
) -> None:
    where = (corpus,) if command == "corpus" else (corpus, tmp_path / "out")
    assert run(command, data, *where, "--device", "nowhere") == code_of("model")
    assert "cannot be run on device 'nowhere'" in capsys.readouterr().err
