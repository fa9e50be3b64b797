"""The figures of the service, each with its target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAULTS = 2000


def figures(parts: Mapping[str, Any], faults: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The table's rows: `name`, `value`, `unit`, `target`, `met`.

    `value` and `met` are None where the part was not measured.

    Args:
        parts: results by part.
        faults: the report of `make test-faults`; None without one.
    """
    many = _get(parts, "all_cores", "many", "answers_per_s")
    one = _get(parts, "all_cores", "one", "answers_per_s")
    by_pictures = _get(parts, "transformers", "answers_per_s")
    rows = [
        _row("throughput at 64 concurrent against one at a time", _ratio(many, one), "×", 6.0),
        _row(
            "answers per second against transformers from pictures, one at a time",
            _ratio(many, by_pictures),
            "×",
            15.0,
        ),
        _row(
            "time outside model, projection and codec, p50 at light load",
            _percent(_get(parts, "throughput", "stages", "outside_share")),
            "% of time to first token",
            15.0,
            least=False,
        ),
        _row(
            "front end alone against bare grpc.aio echo",
            _percent(_get(parts, "front_end", "ratio")),
            "% of its rate",
            60.0,
        ),
        _row(
            "polite devices' p95 beside a greedy one",
            _get(parts, "fairness", "p95_ratio"),
            "×",
            1.2,
            least=False,
        ),
        _row("goodput at 3× overload", _percent(goodput_share(parts)), "% of peak", 90.0),
        _restarts(faults),
        *_faults(faults),
        _row(
            "memory after the soak against after a sixth of it",
            _percent(memory_growth(parts)),
            "% more",
            5.0,
            least=False,
        ),
        _row(
            "HTTP API's own cost over gRPC Ask, p50",
            _percent(_get(parts, "http", "cost_share")),
            "%",
            10.0,
            least=False,
        ),
    ]
    return rows


def goodput_share(parts: Mapping[str, Any]) -> float | None:
    """Goodput at the highest load as a share of the best goodput at any load."""
    rows = _get(parts, "offered", "rows")
    if not rows:
        return None
    best = max(row["goodput_per_s"] for row in rows)
    share: float = rows[-1]["goodput_per_s"] / best if best else 0.0
    return share


def memory_growth(parts: Mapping[str, Any]) -> float | None:
    """Growth of memory from a sixth of the run to its end, as a share.

    Front end or engine, whichever grew more. Each value is the median over a twelfth of the run.
    """
    samples = _get(parts, "soak", "memory")
    if not samples or len(samples) < 12:
        return None
    window = len(samples) // 12
    early = samples[2 * window : 3 * window]
    late = samples[-window:]
    return max(_median(late, kind) / _median(early, kind) - 1 for kind in ("front_end", "engine"))


def read_faults(path: Path) -> dict[str, Any] | None:
    """The report of `make test-faults`, if there is one."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _restarts(faults: Mapping[str, Any] | None) -> dict[str, Any]:
    kinds = (faults or {}).get("kinds", {})
    wanted = ("SIGTERM under load", "rolling restart")
    bad = (
        sum(kinds[name]["lost"] + kinds[name]["doubled"] for name in wanted)
        if all(name in kinds for name in wanted)
        else None
    )
    name = "SIGTERM under load; rolling restart of two front ends: answers lost or doubled"
    return _row(name, bad, "", 0.0, least=False)


def _faults(faults: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    kinds = list((faults or {}).get("kinds", {}).values())
    bad = (
        sum(k["wrong"] + k["lost"] + k["doubled"] + k["seen_by_a_stranger"] for k in kinds)
        if kinds
        else None
    )
    name = "faults: answers wrong, lost, doubled or seen by a stranger"
    injected = faults["faults"] if faults else None
    return [
        _row("faults injected", injected, "", FAULTS),
        _row(name, bad, "", 0.0, least=False),
    ]


def _row(
    name: str, value: float | None, unit: str, target: float, least: bool = True
) -> dict[str, Any]:
    met = None if value is None else value >= target if least else value <= target
    told = f"{'≥' if least else '≤'} {target:g}"
    shown = None if value is None else round(value, 3)
    return {"name": name, "value": shown, "unit": unit, "target": told, "met": met}


def _get(parts: Mapping[str, Any], *path: str) -> Any:
    found: Any = parts
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _ratio(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _median(samples: list[dict[str, float]], kind: str) -> float:
    held = sorted(sample[kind] for sample in samples)
    return held[len(held) // 2]
