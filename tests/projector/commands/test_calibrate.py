"""`projector calibrate --sweep`: lists in one text, and what is refused before anything is run."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from projector.commands import cli
from projector.commands.calibrate import lists
from protos.errors import ConfigError
from tests.fakes.tiny_models import picture


def test_a_sweep_is_several_lists_in_one_text() -> None:
    assert lists("coarseness=2,4 quiet=4 ranks=24") == {
        "coarseness": (2.0, 4.0),
        "quiet": (4.0,),
        "ranks": (24,),
    }
    assert lists("dead-zones=0.1") == {"dead_zones": (0.1,)}


@pytest.mark.parametrize("wrong", ["coarse=2", "coarseness", "ranks=1.5", "quiet=1 quiet=2"])
def test_a_sweep_that_cannot_be_read_says_why(wrong: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        lists(wrong)


def test_a_sweep_beside_a_list_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(0).save(tmp_path / "a.png")
    places = [str(tmp_path)] * 6
    flags = ["--sweep", "quiet=4", "--ranks", "2", "--source", str(tmp_path)]
    assert cli.main(["calibrate", *places, *flags]) == ConfigError.exit_code
    assert "--sweep goes without --ranks" in capsys.readouterr().err
