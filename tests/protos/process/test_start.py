"""The first moments of a console script: its libraries are imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from protos.errors import ConfigError
from protos.process import console
from protos.process.start import start


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def test_the_programs_main_gets_its_arguments(tmp_path: Path) -> None:
    name = module(tmp_path, "nb_counts", "def main(argv):\n    return len(argv)\n")
    assert start(name, "counts", "edge", ["a", "b"]) == 2


def test_ctrl_c_during_an_import_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(tmp_path, "nb_slow", "raise KeyboardInterrupt\n")
    assert start(name, "slow", "edge", []) == console.INTERRUPTED
    assert capsys.readouterr().err == "slow: interrupted\n"


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(tmp_path, "nb_lacks", "import nb_not_there.part\n")
    assert start(name, "lacks", "cloud", []) == ConfigError.exit_code
    assert capsys.readouterr().err == (
        "lacks: config: needs the package nb_not_there: pip install 'neural-bridge[cloud]'\n"
    )


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_says_so(tmp_path: Path) -> None:
    name = module(tmp_path, "nb_broken", "import protos.not_there\n")
    with pytest.raises(ModuleNotFoundError, match="protos.not_there"):
        start(name, "broken", "cloud", [])
