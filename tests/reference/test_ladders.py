"""The committed bundles: what calibration left in them, and what a sweep's certificate says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projector.bundle.load import Bundle
from projector.calibration.ladder import Sweep, grid, hull
from projector.commands.calibrate import lists
from reference.recipe import HERE, RECIPES, Recipe

BUNDLES = sorted((HERE / "bundles").iterdir())


@pytest.mark.parametrize("folder", BUNDLES, ids=[folder.name for folder in BUNDLES])
def test_every_point_that_sends_something_is_measured_and_none_is_beaten_by_others(
    folder: Path,
) -> None:
    info = Bundle.peek(folder)
    bundle = Bundle.load(folder, info.source, info.target)
    measured = {p.name: p.measured for p in bundle.encoder.points if p.kind != "picture"}
    certificate = json.loads((folder / "certificate.json").read_text())
    for name, found in measured.items():
        assert found is not None, name
        assert certificate["accuracy"][name] == found.accuracy
        assert certificate["payload_bytes"][name] == found.payload_bytes
    coded = [p.measured for p in bundle.encoder.points if p.quantizer == "uniform" and p.measured]
    sizes, rights = ([getattr(m, k) for m in coded] for k in ("payload_bytes", "accuracy"))
    assert hull(sizes, rights) == list(range(len(coded)))
    tried = certificate["calibration"]["tried"].values()
    assert all(any(m.accuracy >= t["accuracy"] for m in coded) for t in tried)
    default = bundle.encoder.point(info.default_point).measured
    assert default is not None and info.ladder[0] == bundle.encoder.points[0].index
    cheaper = [m for m in coded if m.payload_bytes < default.payload_bytes]
    enough = certificate["calibration"]["native"] - 0.016
    assert all(m.accuracy < enough for m in cheaper)
    assert default.accuracy >= enough or default.accuracy == max(rights)


@pytest.mark.parametrize("folder", BUNDLES, ids=[folder.name for folder in BUNDLES])
def test_the_guard_of_every_committed_bundle_has_something_to_go_by(folder: Path) -> None:
    info = Bundle.peek(folder)
    risk = Bundle.load(folder, info.source, info.target).encoder.risk
    assert risk is not None and 0 < risk.limit < 1 and risk.weights.any()


@pytest.mark.parametrize("edge, tokens", [("edge-a", 36), ("edge-b", 64), ("edge-c", 36)])
def test_a_recipe_sweeps_bits_quiet_tokens_ranks_and_token_budgets(edge: str, tokens: int) -> None:
    given = Recipe.read(RECIPES / f"{edge}.toml").flags["calibrate"]["sweep"]
    sweeps: list[Sweep] = [Sweep(**lists(text)) for text in given]  # type: ignore[arg-type]
    plans = {plan[0].name: plan for sweep in sweeps for plan in grid(sweep, 32)}
    points = [point for point, _ in plans.values()]
    assert {factor for _, factor in plans.values()} == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    assert {p.tokens for p in points} == {0, tokens // 3, tokens // 2}
    assert {p.rank for p in points} == {24, 32} and {0.0, 4.0, 6.0, 8.0} == {
        p.quiet for p in points
    }
