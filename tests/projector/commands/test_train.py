"""`projector train`: a map, its story and a plot; resumed, by two processes, from other inputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from projector.commands import cli
from projector.maps import FAMILIES
from tests.fakes.toolkit import code_of
from tests.projector.conftest import GPU, PICTURES


def test_training_leaves_a_map_its_story_and_a_plot(made: Path) -> None:
    story = json.loads((made / "training.json").read_text())
    assert story["family"] == "mix"
    assert story["pictures"] + story["held_out_pictures"] == PICTURES
    held = story["held_out"]
    assert set(held) == {"accuracy", "native", "blind"}, "no figure without its controls"
    assert all(0 <= share <= 1 for share in held.values())
    log = [json.loads(line) for line in (made / "state" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(8))
    assert (made / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_again_goes_on_from_where_it_stopped_and_gives_the_same_map(
    run: Any, data: Path, corpus: Path, made: Path
) -> None:
    before = (made / "map.safetensors").read_bytes()
    flags = ("--family", "mix", "--set", "width=16", "--set", 'config={"r": 8}')
    steps = ("--reconstruct-steps", "4", "--task-steps", "4", "--batch", "4")
    assert run("train", data, corpus, made, *flags, *steps) == 0
    assert (made / "map.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_is_named(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", data, corpus, tmp_path, "--set", "r=4", "--reconstruct-steps", "2")
    assert run(*words, "--batch", "4") == 0
    state = tmp_path / "state" / "map.pt"
    blob = state.read_bytes()
    for damaged in (b"", blob[: len(blob) // 2], b"\x80\x04." + blob):
        state.write_bytes(damaged)
        assert run(*words, "--batch", "4") == code_of("fit")
        assert "map.pt is not a readable checkpoint" in capsys.readouterr().err
    torch.save({"step": 1}, state)
    assert run(*words, "--batch", "4") == code_of("fit")
    assert "no checkpoint of a training" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=GPU)])
def test_two_processes_train_the_map_that_one_trains(
    device: str, data: Path, corpus: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    common = ["--source", models[0], "--target", models[1], "--threads", "1", "--family"]
    steps = ["low_rank", "--set", "r=6", "--set", "spread=false"]
    steps += ["--reconstruct-steps", "3", "--task-steps", "3"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for out, launcher in ((alone, []), (both, torchrun)):
        command = [*launcher, "projector", "train", data, corpus, out, *common, *steps]
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command), "--batch", "4", "--rate", "0.3"]
            + ["--device", device],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    start = tmp_path / "start"
    assert cli.main(list(map(str, ["train", data, corpus, start, *common, *steps[:5]]))) == 0
    zero, one, two = (
        torch.cat([t.flatten() for t in load_file(str(out / "map.safetensors")).values()])
        for out in (start, alone, both)
    )
    moved, apart = float((one - zero).norm()), float((two - one).norm())
    assert moved > 0.1, "nothing was trained"
    assert apart < 0.02 * moved


@pytest.mark.slow
def test_another_map_in_the_same_folder_starts_anew_and_is_not_taken_for_the_first(
    run: Any, data: Path, corpus: Path, tmp_path: Path
) -> None:
    steps = ("--reconstruct-steps", "3", "--batch", "4")
    for family, setting in (("low_rank", "r=6"), ("low_rank", "r=7"), ("ridge", "weight=0.1")):
        chosen = ("--family", family, "--set", setting)
        assert run("train", data, corpus, tmp_path / "one", *chosen, *steps) == 0
        assert run("train", data, corpus, tmp_path / f"{family}{setting}", *chosen, *steps) == 0
        shared, own = (
            tmp_path / name / "map.safetensors" for name in ("one", f"{family}{setting}")
        )
        assert shared.read_bytes() == own.read_bytes()
    log = (tmp_path / "one" / "state" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [0, 1, 2] * 3


@pytest.mark.slow
def test_a_map_is_fitted_to_what_answers_depend_on(
    run: Any, data: Path, corpus: Path, tmp_path: Path
) -> None:
    flags = ("--set", "r=4", "--set", "spread=false")
    blobs = []
    for metric in ("variance", "answers"):
        out = tmp_path / metric
        assert run("train", data, corpus, out, *flags, "--set", f"metric={metric}") == 0
        blobs.append((out / "map.safetensors").read_bytes())
    assert blobs[0] != blobs[1]


@pytest.mark.slow
def test_a_closed_form_may_weigh_tokens_by_what_answers_depend_on(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    for name, flags in (("all alike", ()), ("focus", ("--focus",))):
        assert run("train", data, corpus, tmp_path / name, "--family", "ridge", *flags) == 0
        told = json.loads((tmp_path / name / "training.json").read_text())
        assert told["focus"] == bool(flags)
    maps = [(tmp_path / name / "map.safetensors").read_bytes() for name in ("all alike", "focus")]
    assert maps[0] != maps[1]
    silent = tmp_path / "silent"
    silent.mkdir()
    for file in data.glob("*.png"):
        (silent / file.name).symlink_to(file)
    capsys.readouterr()
    flags = ("--family", "ridge", "--focus")
    assert run("train", silent, corpus, tmp_path / "none", *flags) == code_of("config")
    assert "--focus needs questions to every picture" in capsys.readouterr().err


def test_pictures_that_only_look_alike_are_other_pictures(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    """Files of one name and size with other contents."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    name = sorted(path.name for path in other.glob("*.png"))[3]
    blob = bytearray((other / name).read_bytes())
    blob[-20] ^= 1
    (other / name).write_bytes(blob)
    assert run("train", other, corpus, tmp_path / "map", "--family", "ridge") == code_of("corpus")
    assert "other inputs" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_that_were_changed_train_another_map(
    run: Any, data: Path, corpus: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "data", tmp_path / "map"
    shutil.copytree(data, mine)
    steps = ("--set", "r=4", "--task-steps", "4", "--batch", "4", "--task", "ce")
    assert run("train", mine, corpus, out, *steps) == 0
    questions = mine / "questions.jsonl"
    questions.write_text(questions.read_text().replace("what is", "where is"))
    assert run("train", mine, corpus, out, *steps) == 0
    log = (out / "state" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [*range(4), *range(4)]


def test_patience_without_anything_to_judge_by_is_refused(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    steps = ("--held-out", "0", "--task-steps", "20", "--patience", "1", "--batch", "4")
    assert run("train", data, corpus, tmp_path / "map", *steps) == code_of("config")
    assert "--patience needs held-out pictures" in capsys.readouterr().err


@pytest.mark.quick(1)
@pytest.mark.parametrize("family", ["ridge", "linear", "bidirectional", "low_rank"])
def test_a_ridge_weight_without_end_is_refused(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any, family: str
) -> None:
    flags = ("--family", family, "--set", "weight=inf")
    assert run("train", data, corpus, tmp_path / "map", *flags) == code_of("fit")
    assert "it must be a number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_start_that_is_drawn_is_drawn_by_the_seed(
    run: Any, data: Path, corpus: Path, tmp_path: Path
) -> None:
    maps = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        assert run("train", data, corpus, out, "--family", "mlp", "--seed", str(seed)) == 0
        maps.append((out / "map.safetensors").read_bytes())
    assert maps[0] == maps[1] != maps[2]


_SAVING_EVERY_STEP = """
import functools, sys
from projector.commands import cli
from projector.commands.settings import PREFIX
from projector.training import train
train.Trainer.__init__ = functools.partialmethod(train.Trainer.__init__, save_every_s=0.0)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_training_that_was_killed_goes_on_to_the_same_map(
    run: Any, data: Path, corpus: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """SIGKILL, as a machine that runs out of memory sends it, in the middle of the steps."""
    steps = ("--set", "r=6", "--reconstruct-steps", "60", "--task-steps", "6", "--batch", "4")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("train", data, corpus, whole, *steps) == 0
    given = ["train", data, corpus, cut, *steps, "--source", models[0], "--target", models[1]]
    log = cut / "state" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVING_EVERY_STEP, *map(str, given)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not log.exists() or log.read_text().count("\n") < 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (cut / "map.safetensors").exists()
    assert run("train", data, corpus, cut, *steps) == 0
    taken = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert taken[-1] == 65 and taken.count(0) == 1, "it began again instead of going on"
    assert (cut / "map.safetensors").read_bytes() == (whole / "map.safetensors").read_bytes()
    told = [json.loads((made / "training.json").read_text()) for made in (cut, whole)]
    assert [one.pop("minutes") >= 0 for one in told] == [True, True]  # how long depends on the load
    assert told[0] == told[1]


def test_families_lists_every_family_and_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--families"])
    assert ended.value.code == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {name: "".join(rest) for name, *rest in rows}
    assert set(shown) == set(FAMILIES)
    for name, cls in FAMILIES.items():
        assert all(f"{one.name}=" in shown[name] for one in fields(cls)), name
    assert "best_layers=" in shown["ridge"]
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "--families" in capsys.readouterr().out
