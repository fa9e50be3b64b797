"""The rate bench's tables in docs/rate.md, from `build/bench/rate.json`.

`python -m benchmarks.rate.docs` writes them and the plots beside that page; with `--check` it
changes nothing and ends with 1 if the tables are not the report's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import docs
from benchmarks.command import REPORTS
from benchmarks.docs import NOTHING
from benchmarks.rate import plots
from benchmarks.rate.plots import Report, Rows
from reference.report.parts import Part, Plot, Table, markdown, percent, points

NAME = "rate.docs"


def summary(report: Report) -> str:
    """The targets and what was measured, by edge model."""
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
                    f"{points(r['minus_cloud_image'])}"
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
                lambda g: f"{points(g['guarded_minus_cloud_image'])}; {g['bytes_mixed']:.0f}",
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
    return markdown(
        [
            Table("", heads, lines),
            "Frames encoded per second on one core after the prefill, default points: "
            f"**{report['frames_per_second_one_core']:,}** and more ({speeds}; target 1,000). "
            f"Right in time over synthetic uplinks: {100 * control['adaptive']:.1f} % with the "
            f"controller, {100 * control['best_fixed']:.1f} % at the best fixed point "
            f"({control['best_fixed_point']}, chosen with hindsight). {_made(report)}",
        ]
    )


def parts(report: Report) -> list[Part]:
    """Every row, one table for each part of the bench, and the plots."""
    rows, film = report["rows"], report["sequences"]
    halvings = "; ".join(
        f"{edge} "
        + ", ".join(
            f"{step['points_lost_per_halving']:+.1f} ({step['from_bytes']:.0f} to "
            f"{step['to_bytes']:.0f} bytes)"
            for step in steps
        )
        for edge, steps in report["per_halving"].items()
    )
    seeing = report["cloud_image"]
    return [
        f"The large model seeing the pictures: **{percent(seeing)} %**. {_made(report)}",
        Plot(
            "rate.svg",
            "Accuracy against bytes on the wire",
            plots.against_bytes("rate", rows, seeing),
        ),
        "**Ours**, every operating point. Guarded: the picture is sent where the bundle's risk "
        "model says so; bytes on the wire with it, share of questions so answered.",
        _ours(rows),
        "Points of accuracy lost per halving of the payload, from each low-rate point to the next: "
        f"{halvings}.",
        Plot(
            "rate-halvings.svg",
            "Points of accuracy lost per halving of the payload",
            plots.halvings(report),
        ),
        "**Pictures, lists and captions.** The codecs that were best on validation; a list of "
        "things read off the edge's states by a trained head and answered by rules (mean of the "
        "seeds); the edge's own answer as text.",
        _others(rows),
        "**Tokens chosen by kvpress and by our selectors**, at equal budgets, coded at the default "
        "point.",
        _presses(rows),
        "**A fixed camera.** Bytes per frame; every frame is sent and could be asked about. The "
        f"large model seeing the frames: {percent(report['sequences_cloud_image'])} %.",
        _films(film),
        "Answers over chains of deltas, by the number of frames since the key frame:",
        Plot("rate-chain.svg", "Right answers by frames since the key frame", plots.chain(report)),
        "**Coders of raw caches**, the same tensors, per picture.",
        _coders(report["tensors"]),
        "**The controller** over synthetic uplinks (none was recorded), right in time in %.",
        _controller(report["controller"]),
    ]


def page(report: Report) -> list[Part]:
    """The parts, and fixed cameras in a plot of their own."""
    made = parts(report)
    if report["sequences"]:
        drawn = plots.against_bytes(
            "rate-camera", report["sequences"], report["sequences_cloud_image"]
        )
        made.append(Plot("rate-camera.svg", "A fixed camera, against video", drawn))
    return made


def _ours(rows: Rows) -> Table:
    def guarded(row: Mapping[str, Any]) -> str:
        if row["accuracy_guarded"] is None:
            return ""
        right, sent = _share(row["accuracy_guarded"]), _share(row["pictures_sent_share"])
        return f"{right}, {row['wire_bytes_guarded']:,.0f} bytes, {sent}"

    return Table(
        "Ours, every operating point",
        ("edge", "point", "payload", "on the wire", "right", "minus seeing", "guarded"),
        [
            (
                row["edge_model"],
                f"**{row['name']}**" if row["default"] else row["name"],
                f"{row['payload_bytes']:,.1f}",
                f"{row['wire_bytes']:,.1f}",
                _share(row["accuracy"]),
                points(row["minus_cloud_image"]),
                guarded(row),
            )
            for row in rows
            if row["kind"] == "ours"
        ],
    )


def _others(rows: Rows) -> Table:
    lists: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "rival" and not row["name"].startswith("kvpress"):
            lists.setdefault(row["edge_model"], []).append(row)
    sizes = ("payload_bytes", "wire_bytes", "accuracy")
    shown = [
        *((r["name"], *(r[key] for key in sizes)) for r in rows if r["kind"] == "image"),
        *(
            (
                f"{some[0]['name']}, {edge}, {len(some)} seeds",
                *(sum(row[key] for row in some) / len(some) for key in sizes),
            )
            for edge, some in lists.items()
        ),
        *(
            (f"edge alone, {r['edge_model']}", *(r[key] for key in sizes))
            for r in rows
            if r["name"] == "edge alone"
        ),
    ]
    return Table(
        "Pictures, lists and captions",
        ("sent", "payload", "on the wire", "right"),
        [
            (name, f"{payload:,.0f}", f"{wire:,.0f}", _share(right))
            for name, payload, wire, right in sorted(shown, key=lambda row: float(row[2]))
        ],
    )


def _presses(rows: Rows) -> Part:
    mine = [r for r in rows if r["name"].startswith(("kvpress", "selector"))]
    if not mine:
        return "kvpress has no environment here (`make rivals`)."
    budgets = sorted({row["tokens"] for row in mine})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in mine:
        key = (row["edge_model"], row["name"].rsplit(",", 1)[0])
        text = f"{_share(row['accuracy'])} ({row['payload_bytes']:.0f})"
        cells.setdefault(key, {})[row["tokens"]] = text
    return Table(
        "Tokens chosen by kvpress and by our selectors",
        ("edge", "chosen by", *(f"{budget} tokens (bytes)" for budget in budgets)),
        [(*key, *(found[b] for b in budgets)) for key, found in cells.items()],
    )


def _films(rows: Rows) -> Table:
    return Table(
        "A fixed camera, bytes per frame",
        ("sent", "payload", "on the wire", "right", "minus seeing"),
        [
            (
                f"{row['edge_model']} {row['name']}".strip(),
                f"{row['payload_bytes']:.1f}",
                f"{row['wire_bytes']:.1f}",
                _share(row["accuracy"]),
                points(row["minus_cloud_image"]),
            )
            for row in rows
        ],
    )


def _coders(found: Mapping[str, Mapping[str, Any]]) -> Table:
    def shown(name: str, one: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        used = one["cachegen"] and one["cachegen"]["ours"]
        for row in one["rows"]:
            if row["name"].startswith("transform") and row["name"] != used:
                continue
            times = ("", "")
            if "encode_s" in row:
                times = (f"{1e3 * row['encode_s']:.2f}", f"{1e3 * row['decode_s']:.2f}")
            label = f"ours: {row['name']}" if row["kind"] == "ours" else row["name"]
            yield (name, label, f"{row['bytes']:,.0f}", f"{row['error']:.4f}", *times)

    return Table(
        "Coders of raw caches, per picture",
        ("edge", "coder", "bytes", "error", "coding, ms", "decoding, ms"),
        [line for name, one in found.items() for line in shown(name, one)],
    )


def _controller(found: Mapping[str, Any]) -> Table:
    return Table(
        "Right in time over synthetic uplinks, %",
        ("", *found["traces"], "mean"),
        [
            (
                "**the controller**" if arm == "adaptive" else arm,
                *(percent(each[arm]["score"]) for each in found["traces"].values()),
                percent(mean),
            )
            for arm, mean in found["mean_score"].items()
        ],
    )


def _share(share: float) -> str:
    return f"{percent(share)} %"


def _made(report: Report) -> str:
    return (
        f"{report['questions']:,} questions about {report['pictures']:,} pictures of the test "
        f"split; {report['cpu_minutes']:.0f} minutes of CPU time. Command: "
        f"`{report['command'].strip()}`."
    )


def _times(ratio: float | None) -> str:
    return f"{ratio:.1f}×" if ratio else NOTHING


def make(given: argparse.Namespace) -> dict[Path, str]:
    """The summary, every row, and the plots."""
    report = json.loads(given.report.read_text(encoding="utf-8"))
    made = parts(report)
    drawn = {given.page.with_name(p.file): p.svg for p in made if isinstance(p, Plot)}
    return {given.page: f"{summary(report)}\n\n{markdown(made)}", **drawn}


def main() -> int:
    """Command line."""
    page, report = docs.DOCS / "rate.md", REPORTS / "rate.json"
    return docs.main(NAME, make, "bench-rate", report=report, page=page)


if __name__ == "__main__":
    sys.exit(main())
