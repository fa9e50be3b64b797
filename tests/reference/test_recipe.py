"""A recipe is the product's own commands, each run once; what changed is run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from projector.commands import cli
from projector.maps import family
from projector.maps.mix import Mix
from projector.models.vlm import VLM
from projector.training.dataset import Dataset
from protos.errors import ConfigError, SourceError
from reference.export_yard import export
from reference.recipe import HERE, RECIPES, Recipe, Step, main, run
from reference.yard import ask, list_questions, sample_scenes

EDGES = sorted(path.stem for path in RECIPES.glob("*.toml"))


def test_every_reference_bundle_has_a_recipe() -> None:
    bundles = sorted(path.name for path in (HERE / "bundles").iterdir())
    assert [f"{edge}-cloud" for edge in EDGES] == bundles


@pytest.mark.parametrize("edge", EDGES)
def test_a_recipe_runs_the_products_own_commands_with_flags_that_they_have(
    edge: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = list(Recipe.read(RECIPES / f"{edge}.toml").steps(HERE / "models", tmp_path, tmp_path))
    ours = [step.command[1] for step in steps if step.command[0] == "projector"]
    assert ours == ["corpus", "corpus", "train", "validate", "export", "calibrate", "guard"]
    for step in steps:
        if step.command[0] != "projector":
            continue
        code = cli.main([*step.command[1:]])
        said = capsys.readouterr().err
        assert code not in (0, ConfigError.exit_code), said
        assert code == SourceError.exit_code or "guard" in step.command, said


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
def test_a_recipes_map_can_be_made_between_its_models(edge: str) -> None:
    chosen = Recipe.read(RECIPES / f"{edge}.toml").flags["train"]
    member = family(chosen["family"])(**chosen["set"])
    assert isinstance(member, Mix)
    source, target = (VLM.load(HERE / "models" / name).layout for name in (edge, "cloud"))
    made = member.make(source, target)
    assert (made.rank, made.up_rank) == (32, 128)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pictures = 3", "a count for each of train, validation, guard"),
        ("[pictures]\ntrain = 1", "a count for each of train, validation, guard"),
        (
            "[pictures]\ntrain = 1\nvalidation = 1\nguard = 1\n[trian]",
            "tables are pictures",
        ),
        ("[", "is not TOML"),
        ('[pictures]\ntrain = "many"\nvalidation = 1\nguard = 1', "pictures.train = 'many'"),
        ("[pictures]\ntrain = 1\nvalidation = 0\nguard = 1", "pictures.validation = 0"),
        ("[pictures]\ntrain = 1\nvalidation = 1\nguard = true", "pictures.guard = True"),
    ],
)
def test_what_is_no_recipe_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Recipe.read(path)
    assert main([str(path)]) == ConfigError.exit_code


def step(name: str, folder: Path, statement: str) -> Step:
    """One that runs a Python statement once."""
    return Step(name, ("timeit", "-n", "1", "-r", "1", statement), folder / name)


def writes(folder: Path, name: str, what: str = "1") -> Step:
    return step(name, folder, f"open({str(folder / name)!r}, 'a').write({what!r})")


def test_a_step_that_is_done_is_not_run_again_and_what_follows_a_changed_one_is(
    tmp_path: Path,
) -> None:
    record = tmp_path / "done.json"
    first, last = writes(tmp_path, "first"), writes(tmp_path, "last")
    fails = step("fails", tmp_path, "__import__('os')._exit(7)")
    assert run([first, fails, last], record) == 7
    assert (tmp_path / "first").read_text() == "1" and not (tmp_path / "last").exists()
    assert run([first, last], record) == 0 and run([first, last], record) == 0
    assert (tmp_path / "first").read_text() == (tmp_path / "last").read_text() == "1"
    assert run([writes(tmp_path, "first", "2"), last], record) == 0
    assert [(tmp_path / name).read_text() for name in ("first", "last")] == ["12", "11"]
    (tmp_path / "last").unlink()
    assert run([writes(tmp_path, "first", "2"), last], record) == 0
    assert [(tmp_path / name).read_text() for name in ("first", "last")] == ["12", "1"]
    assert list(json.loads(record.read_text())) == ["first", "last"]


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff\xfe{\0}\0"])
def test_a_damaged_record_says_so_and_runs_nothing(tmp_path: Path, damage: bytes) -> None:
    record = tmp_path / "done.json"
    record.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"done\.json.*"):
        run([writes(tmp_path, "first")], record)
    assert not (tmp_path / "first").exists() and record.read_bytes() == damage


def test_an_exported_split_asks_everything_and_draws_as_the_yard_draws(tmp_path: Path) -> None:
    export(tmp_path, "train", 0, 3, 0)
    scenes, data = sample_scenes("train", 0, 3), Dataset(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in data.files}
    for place in range(3):
        asked: list[Any] = list(data.asked(place))
        listed = list_questions(scenes, place)
        assert {one.text for one in asked} == {q.text for q in listed}
        assert [one.text for one in asked[:6]] == [q.text for q in ask(scenes, place, 6, 0)]
        groups = {one.group for one in asked}
        assert len(groups) == len({(q.subkind, q.answer) for q in listed})
        drawn = data.questions(place, len(groups), 1)
        of = {one.text: one.group for one in asked}
        assert {of[text] for text, _ in drawn} == groups, "one of every group before a second"
    export(tmp_path, "train", 0, 3, 0)
    assert before == {path: path.stat().st_mtime_ns for path in data.files}
