"""The rate bench's figures in README.md and docs/rate.md, from `build/bench/rate.json`.

`python -m benchmarks.rate.docs` writes the tables between their marker lines and the plots beside
the page; with `--check` it changes nothing and ends with 1 if they are not the report's. Knows the
report's keys; measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from benchmarks.rate import page
from benchmarks.readme_table import NOTHING, placed

BEGIN = "<!-- results: python -m benchmarks.rate.docs -->"
placed_here = partial(placed, begin=BEGIN)

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def readme(report: Report) -> str:
    """What was aimed at, and what came of it, by edge model."""
    edges = list(report["bundles"])
    best = report["within_two_points"]
    film = report["sequences_within_two_points"]
    guard = report["guard"] and report["guard"]["by_edge_model"]
    image = best["image_wire_bytes"]
    theirs = f"{image['name']}, {image['wire_bytes']:.0f} bytes" if image else "none"
    bare = best["image_bare_bytes"]
    video = film["video"]

    def each(found: Mapping[str, Any], form: Any) -> list[str]:
        return [form(found[edge]) if found.get(edge) else "none" for edge in edges]

    coders = {name: one["cachegen"] for name, one in report["tensors"].items()}
    chosen = {r["edge_model"]: r for r in report["rows"] if r["kind"] == "ours" and r["default"]}
    lines = [
        (
            "default point, chosen on validation: bytes of payload, on the wire; points against "
            "seeing the picture",
            *each(
                chosen,
                lambda r: (
                    f"{r['payload_bytes']:.0f}, {r['wire_bytes']:.0f}; "
                    f"{_points(r['minus_cloud_image'])}"
                ),
            ),
            "≤ 128, 200; ≥ −2",
        ),
        ("cheapest point within 2 points of seeing the picture, on test: bytes of payload",)
        + tuple(each(best, lambda r: f"**{r['payload_bytes']:.0f}** ({r['name']})"))
        + ("≤ 128",),
        ("… on the wire", *each(best, lambda r: f"{r['wire_bytes']:.0f}"), "≤ 200"),
        (
            f"smallest picture within 2 points ({theirs}), over ours",
            *each(best, lambda r: _times(r["image_over_ours"])),
            "≥ 8×",
        ),
        (
            "… smallest file without its container "
            f"({bare['name'] + ', ' + format(bare['bare_bytes'], '.0f') if bare else 'none'}), "
            "over our payload",
            *each(best, lambda r: _times(bare and bare["bare_bytes"] / r["payload_bytes"])),
            "",
        ),
        (
            "fixed camera: smallest video within 2 points "
            f"({video['name'] if video else 'none'}), over ours: wire, payload",
            *each(
                film,
                lambda r: f"{_times(r['video_over_ours'])}, {_times(r['video_over_ours_payload'])}",
            ),
            "≥ 4×",
        ),
        (
            "CacheGen's bytes over ours, at no more error; speed of coding, decoding over its",
            *each(
                coders,
                lambda r: (
                    f"{r['bytes_ratio']:.1f}×; {r['encode_speed_ratio']:.1f}×, "
                    f"{r['decode_speed_ratio']:.1f}×"
                ),
            ),
            "≥ 2×; ≥ 10×",
        ),
        (
            "guard: AUROC on test and shifted mixed (each alone)",
            *each(
                guard,
                lambda g: f"{g['auroc']:.2f} ({g['auroc_test']:.2f}, {g['auroc_shifted']:.2f})",
            ),
            "≥ 0.80",
        ),
        (
            "guarded minus seeing every picture, on the mix, points; bytes of payload",
            *each(
                guard,
                lambda g: f"{_points(g['guarded_minus_cloud_image'])}; {g['bytes_mixed']:.0f}",
            ),
            "≥ −2",
        ),
    ]
    heads = ("Figure", *edges, "Target")
    control = report["controller"]
    speeds = ", ".join(
        f"{edge} {one['frames_per_second_one_core']:,}"
        for edge, one in report["codec_speed"].items()
    )
    return "\n".join(
        [
            *_table(heads, lines),
            "",
            "Frames encoded per second on one core after the prefill, default points: "
            f"**{report['frames_per_second_one_core']:,}** and more ({speeds}; target 1,000). "
            f"Right in time over synthetic uplinks: {100 * control['adaptive']:.1f} % with the "
            f"controller, {100 * control['best_fixed']:.1f} % at the best fixed point "
            f"({control['best_fixed_point']}, chosen with hindsight). {_made(report)}",
        ]
    )


def whole(report: Report) -> str:
    """Every row, one table for each part of the bench."""
    rows = report["rows"]
    seeing = 100 * report["cloud_image"]
    parts = [
        f"The large model seeing the pictures: **{seeing:.1f} %**. {_made(report)}",
        "![Accuracy against bytes on the wire](rate.svg)",
        "**Ours**, every operating point. Guarded: the picture is sent where the bundle's risk "
        "model says so; bytes on the wire with it, share of questions so answered.",
        "\n".join(_ours(rows)),
        "Points of accuracy lost per halving of the payload, from each low-rate point to the next: "
        + "; ".join(
            f"{edge} "
            + ", ".join(
                f"{step['points_lost_per_halving']:+.1f} ({step['from_bytes']:.0f} to "
                f"{step['to_bytes']:.0f} bytes)"
                for step in steps
            )
            for edge, steps in report["per_halving"].items()
        )
        + ".",
        "![Points of accuracy lost per halving of the payload](rate-halvings.svg)",
        "**Pictures, lists and captions.** The codecs that were best on validation; a list of "
        "things read off the edge's states by a trained head and answered by rules (mean of the "
        "seeds); the edge's own answer as text.",
        "\n".join(_others(rows)),
        "**Tokens chosen by kvpress and by our selectors**, at equal budgets, coded at the default "
        "point.",
        "\n".join(_presses(rows)),
        "**A fixed camera.** Bytes per frame; every frame is sent and could be asked about. The "
        f"large model seeing the frames: {100 * report['sequences_cloud_image']:.1f} %.",
        "\n".join(_films(report["sequences"])),
        "Answers over chains of deltas, by the number of frames since the key frame:",
        "![Right answers by frames since the key frame](rate-chain.svg)",
        "**Coders of raw caches**, the same tensors, per picture.",
        "\n".join(_coders(report["tensors"])),
        "**The controller** over synthetic uplinks (none was recorded), right in time in %.",
        "\n".join(_controller(report["controller"])),
    ]
    return "\n\n".join(parts)


def _ours(rows: Rows) -> list[str]:
    heads = ("edge", "point", "payload", "on the wire", "right", "minus seeing", "guarded")
    return _table(
        heads,
        (
            (
                row["edge_model"],
                f"**{row['name']}**" if row["default"] else row["name"],
                f"{row['payload_bytes']:,.1f}",
                f"{row['wire_bytes']:,.1f}",
                _percent(row["accuracy"]),
                _points(row["minus_cloud_image"]),
                f"{_percent(row['accuracy_guarded'])}, {row['wire_bytes_guarded']:,.0f} bytes, "
                f"{_percent(row['pictures_sent_share'])}"
                if row["accuracy_guarded"] is not None
                else "",
            )
            for row in rows
            if row["kind"] == "ours"
        ),
    )


def _others(rows: Rows) -> list[str]:
    shown = [r for r in rows if r["kind"] == "image"]
    lists: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "rival" and not row["name"].startswith("kvpress"):
            lists.setdefault(row["edge_model"], []).append(row)
    shown += [
        {
            **some[0],
            "name": f"{some[0]['name']}, {edge}, {len(some)} seeds",
            **{
                key: sum(row[key] for row in some) / len(some)
                for key in ("payload_bytes", "wire_bytes", "accuracy")
            },
        }
        for edge, some in lists.items()
    ]
    alone = [r for r in rows if r["name"] == "edge alone"]
    shown += [{**row, "name": f"edge alone, {row['edge_model']}"} for row in alone]
    shown = sorted(shown, key=lambda row: row["wire_bytes"])
    return _table(
        ("sent", "payload", "on the wire", "right"),
        (
            (
                row["name"],
                f"{row['payload_bytes']:,.0f}",
                f"{row['wire_bytes']:,.0f}",
                _percent(row["accuracy"]),
            )
            for row in shown
        ),
    )


def _presses(rows: Rows) -> list[str]:
    mine = [r for r in rows if r["name"].startswith(("kvpress", "selector"))]
    if not mine:
        return ["kvpress has no environment here (`make rivals`)."]
    budgets = sorted({row["tokens"] for row in mine})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in mine:
        key = (row["edge_model"], row["name"].rsplit(",", 1)[0])
        text = f"{_percent(row['accuracy'])} ({row['payload_bytes']:.0f})"
        cells.setdefault(key, {})[row["tokens"]] = text
    heads = ("edge", "chosen by", *(f"{budget} tokens (bytes)" for budget in budgets))
    return _table(heads, ((*key, *(found[b] for b in budgets)) for key, found in cells.items()))


def _films(rows: Rows) -> list[str]:
    return _table(
        ("sent", "payload", "on the wire", "right", "minus seeing"),
        (
            (
                f"{row['edge_model']} {row['name']}".strip(),
                f"{row['payload_bytes']:.1f}",
                f"{row['wire_bytes']:.1f}",
                _percent(row["accuracy"]),
                _points(row["minus_cloud_image"]),
            )
            for row in rows
        ),
    )


def _coders(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def shown(name: str, one: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
        used = one["cachegen"] and one["cachegen"]["ours"]
        for row in one["rows"]:
            if row["name"].startswith("transform") and row["name"] != used:
                continue
            times = ("", "")
            if "encode_s" in row:
                times = (f"{1e3 * row['encode_s']:.2f}", f"{1e3 * row['decode_s']:.2f}")
            ours = row["kind"] == "ours"
            label = f"ours: {row['name']}" if ours else row["name"]
            yield (name, label, f"{row['bytes']:,.0f}", f"{row['error']:.4f}", *times)

    heads = ("edge", "coder", "bytes", "error", "coding, ms", "decoding, ms")
    return _table(heads, (line for name, one in found.items() for line in shown(name, one)))


def _controller(found: Mapping[str, Any]) -> list[str]:
    heads = ("", *found["traces"], "mean")
    return _table(
        heads,
        (
            (
                "**the controller**" if arm == "adaptive" else arm,
                *(f"{100 * each[arm]['score']:.1f}" for each in found["traces"].values()),
                f"{100 * mean:.1f}",
            )
            for arm, mean in found["mean_score"].items()
        ),
    )


def _made(report: Report) -> str:
    return (
        f"{report['questions']:,} questions about {report['pictures']:,} pictures of the test "
        f"split; {report['cpu_minutes']:.0f} minutes of CPU time. Command: "
        f"`{report['command'].strip()}`."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(estimate: Mapping[str, float]) -> str:
    shown = [f"{100 * estimate[key]:+.1f}" for key in ("mean", "low", "high")]
    return "{} ({} to {})".format(*shown).replace("-", "−")


def _times(ratio: float | None) -> str:
    return f"{ratio:.1f}×" if ratio else NOTHING


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the rate bench's tables and plots.")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "bench" / "rate.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "rate.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    given = parser.parse_args()
    if not given.report.is_file():
        print(f"rate.docs: {given.report} is not there: run `make bench-rate`", file=sys.stderr)
        return 1
    report = json.loads(given.report.read_text(encoding="utf-8"))
    made = {
        path: placed_here(path.read_text(encoding="utf-8"), table)
        for path, table in ((given.readme, readme(report)), (given.page, whole(report)))
    }
    made[given.page.with_name("rate.svg")] = page.svg(report)
    made[given.page.with_name("rate-chain.svg")] = page.chain(report)
    made[given.page.with_name("rate-halvings.svg")] = page.halvings(report)
    if given.check:
        stale = [
            path.name
            for path, text in made.items()
            if path.suffix == ".md" and path.read_text(encoding="utf-8") != text
        ]
        if stale:
            print(f"rate.docs: not up to date: {', '.join(stale)}", file=sys.stderr)
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
