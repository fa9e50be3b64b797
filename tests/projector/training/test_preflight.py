"""What a long command lacks is said before its first step: no model is loaded for nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.commands import cli
from projector.heads.labels import write_labels
from projector.models import vlm
from projector.training import preflight
from projector.training.dataset import Dataset, open_folder
from protos.errors import DiskFullError, SourceError
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava
from tests.fakes.toolkit import code_of, pictures_with_questions, toolkit


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A folder with everything in its place, and the commands."""
    folder = tmp_path_factory.mktemp("preflight")
    run = toolkit((tiny_idefics3(folder), tiny_llava(folder, text="llama")))
    data = folder / "data"
    data.mkdir()
    names = pictures_with_questions(data, 16)
    write_labels(
        data, [{"task": "light", "picture": n, "label": "ab"[i % 2]} for i, n in enumerate(names)]
    )
    assert run("corpus", data, folder / "corpus") == 0
    silent = folder / "silent"
    silent.mkdir()
    for name in names:
        shutil.copy(data / name, silent / name)
    some = folder / "some"
    shutil.copytree(silent, some)
    lines = (data / "questions.jsonl").read_text().splitlines(True)
    (some / "questions.jsonl").write_text("".join(line for line in lines if "003.png" not in line))
    assert run("train", data, folder / "corpus", folder / "map", "--family", "ridge") == 0
    (folder / "file").write_text("in the way")
    return folder, run


CASES: list[tuple[str, str, str]] = [
    # What is typed, the error's name, what it says. {F} is the stage's folder.
    ("train {F}/silent {F}/corpus {F}/new --task-steps 9 --batch 4", "config", "no {F}/silent/q"),
    ("train {F}/some {F}/corpus {F}/new --task-steps 9 --batch 4", "config", "such as 003.png"),
    ("train {F}/data {F}/none {F}/new", "corpus", "{F}/none holds no shard"),
    ("train {F}/data {F}/corpus {F}/file", "config", "{F}/file is not a folder"),
    ("train {F}/data {F}/corpus {F}/file/new", "config", "{F}/file is not a folder"),
    ("train {F}/data {F}/corpus {F}/new --held-out 0.99", "corpus", "none to train on"),
    ("train {F}/data {F}/corpus {F}/new --patience 2", "config", "there are none: give"),
    ("train {F}/none {F}/corpus {F}/new", "source", "{F}/none is not a folder"),
    ("corpus {F}/data {F}/file", "config", "{F}/file is not a folder"),
    ("validate {F}/none {F}/data {F}/corpus {F}/new", "fit", "no map at {F}/none"),
    ("validate {F}/map {F}/data {F}/none {F}/new", "corpus", "{F}/none holds no shard"),
    ("validate {F}/map {F}/data {F}/corpus {F}/new", "fit", "96 held-out questions"),
    ("validate {F}/map {F}/data {F}/corpus {F}/file", "config", "{F}/file is not a folder"),
    ("export {F}/none {F}/data {F}/corpus {F}/new --report {F}/file", "fit", "no map"),
    ("export {F}/map {F}/data {F}/corpus {F}/new --report {F}/file", "config", "is no report"),
    ("export {F}/map {F}/data {F}/corpus {F}/file --report {F}/r", "config", "not a folder"),
    ("calibrate {F}/none {F}/data {F}/corpus {F}/data {F}/corpus {F}/new", "bundle_missing", ""),
    ("guard {F}/none {F}/data {F}/new", "fit", "96 held-out questions"),
    ("head train {F}/map {F}/data {F}/corpus {F}/new --task lihgt", "source", "mean 'light'"),
    ("head train {F}/map {F}/data {F}/none {F}/new --task light", "corpus", "no shard"),
    ("head train {F}/map {F}/data {F}/corpus {F}/file --task light", "config", "not a folder"),
    ("head test {F}/map {F}/data {F}/corpus {F}/none", "fit", "no head at"),
]


@pytest.mark.parametrize(("typed", "name", "said"), CASES, ids=[case[0] for case in CASES])
def test_what_a_command_lacks_is_named_before_a_model_is_loaded(
    stage: Any,
    typed: str,
    name: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, run = stage

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded although something lacks")

    monkeypatch.setattr(vlm.VLM, "load", load)
    assert run(*typed.replace("{F}", str(folder)).split()) == code_of(name)
    told = capsys.readouterr().err
    assert said.replace("{F}", str(folder)) in told and len(told.splitlines()) == 1, told
    assert not (folder / "new").exists(), "and nothing is written"


def test_a_model_that_is_none_is_named_before_the_other_is_loaded(
    stage: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = stage
    monkeypatch.setattr(vlm.VLM, "load", lambda *_a, **_k: pytest.fail("loaded"))
    pair = ["--source", str(next(folder.glob("*idefics3*"))), "--target", str(folder / "data")]
    code = cli.main(["corpus", str(folder / "data"), str(folder / "new"), *pair])
    assert code == code_of("model")
    assert f"--target {folder / 'data'} holds no config.json" in capsys.readouterr().err


def test_a_disk_without_room_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight.room(tmp_path / "a" / "b", 1, "a corpus")
    with pytest.raises(DiskFullError, match="a corpus takes .* GB in .* free"):
        preflight.room(tmp_path / "a" / "b", 1 << 60, "a corpus")


@pytest.mark.timeout(30)
def test_what_a_data_set_passes_over_is_said_once_and_a_pipe_holds_up_nothing(
    stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = stage
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    os.mkfifo(tmp_path / "3.png")
    (tmp_path / "4.png").mkdir()
    (tmp_path / "5.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / ".6.png").write_bytes(b"hidden")
    assert [path.name for path in Dataset(tmp_path).files] == ["0.png", "1.png", "2.png"]
    capsys.readouterr()
    assert run("corpus", tmp_path, tmp_path / "corpus") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert len(told) == 1
    for said in ("3 pictures", "1 hidden", "1 broken link", "1 of another suffix"):
        assert said in told[0], told
    assert "1 pipe or device" in told[0] and "1 subfolder" in told[0]
    os.mkfifo(tmp_path / "questions.jsonl")
    with pytest.raises(SourceError, match="questions.jsonl cannot be read: it is not a regular"):
        open_folder(tmp_path)
