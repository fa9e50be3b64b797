"""Nothing is said of a map where nothing can be said: no grade at chance, no yes at zero."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.certificate import (
    GOOD,
    UNJUDGED,
    UNKNOWN,
    WORSE,
    Judged,
    grade_of_answers,
    tier,
    verdict_of,
)
from projector.commands import cli
from projector.training.dataset import write_questions
from projector.validation import literature
from protos.errors import UselessMapError
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava
from tests.fakes.toolkit import toolkit

ROOT = Path(__file__).resolve().parents[3]
PICTURES = 64


def arm(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def report(native: float, mapped: float, over: float = 0.3, **more: Any) -> dict[str, Any]:
    """The figures of a report of `validate`; `over` is what the controls have."""
    floors = {name: arm(over) for name in ("blind", "mean_state", "other_picture")}
    accuracy = {"native": arm(native), "mapped": arm(mapped), **floors}
    return {"pictures": 512, "accuracy": accuracy, **more}


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("good", report(0.9, 0.88), GOOD),
    ("all at zero", report(0.0, 0.0, 0.0), UNJUDGED),
    ("all alike", report(0.5, 0.5, 0.5), UNJUDGED),
    ("within chance of blind", report(0.31, 0.9), UNJUDGED),
    ("a map at the floor", report(0.9, 0.31), WORSE),
    ("a map below the floor", report(0.9, 0.1), WORSE),
    ("too few pictures", report(0.9, 0.88) | {"pictures": 9}, UNJUDGED),
    (
        "a good map asked about few pictures",
        {
            "pictures": 12,
            "accuracy": {
                "native": arm(0.9, 0.17),
                "mapped": arm(0.55, 0.28),
                **{n: arm(0.3, 0.13) for n in ("blind", "mean_state", "other_picture")},
            },
        },
        UNJUDGED,
    ),
    (
        "a map of no use asked about few pictures",
        {
            "pictures": 12,
            "accuracy": {
                "native": arm(0.9, 0.17),
                "mapped": arm(0.3, 0.13),
                **{n: arm(0.3, 0.13) for n in ("blind", "mean_state", "other_picture")},
            },
        },
        WORSE,
    ),
    (
        "always yes, to questions that any picture answers half",
        {
            "pictures": 512,
            "accuracy": {
                **{n: arm(0.5) for n in ("native", "mapped", "other_picture")},
                **{n: arm(0.0) for n in ("blind", "mean_state")},
            },
        },
        UNJUDGED,
    ),
    (
        "always yes, to questions that the large model answers",
        {
            "pictures": 512,
            "accuracy": {
                "native": arm(0.9),
                **{n: arm(0.5) for n in ("mapped", "other_picture")},
                **{n: arm(0.0) for n in ("blind", "mean_state")},
            },
        },
        WORSE,
    ),
    (
        "another picture does as well",
        report(0.9, 0.8)
        | {"accuracy": report(0.9, 0.8)["accuracy"] | {"other_picture": arm(0.79)}},
        WORSE,
    ),
    (
        "paired differences decide where they were kept",
        report(0.9, 0.32, differences={"mapped_minus_blind": arm(0.03, 0.01)}),
        WORSE,  # of the other two controls there is none, and their intervals overlap
    ),
    (
        "paired differences of all",
        report(
            0.9,
            0.32,
            differences={
                f"mapped_minus_{name}": arm(0.03, 0.01)
                for name in ("blind", "mean_state", "other_picture")
            },
        ),
        GOOD,
    ),
    ("no figures", {"agreement": 0.5}, UNKNOWN),
    ("figures of another sort", {"accuracy": {"mapped": "much"}, "controls": 3}, UNKNOWN),
    (
        "an older certificate without counts",
        {"accuracy": {"float": 0.9}, "controls": {"cloud_image": 0.95, "blind": 0.3}},
        GOOD,
    ),
    (
        "an older certificate at zero",
        {"accuracy": {"float": 0.0}, "controls": {"cloud_image": 0.0, "blind": 0.0}},
        UNJUDGED,
    ),
    (
        "a calibrated point that lost it all",
        report(0.9, 0.88) | {"accuracy": report(0.9, 0.88)["accuracy"] | {"point": 0.3}},
        WORSE,
    ),
]


@pytest.mark.parametrize(("figures", "state"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_verdict_is_as_good_as_the_figures(figures: dict[str, Any], state: str) -> None:
    verdict = verdict_of(figures, "point")
    assert verdict.state == state
    assert bool(verdict.why) == (state != GOOD)
    judged = Judged.of(figures, "point").to_json()
    if state in (UNJUDGED, UNKNOWN):
        assert (
            judged["retention"] is judged["tier_by_answers"] is judged["grade_by_answers"] is None
        )
    if state == WORSE:
        assert (judged["tier_by_answers"], judged["grade_by_answers"]) == ("none", "F")


def test_nothing_has_no_grade_and_no_tier() -> None:
    assert grade_of_answers(None) is tier(None) is None


@pytest.mark.parametrize("name", ["edge-a-cloud", "edge-b-cloud", "edge-c-cloud"])
def test_the_reference_bundles_beat_their_controls(name: str) -> None:
    folder = ROOT / "reference" / "bundles" / name
    plain = json.loads((folder / "bundle.json").read_text())
    points = {point["index"]: point["name"] for point in plain["operating_points"]}
    certificate = json.loads((folder / "certificate.json").read_text())
    assert verdict_of(certificate, points[plain["default_point"]]).state == GOOD


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A map judged by questions that nobody can answer: every arm is at 0 %."""
    folder = tmp_path_factory.mktemp("honest")
    run = toolkit((tiny_idefics3(folder), tiny_llava(folder, text="llama")))
    data = folder / "data"
    data.mkdir()
    rows: list[dict[str, object]] = []
    for index in range(PICTURES):
        picture(index).save(data / f"{index:03d}.png")
        rows += [
            {
                "picture": f"{index:03d}.png",
                "question": f"what is {k}",
                "answer": f"never {index} so",
                "kind": ("hazard", "counting", "scene")[k % 3],
            }
            for k in range(6)
        ]
    write_questions(data, rows)
    assert run("corpus", data, folder / "corpus") == 0
    assert run("train", data, folder / "corpus", folder / "map", "--family", "ridge") == 0
    return folder, run


