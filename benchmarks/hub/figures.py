"""Figures of the hub bench, computed from its arms: one for each row of the table of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.hub.arms import COUNTS, EDGES, OTHER_GRID, SAME_GRID
from benchmarks.hub.yard import FOUNDER, QUESTIONS
from projector.validation.estimate import paired

NEAR = 0.02
"""A joined half does as well as a bundle of its own if it loses at most this share of answers."""
MOST_BYTES, SHIFT_BYTES = 100.0, 64.0
FLOOR = 0.42
Found = Mapping[tuple[Any, ...], Any]
"""Measured arms by their key."""
Row = dict[str, Any]


def lead(right: Sequence[int], other: Sequence[int]) -> dict[str, float]:
    """Accuracy of one arm minus another's on the same questions, clustered by picture."""
    pictures = np.repeat(np.arange(len(right) // QUESTIONS), QUESTIONS).tolist()
    return paired([bool(r) for r in right], [bool(r) for r in other], pictures).to_json()


def share(right: Sequence[int]) -> float:
    """Share of right answers."""
    return float(np.mean(right))


def within_bytes(points: Sequence[Row], most: float) -> Row | None:
    """The most accurate point of at most so many bytes."""
    cheap = [p for p in points if p["bytes"] <= most]
    return max(cheap, key=lambda p: share(p["right"])) if cheap else None


def figures(found: Found) -> list[Row]:
    """`name, value, unit, target, met` for each row; a row that was not measured has no value."""
    rows: list[Row] = []

    def add(name: str, value: Any, unit: str, target: str, met: bool, note: str = "") -> None:
        row = {"name": name, "value": value, "unit": unit, "target": target, "met": bool(met)}
        rows.append(row | ({"note": note} if note else {}))

    _same_grid(found, add)
    _other_grid(found, add)
    _time(found, add)
    _service(found, add)
    missing = "not measured yet: no hub was trained jointly over several edge models"
    add("joint hub against three own bundles, worst edge", None, "points", "≥ -1", False, missing)
    _shift(found, add)
    missing = "not measured yet: there is no second large model"
    add("large model replaced, old edge halves", None, "points", "≥ -3", False, missing)
    controls = {k[1]: share(v) for k, v in _keyed(found, "control").items()}
    if controls:
        worst = max(controls, key=lambda name: controls[name])
        add(f"controls, the best ({worst})", controls[worst], "share", f"≤ {FLOOR}",
            controls[worst] <= FLOOR)  # fmt: skip
    missing = "not measured yet: the family `subspace` is not there"
    add("`subspace` against its best simple opponent", None, "points", "≥ +1", False, missing)
    missing = "not measured yet: packages are not exchanged by the service"
    add("package: bit flips accepted", None, "flips", "0 of ≥ 10,000", False, missing)
    return rows


def _keyed(found: Found, *start: Any) -> dict[tuple[Any, ...], Any]:
    return {key: v for key, v in found.items() if tuple(key[: len(start)]) == start}


def _one(found: Found, *start: Any) -> Any:
    """The only arm whose key begins so; None if it was not measured."""
    these = list(_keyed(found, *start).values())
    return these[0] if len(these) == 1 else None


def _same_grid(found: Found, add: Any) -> None:
    own = _one(found, "own", SAME_GRID, "test")
    for targets in ("founder", "reading"):
        leads = {
            n: lead(right, own)
            for n in COUNTS
            if own and (right := _one(found, "joined", SAME_GRID, targets, n, "test"))
        }
        if leads:
            near = [n for n, one in leads.items() if one["mean"] >= -NEAR]
            said = {"founder": "another edge's latents", "reading": "the large model's cache"}
            add(
                f"{SAME_GRID} joins by {said[targets]}: pictures to be within 2 points of its own "
                "bundle, unrounded",
                min(near) if near else None,
                "pictures",
                "≤ 16",
                bool(near) and min(near) <= 16,
                "; ".join(f"{n}: {100 * o['mean']:+.1f}" for n, o in leads.items()),
            )
    best = _one(found, "own points", SAME_GRID, "test")
    if best is None:
        return
    near, told = [], []
    for n in (16, 64, 256):
        points = _one(found, "joined points", SAME_GRID, "founder", n, "test")
        if points is None:
            continue
        default = _default(best)
        mine = within_bytes(points, default["bytes"])
        if mine is None:
            continue
        apart = lead(mine["right"], default["right"])
        told.append(f"{n}: {100 * apart['mean']:+.1f} at {mine['bytes']:.0f} bytes")
        if apart["mean"] >= -NEAR:
            near.append(n)
    add(
        f"{SAME_GRID}: pictures to be within 2 points at the bytes of its own bundle's default",
        min(near) if near else None,
        "pictures",
        "≤ 64",
        bool(near) and min(near) <= 64,
        f"own: {_default(best)['bytes']:.0f} bytes; " + "; ".join(told),
    )


def _default(points: Sequence[Row]) -> Row:
    """The point that the shipped bundle begins with."""
    return next(p for p in points if p.get("default"))


def _other_grid(found: Found, add: Any) -> None:
    own, tuned = _one(found, "own", OTHER_GRID, "test"), _one(found, "tuned", OTHER_GRID)
    if not own or tuned is None:
        return
    cheap = within_bytes(tuned["points"], MOST_BYTES)
    unrounded = lead(tuned["right"], own)
    if cheap is None:
        return
    apart = lead(cheap["right"], own)
    add(
        f"{OTHER_GRID} (another grid), 256 pictures, tuned: against its own bundle unrounded, at "
        f"≤ {MOST_BYTES:.0f} bytes",
        round(100 * apart["mean"], 2),
        "points",
        "≥ -2",
        apart["mean"] >= -NEAR,
        f"{cheap['bytes']:.0f} bytes; unrounded {100 * unrounded['mean']:+.1f}",
    )


def _time(found: Found, add: Any) -> None:
    closed, tuned = _one(found, "seconds", "closed"), _one(found, "tuned", OTHER_GRID)
    if closed:
        middle = float(np.median(closed))
        add("joining in closed form, 64 pictures that are there", round(middle, 2), "s", "≤ 5",
            middle <= 5)  # fmt: skip
    if tuned:
        took = tuned["seconds"]
        add("joining with tuning, 256 pictures that are there", round(took, 1), "s", "≤ 300",
            took <= 300)  # fmt: skip


def _service(found: Found, add: Any) -> None:
    told = _one(found, "service")
    if told is None:
        return
    one, ten = told["1"], told[str(EDGES)]
    for what, unit in (("bytes", "memory"), ("seconds", "start")):
        ratio = ten[what] / one[what]
        add(f"engine's {unit}, {EDGES} edge models of a hub against one", round(ratio, 3), "×",
            "≤ 1.1", ratio <= 1.1)  # fmt: skip


def _shift(found: Found, add: Any) -> None:
    floors = _one(found, "floors", "shifted")
    if floors is None:
        return
    lost = {}
    for name in (FOUNDER, SAME_GRID, OTHER_GRID):
        points = _one(found, "own points", name, "shifted")
        if points:
            lost[name] = (lead(points[0]["right"], floors["native"])["mean"], points[0]["bytes"])
    if lost:
        worst = min(lost, key=lambda name: lost[name][0])
        drop, size = lost[worst]
        add(
            f"shifted split, unguarded, default points, worst edge ({worst})",
            round(100 * drop, 2),
            "points",
            f"≥ -4 at ≤ {SHIFT_BYTES:.0f} bytes",
            drop >= -0.04 and size <= SHIFT_BYTES,
            "; ".join(f"{n}: {100 * d:+.1f} at {b:.0f} bytes" for n, (d, b) in lost.items()),
        )
