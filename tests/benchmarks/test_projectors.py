"""The projector bench goes on where it stopped, and its page says what the rows say."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import docs
from benchmarks.projectors import __main__ as projectors
from benchmarks.projectors import arms, figures, page
from benchmarks.projectors.journal import Journal
from benchmarks.projectors.members import CLOSED, DEFAULT, label
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from reference.report.parts import markdown, show


def row(edge: str, family: str, rank: int, seed: int, accuracy: float, **over: Any) -> Any:
    fields = {
        "edge_model": edge,
        "family": family,
        "rank": rank,
        "seed": seed,
        "params": 600 if rank > 64 else 90,
        "accuracy": accuracy,
        "accuracy_shifted": accuracy - 0.1,
        "agreement": accuracy,
        "cosine": 0.9,
        "mse": 0.2,
        "rel_l2": 0.4,
        "r2_k": 0.8,
        "r2_v": 0.7,
        "bound_violations": 0.0,
        "bound_over_actual": 4.0,
        "estimate_over_actual": 1.1,
        "fit_seconds": 1.0,
    }
    return {**fields, **over}


def report() -> dict[str, Any]:
    arms = {
        **{"cloud_image": 0.93, "blind": 0.33, "other_picture": 0.34, "mean_state": 0.33},
        **{"untrained_map": 0.31, "untrained_edge": 0.36, "other_picture_labels": 0.35},
    }
    gap = {"mean": -0.005, "low": -0.01, "high": 0.0}
    none = {"bound_over_actual": None, "estimate_over_actual": None, "bound_violations": None}
    found: dict[str, Any] = {
        "command": "python -m benchmarks.projectors --seeds 2",
        "pictures": {"test": 64, "shifted": 64, "train": 128},
        "questions_per_picture": 6,
        "minutes": 3.0,
        "controls_by_edge": {"edge-a": {"test": arms, "shifted": {**arms, "cloud_image": 0.83}}},
        "differences": {
            "edge-a": {
                "best_minus_cloud_image": gap,
                "ridge_minus_cloud_image": gap,
                "low_rank_minus_ridge": {"mean": -0.02, "low": -0.03, "high": 0.0},
                "mix_minus_interpolation": {"mean": 0.02, "low": 0.01, "high": 0.03},
            }
        },
        "ridge_over_gemm": {"ratio": 1.5},
        "ort_over_eager": [
            {
                "family": "bundle",
                "batch": 1,
                "eager_ms": 3.0,
                "onnxruntime_ms": 1.5,
                "gemm_ms": 0.5,
                "speedup": 2.0,
                "over_gemm": 3.0,
            }
        ],
        "bit_flips": {
            "bundle": {"tried": 9, "accepted": 0},
            "package": {"tried": 9, "accepted": 1},
        },
        "verify_mb_s": 400.0,
        "rows": [
            row("edge-a", "ridge", 512, 0, 0.90),
            row("edge-a", "ridge", 512, 1, 0.92),
            row("edge-a", "low_rank", 8, 0, 0.6),
            row("edge-a", "low_rank float16", 64, 0, 0.93, bound_violations=0.03),
            row("edge-a", "low_rank", 64, 0, 0.89),
            row("edge-a", "low_rank + task loss", 64, 0, 0.915),
            row("edge-a", "mix + task loss", 64, 0, 0.925, **none),
        ],
    }
    return found


def met(found: dict[str, Any], start: str) -> bool:
    return next(bool(t["met"]) for t in found["targets"] if t["target"].startswith(start))


def test_means_retention_and_targets_follow_from_the_rows() -> None:
    found = report()
    figures.summarise(found)
    ridge = next(r for r in found["means"] if r["family"] == "ridge")
    assert ridge["accuracy"] == pytest.approx(0.91) and ridge["seeds"] == 2
    assert ridge["retention"] == pytest.approx((0.91 - 0.33) / 0.6)
    assert ridge["tier"] == "gold"
    assert found["cloud_image"] == 0.93 and found["controls"]["blind"] == 0.33
    assert met(found, "edge-a: best map") and met(found, "edge-a: closed form")
    closed = next(t for t in found["targets"] if "closed form" in t["target"])
    assert closed["measured"].startswith("ridge r=512, mean of 2 seeds"), "no precision of another"
    best = next(t for t in found["targets"] if "best map" in t["target"])
    assert "1 seed" in best["measured"], "a figure of one seed is not taken for a mean"
    assert not met(found, "coverage of the 99 % bound")  # one map at 97 %
    assert not met(found, "edge-a: low_rank r=64")  # two points short of the full map
    assert met(found, "edge-a: mix beats")
    assert not met(found, "no flipped bit of a package") and met(
        found, "no flipped bit of a bundle"
    )
    assert not met(found, "packages verified")
    smallest = next(t for t in found["targets"] if "smallest rank" in t["target"])
    assert smallest["measured"].startswith("64")


@pytest.mark.slow
def test_the_page_and_the_docs_table_hold_every_map_and_control(tmp_path: Path) -> None:
    found = report()
    figures.summarise(found)
    html, table = page.page(found), markdown(page.tables(found))
    assert html.count("<svg") == 4
    for text in (html, table):
        for name in ("ridge", "low_rank", "mix + task loss", "untrained edge", "other picture"):
            assert name in text
    assert "| `ridge` | all | 91.0 / 81.0 | 2 |" in table
    assert "| `low_rank` | 8 | 60.0 / 50.0 | 1 |" in table
    console = Console(width=200, record=True)
    show(page.parts(found), console)
    assert "mix + task loss" in console.export_text()
    document = f"before\n{docs.begin(page.NAME)}\nstale figures\n{docs.END}\nafter"
    placed = docs.placed(document, page.NAME, table)
    assert placed.startswith("before") and placed.endswith("after") and "stale" not in placed
    with pytest.raises(ValueError, match="lacks the lines"):
        docs.placed("no markers", page.NAME, table)


def test_what_holds_up_under_shift_is_told_by_the_share_of_its_lead_that_is_left() -> None:
    found = report()
    other = {part: dict(arms) for part, arms in found["controls_by_edge"]["edge-a"].items()}
    found["controls_by_edge"]["edge-b"] = other
    found["rows"] = [
        row("edge-a", "ridge", 512, 0, 0.93, accuracy_shifted=0.58),  # all, then half, of the lead
        row("edge-b", "ridge", 384, 0, 0.93, accuracy_shifted=0.83),  # all of it, on both
        row("edge-a", "low_rank", 64, 0, 0.63, accuracy_shifted=0.58),  # half of it, on both
        row("edge-a", "zero_pad", 512, 0, 0.33, accuracy_shifted=0.33),  # has nothing to lose
    ]
    found["means"] = figures.means([{**r, "retention": 0.5, "grade": "F"} for r in found["rows"]])
    first, second = figures.hardiest(found)
    assert first["family"] == "low_rank r=64" and second["family"] == "ridge"
    assert second["by_edge"]["edge-a"] == pytest.approx((1.0, 0.5))
    assert (second["test"], second["shifted"]) == pytest.approx((1.0, 0.75))


def test_reconstruction_that_does_not_predict_answers_shows_in_the_correlation() -> None:
    rows = [{"cosine": c, "retention": r} for c, r in ((0.1, 0.2), (0.5, 0.6), (0.9, 0.7))]
    assert figures.correlation(rows) == pytest.approx(1.0)
    rows = [{"cosine": c, "retention": r} for c, r in ((0.1, 0.7), (0.5, 0.6), (0.9, 0.2))]
    assert figures.correlation(rows) == pytest.approx(-1.0)


def test_an_interrupted_bench_measures_nothing_twice_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    calls: list[str] = []

    def make(name: str) -> Any:
        calls.append(name)
        return {"accuracy": 0.5, "name": name}

    first = Journal(path, fresh=False)
    first.get(["row", "a", 0], lambda: make("a"))
    first.get(["row", "b", 0], lambda: make("b"))
    path.write_bytes(path.read_bytes()[:-9])  # killed while writing the second
    again = Journal(path, fresh=False)
    assert again.get(["row", "a", 0], lambda: make("a"))["name"] == "a"
    assert again.get(["row", "b", 0], lambda: make("b"))["name"] == "b"
    assert again.get(["row", "b", 1], lambda: make("c"))["name"] == "c"  # another seed
    assert calls == ["a", "b", "b", "c"]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3
    Journal(path, fresh=True).get(["row", "a", 0], lambda: make("a"))
    assert calls[-1] == "a"


def test_members_of_one_bench_have_names_that_tell_them_apart() -> None:
    names = [(label(m), m.r if isinstance(m, LowRank) else None) for m in CLOSED]
    assert len(set(names)) == len(names)
    assert label(DEFAULT) == "low_rank"
    assert label(Mix(inner="low_rank", config={"r": 64}, width=256, depth=2)) == "mix"


def test_a_map_is_made_once_and_its_row_has_its_own_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(*_: Any, **__: Any) -> tuple[int, float]:
        made.append(len(made))
        return made[-1], 1.0

    monkeypatch.setattr(projectors, "controls", lambda _: {part: {} for part in projectors.SPLITS})
    monkeypatch.setattr(projectors, "alone", lambda _: dict.fromkeys(projectors.SPLITS, 0.5))
    monkeypatch.setattr(projectors, "closed", make)
    monkeypatch.setattr(projectors, "trained", make)
    monkeypatch.setattr(projectors, "row", lambda _, one, *more: {"map": one})
    monkeypatch.setattr(projectors, "bounds", lambda _, one: {"bound_violations": one})
    monkeypatch.setattr(projectors, "shipped", lambda _: {"map": "shipped"})
    monkeypatch.setattr(
        projectors, "trained_apart", lambda *_: [("a digest", lambda: {"map": "another seed"})]
    )
    edge: Any = SimpleNamespace(name="edge-a", about=["a pair"])
    asked = Namespace(reconstruct_steps=1, task_steps=1, seeds=2)
    path = tmp_path / "journal.jsonl"
    for _ in range(2):  # the second time all of it is kept
        found, rows = projectors.measure_edge(edge, projectors.Journal(path, False), asked)
        assert [one["map"] for one in rows] == [*made, "shipped", "another seed"]
        assert all(one["bound_violations"] == one["map"] for one in rows[:-2])
        assert rows[-2] == {"map": "shipped"} | projectors.NO_BOUND
        assert len(made) == len(rows) - 2
        assert found["test"]["edge_only"] == 0.5


def test_maps_of_other_seeds_are_found_and_those_of_other_models_or_the_bundles_own_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vlm(fingerprint: str) -> Any:
        return SimpleNamespace(layout=SimpleNamespace(fingerprint=fingerprint))

    abouts = {"again": ("s", "t", 1), "own": ("s", "t", 0), "other": ("s", "u", 2)}
    for tag, (source, target, seed) in abouts.items():
        folder = tmp_path / f"edge-a-{tag}" / "map"
        folder.mkdir(parents=True)
        about = {"source": source, "target": target, "settings": {"seed": seed}, "minutes": 2.0}
        (folder / arms.DESCRIPTION).write_text(json.dumps(about))
        (folder / arms.MAP_FILE).write_text(tag)

    def read(blob: bytes, *_: Any) -> Any:
        return SimpleNamespace(eval=blob.decode)

    monkeypatch.setattr(arms.maps, "load", read)
    monkeypatch.setattr(arms, "row", lambda _, *what: what)
    edge: Any = SimpleNamespace(
        name="edge-a", source=vlm("s"), target=vlm("t"), args=Namespace(trainings=tmp_path)
    )
    ((digest, make),) = arms.trained_apart(edge, seed=0)
    assert len(digest) == 64 and make() == ("again", figures.BUNDLED, 1, 120.0)