@pytest.fixture(scope="module")
def judged(stage: Any) -> dict[str, Any]:
    folder, run = stage
    assert run("validate", folder / "map", folder / "data", folder / "corpus", folder / "r") == 0
    found: dict[str, Any] = json.loads((folder / "r" / "report.json").read_text())
    return found


def test_a_report_of_nothing_says_that_it_cannot_be_judged(
    stage: Any, judged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    assert {a["mean"] for n, a in judged["accuracy"].items() if n != "edge_only"} == {0.0}
    assert judged["verdict"] == UNJUDGED
    for name in ("retention", "tier_by_answers", "grade_by_answers"):
        assert judged[name] is None
    said = {row["claim"]: row["holds"] for row in judged["literature"]["statements"]}
    about_answers = [
        claim for claim in said if re.search(r"loses|gains|FP8 costs|grade by|every task's", claim)
    ]
    assert len(about_answers) == 5
    assert [said[claim] for claim in about_answers] == [None] * 5, "neither yes nor no"
    tasks = {row["task"]: row["measured"] for row in judged["literature"]["tasks"]}
    assert tasks.pop("object tracking (5 classes)") is None, "counting is not tracking"
    assert [measured["within"] for measured in tasks.values()] == [None, None]
    again = folder / "again"
    assert run("validate", folder / "map", folder / "data", folder / "corpus", again) == 0
    shown = capsys.readouterr().out
    page = (again / "report.html").read_text()
    for text in (shown, page):
        assert "CANNOT BE JUDGED: the large model is right in 0.0%" in text
        assert "fire detection" in text, "its questions are those of the literature"
        row = next(line for line in re.split(r"\n|</tr>", text) if "loses two points" in line)
        assert "cannot be judged" in row and "yes" not in row
    assert "tier cannot be judged and grade cannot be judged by answers" in shown


def test_a_map_of_no_use_is_exported_by_force_alone_and_says_so(
    stage: Any, judged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    written = ("export", folder / "map", folder / "data", folder / "corpus", folder / "bundle")
    given = (*written, "--report", folder / "r" / "report.json")
    capsys.readouterr()
    assert run(*given) == UselessMapError.exit_code == 17
    told = capsys.readouterr().err
    assert told.startswith("projector: useless_map: ") and "cannot be judged" in told
    assert "--force" in told and not (folder / "bundle").exists()
    assert run(*given, "--force") == 0
    certificate = json.loads((folder / "bundle" / "certificate.json").read_text())
    assert certificate["forced"]["verdict"] == UNJUDGED and certificate["forced"]["why"]
    capsys.readouterr()
    assert cli.main(["catalogue", str(folder), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["judged"]["verdict"] == UNJUDGED
    assert listed["judged"]["tier_by_answers"] is None
    assert cli.main(["inspect", str(folder / "bundle")]) == 0
    assert "cannot be judged" in capsys.readouterr().out


def test_a_report_of_a_good_map_is_exported_as_before(
    stage: Any, judged: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One from before verdicts were written too: only its intervals are looked at."""
    folder, run = stage
    good = {**judged, "tier_by_answers": "gold", "pictures": 512}
    for name in ("differences", "verdict", "why", "pictures_asked"):
        del good[name]
    for name, found in good["accuracy"].items():
        high = name in ("native", "mapped")
        good["accuracy"][name] = arm(0.9 if high else 0.3) | {k: 0.0 for k in found if k == "x"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(good))
    written = ("export", folder / "map", folder / "data", folder / "corpus", tmp_path / "bundle")
    assert run(*written, "--report", path) == 0
    certificate = json.loads((tmp_path / "bundle" / "certificate.json").read_text())
    assert "forced" not in certificate


def test_statements_hold_again_where_a_map_is_good(judged: dict[str, Any]) -> None:
    good = {
        **judged,
        **{"verdict": GOOD, "grade_by_answers": "A", "grade_by_reconstruction": "A"},
        "accuracy": {name: arm(0.9) for name in judged["accuracy"]} | {"edge_only": arm(0.5)},
    }
    said = {row["claim"]: row["holds"] for row in literature.statements(good)}
    assert said["projecting loses two points on the cloud alone"] is True
    assert said["projecting gains two points on the edge alone"] is True


def test_nothing_good_is_said_of_a_map_that_another_picture_replaces(
    judged: dict[str, Any],
) -> None:
    idle = {
        **judged,
        "verdict": WORSE,
        "accuracy": {name: arm(0.5) for name in judged["accuracy"]} | {"edge_only": arm(0.1)},
    }
    said = {row["claim"]: row["holds"] for row in literature.statements(idle)}
    assert said["projecting loses two points on the cloud alone"] is None
    assert said["projecting gains two points on the edge alone"] is None
    idle["accuracy"] |= {"native": arm(0.9), "edge_only": arm(0.8)}
    said = {row["claim"]: row["holds"] for row in literature.statements(idle)}
    assert said["projecting loses two points on the cloud alone"] is False
    assert said["projecting gains two points on the edge alone"] is False
