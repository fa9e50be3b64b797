"""Figures computed from the projector bench's rows: means over seeds, controls, targets, shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from projector.bundle.certificate import grade, tier
from projector.validation.answers import PRECISIONS
from projector.validation.literature import COVERAGE

_MEANS = (
    *("accuracy", "accuracy_shifted", "agreement", "cosine", "mse", "rel_l2", "r2_k", "r2_v"),
    *("bound_violations", "bound_over_actual", "estimate_over_actual", "retention", "fit_seconds"),
)
_TASK = " + task loss"
BUNDLED = "bundle's map"
"""The map that a recipe trains: the shipped seed, and other seeds if they were trained."""
RANKS = (8, 16, 32, 64, 128)
LEAST_ABOVE = 0.02
"""Least lead of seeing the picture over no picture; below it a share of the lead means nothing."""

Report = dict[str, Any]
Rows = list[dict[str, Any]]


def summarise(report: Report) -> None:
    """Add the computed figures: retention and tiers, means over seeds, controls, targets."""
    by_edge = report["controls_by_edge"]
    report["cloud_image"], report["cloud_image_shifted"] = (
        float(np.mean([found[part]["cloud_image"] for found in by_edge.values()]))
        for part in ("test", "shifted")
    )
    names = ("blind", "other_picture", "mean_state", "untrained_map", "untrained_edge")
    report["controls"] = {
        name: float(np.mean([found["test"][name] for found in by_edge.values()])) for name in names
    }
    for row in report["rows"]:
        found = by_edge[row["edge_model"]]["test"]
        above = found["cloud_image"] - found["blind"]
        kept = (row["accuracy"] - found["blind"]) / above if above > LEAST_ABOVE else None
        row["retention"], row["tier"] = kept, tier(kept)
        row["grade"] = grade(row["cosine"], row["mse"])
    report["means"] = means(report["rows"])
    report["targets"] = targets(report)


def means(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """One row per edge model, family and rank, averaged over its seeds."""
    groups: dict[tuple[str, str, int], Rows] = {}
    for row in rows:
        groups.setdefault((row["edge_model"], row["family"], row["rank"]), []).append(dict(row))
    found = []
    for group in groups.values():
        averaged = {
            name: None if group[0][name] is None else float(np.mean([r[name] for r in group]))
            for name in _MEANS
        }
        same = {
            name: group[0][name] for name in ("edge_model", "family", "rank", "params", "grade")
        }
        found.append({**same, **averaged, "tier": tier(averaged["retention"]), "seeds": len(group)})
    return found


def targets(report: Report) -> Rows:
    """Every target of the bench with what was measured and whether it is met."""
    found: Rows = []

    told = all(
        of["test"]["cloud_image"] - of["test"]["blind"] > LEAST_ABOVE
        for of in report["controls_by_edge"].values()
    )

    def add(name: str, measured: str, met: bool) -> None:
        said = measured if told else f"{measured}; cannot be judged: blind answers as many"
        found.append({"target": name, "measured": said, "met": bool(met) and told})

    for edge, differences in report["differences"].items():
        rows = [r for r in report["means"] if r["edge_model"] == edge]
        image = report["controls_by_edge"][edge]["test"]["cloud_image"]
        best = max(rows, key=lambda r: float(r["accuracy"]))
        gap = differences["best_minus_cloud_image"]
        limit = 0.01 if edge == next(iter(report["differences"])) else 0.02
        name = f"{best['family']} r={best['rank']}, {_counted(best['seeds'])}"
        what = f"{edge}: best map within {100 * limit:.0f} of the cloud seeing the picture"
        add(what, f"{name}: {points(gap)}", gap["mean"] >= -limit)
        straight = [r for r in rows if _is_closed(r)]
        first = max(straight, key=lambda r: float(r["accuracy"]))
        add(
            f"{edge}: closed form alone within 3",
            f"{first['family']} r={first['rank']}, {_counted(first['seeds'])}: "
            f"{100 * (first['accuracy'] - image):+.1f}",
            first["accuracy"] >= image - 0.03,
        )
        full = next(r for r in rows if r["family"] == "ridge")
        low = next(r for r in rows if (r["family"], r["rank"]) == ("low_rank", 64))
        apart = differences["low_rank_minus_ridge"]
        add(
            f"{edge}: low_rank r=64 within 0.5 of the full map at 1/6 of its parameters",
            f"{points(apart)}, 1/{full['params'] / low['params']:.1f}",
            apart["mean"] >= -0.005 and 6 * low["params"] <= full["params"],
        )
        near = [r for r in rows if r["accuracy"] >= image - 0.02]
        smallest = min(near, key=lambda r: int(r["rank"])) if near else None
        add(
            f"{edge}: smallest rank within 2 of the cloud seeing the picture",
            f"{smallest['rank']} ({smallest['family']})" if smallest else "none",
            smallest is not None,
        )
        if "mix_minus_interpolation" in differences:
            gain = differences["mix_minus_interpolation"]
            add(
                f"{edge}: mix beats interpolation across grids by 1",
                points(gain),
                gain["mean"] >= 0.01,
            )
    bounded = [r for r in report["means"] if r["bound_violations"] is not None]
    if bounded:
        worst = max(bounded, key=lambda r: float(r["bound_violations"]))
        within = 1 - float(worst["bound_violations"])
        add(
            f"coverage of the 99 % bound on test at least {COVERAGE:.1%}, every map that has one",
            f"least {within:.1%} ({worst['edge_model']}, {worst['family']})",
            within >= COVERAGE,
        )
    ratio = report["ridge_over_gemm"]["ratio"]
    add("ridge on 100,000 pairs in at most 3 GEMMs", f"{ratio:.2f}", ratio <= 3)
    speedup = report["ort_over_eager"][0]["speedup"]
    add("default bundle in ONNX Runtime 1.5 times eager, batch 1", f"{speedup:.2f}", speedup >= 1.5)
    for name, flips in report["bit_flips"].items():
        what = f"no flipped bit of a {name} accepted"
        add(what, f"{flips['accepted']} of {flips['tried']:,}", not flips["accepted"])
    rate = report["verify_mb_s"]
    add("packages verified at 500 MB/s", f"{rate:.0f}", rate >= 500)
    return found


def _is_closed(row: Mapping[str, Any]) -> bool:
    name = row["family"]
    return not (name.endswith((_TASK, *PRECISIONS)) or name in ("linear", "mlp", BUNDLED))


def _counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"mean of {seeds} seeds"


def points(estimate: Mapping[str, float]) -> str:
    """A difference of accuracies with its 95 % interval, in points."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(
        *(100 * estimate[key] for key in ("mean", "low", "high"))
    )


def hardiest(report: Report, least: float = 0.3) -> Rows:
    """Maps by the share of their lead over `blind` that they keep on the shifted split.

    The lead is relative to that of the cloud seeing the pictures.

    Returns:
        `family`, `test` and `shifted` (retention, means over the edge models) and `by_edge` (both
        for each edge model), the largest share first.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in report["means"]:
        by = report["controls_by_edge"][row["edge_model"]]
        spans = {part: by[part]["cloud_image"] - by[part]["blind"] for part in ("test", "shifted")}
        test, shifted = (
            (row[key] - by[part]["blind"]) / spans[part] if spans[part] > 0 else 0.0
            for part, key in (("test", "accuracy"), ("shifted", "accuracy_shifted"))
        )
        if row["family"].endswith(tuple(PRECISIONS)):
            continue
        name = row["family"] + ("" if is_full(row) else f" r={row['rank']}")
        found.setdefault(name, {})[row["edge_model"]] = (test, shifted)
    rows: Rows = []
    for name, by_edge in found.items():
        test, shifted = np.mean(list(by_edge.values()), axis=0).tolist()
        rows.append({"family": name, "test": test, "shifted": shifted, "by_edge": by_edge})
    kept = [r for r in rows if r["test"] > least]
    return sorted(kept, key=lambda r: -float(r["shifted"]) / float(r["test"]))


def is_full(row: Mapping[str, Any]) -> bool:
    """Whether a map has its full rank, not one of `RANKS`."""
    return row["rank"] not in RANKS


def correlation(rows: Rows) -> float | None:
    """Spearman's rank correlation of cosine and retention; None if it is not defined."""
    pairs = np.array([[r["cosine"], r["retention"]] for r in rows if r["retention"] is not None])
    if len(pairs) < 3:
        return None
    ranks = np.argsort(np.argsort(pairs, axis=0), axis=0)
    return float(np.corrcoef(ranks[:, 0], ranks[:, 1]).item(1))
