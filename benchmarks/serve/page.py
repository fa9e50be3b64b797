"""The report page: figures and curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from reference.report.parts import HEADING, Part, Plot, Table, judged
from reference.report.plot import CLOUD, EDGE, JPEG, OURS, QUIET, WEBP, plot


def parts_of(report: Mapping[str, Any]) -> list[Part]:
    """The page's parts."""
    measured: Mapping[str, Any] = report["parts"]
    shown: list[Part] = [
        figures_table(report["figures"]),
        "Throughput at 64 concurrent and answers a second: a service with one engine of one thread "
        "for each core. All else: a service with one such engine.",
    ]
    if "throughput" in measured:
        stages = measured["throughput"]["stages"]
        shown += [
            f"{HEADING}Time to first token at light load",
            "Medians, from a device's write until its first token, over TLS. Model: the question's "
            "prefill with the first token. What is in none of the three is outside; the share is "
            "taken request by request.",
            _stages(stages),
        ]
    if "offered" in measured:
        rows = measured["offered"]["rows"]
        shown += [
            f"{HEADING}Throughput against offered load",
            "Poisson arrivals on 64 devices, open loop: latency counts from the moment at which a "
            "request was due. Goodput: answers within 2 s of that moment.",
            Plot("serve-offered.svg", "goodput against offered load", _offered(rows)),
            Plot("serve-latency.svg", "latency against offered load", _latency(rows)),
            _curve(rows, ("share", "offered_per_s", "goodput_per_s")),
        ]
    if "devices" in measured:
        rows = measured["devices"]["rows"]
        shown += [
            f"{HEADING}Throughput against devices",
            "Each device has one request under way.",
            Plot("serve-devices.svg", "throughput against devices", _devices(rows)),
            _curve(rows, ("devices", "connect_s", "answers_per_s")),
        ]
    if "fairness" in measured:
        rows = [{"": name, **row} for name, row in measured["fairness"]["rows"].items()]
        shown += [
            f"{HEADING}Eight polite devices beside a greedy one",
            f"The greedy one keeps 64 requests under way; it got "
            f"{measured['fairness']['greedy_per_s']:.1f} answers a second.",
            _curve(rows, ("", "answers_per_s")),
        ]
    if "soak" in measured:
        samples = measured["soak"]["memory"]
        shown += [
            f"{HEADING}Memory under steady load",
            f"{measured['soak']['answers']} answers in {measured['soak']['minutes']:g} minutes.",
            Plot("serve-memory.svg", "memory over time", _memory(samples)),
        ]
    return shown


def figures_table(figures: list[dict[str, Any]]) -> Table:
    """The figures, for the page and the terminal."""
    rows = [
        (
            row["name"],
            "not measured" if row["value"] is None else f"{row['value']:g} {row['unit']}",
            row["target"],
            judged(row["met"]),
        )
        for row in figures
    ]
    return Table("The service's figures", ("figure", "#measured", "#target", ""), rows)


def _stages(stages: Mapping[str, float]) -> Table:
    names = ("first_token", "codec", "projection", "model")
    cells = [f"{stages[f'{name}_ms']:.2f}" for name in names]
    heads = [f"#{name.replace('_', ' ')} ms" for name in names]
    return Table("", [*heads, "#outside"], [(*cells, f"{stages['outside_share']:.0%}")])


def _curve(rows: list[dict[str, Any]], first: tuple[str, ...]) -> Table:
    quantiles = [f"{w}_p{q}_ms" for w in ("first_token", "answer") for q in (50, 95, 99)]
    columns = (*first, *quantiles)
    cells = [
        tuple(f"{row[c]:.4g}" if isinstance(row[c], float) else row[c] for c in columns)
        for row in rows
    ]
    heads = [f"#{column.replace('_', ' ')}" if column else "" for column in columns]
    return Table("", heads, cells)


def _offered(rows: list[dict[str, Any]]) -> str:
    def draw(axes: Axes) -> None:
        due = [row["offered_per_s"] for row in rows]
        axes.plot(due, due, color=QUIET, linestyle="--", label="offered")
        axes.plot(due, [r["answers_per_s"] for r in rows], "o-", color=CLOUD, label="answered")
        axes.plot(due, [r["goodput_per_s"] for r in rows], "D-", color=OURS, label="within 2 s")
        axes.set_ylim(0, 1.4 * max(row["answers_per_s"] for row in rows))
        axes.set_xlabel("requests due a second")
        axes.set_ylabel("answers a second")
        axes.legend(frameon=False)

    return plot("serve-offered", draw)


def _latency(rows: list[dict[str, Any]]) -> str:
    def draw(axes: Axes) -> None:
        due = [row["offered_per_s"] for row in rows]
        for quantile, colour in ((50, OURS), (95, CLOUD), (99, JPEG)):
            for what, style in (("first_token", "--"), ("answer", "-")):
                axes.plot(
                    due,
                    [row[f"{what}_p{quantile}_ms"] for row in rows],
                    style,
                    color=colour,
                    label=f"{what.replace('_', ' ')} p{quantile}",
                )
        axes.set_yscale("log")
        axes.set_xlabel("requests due a second")
        axes.set_ylabel("ms")
        axes.legend(frameon=False, ncols=3, fontsize=8)

    return plot("serve-latency", draw)


def _devices(rows: list[dict[str, Any]]) -> str:
    def draw(axes: Axes) -> None:
        count = [row["devices"] for row in rows]
        axes.plot(count, [row["answers_per_s"] for row in rows], "o-", color=OURS)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("devices, each with one request under way")
        axes.set_ylabel("answers a second")

    return plot("serve-devices", draw)


def _memory(samples: list[dict[str, float]]) -> str:
    def draw(axes: Axes) -> None:
        minutes = [sample["seconds"] / 60 for sample in samples]
        colours = (OURS, CLOUD, EDGE, WEBP)
        for kind, colour in zip((k for k in samples[0] if k != "seconds"), colours, strict=False):
            held = [sample[kind] / 1e6 for sample in samples]
            axes.plot(minutes, held, color=colour, label=kind.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes")
        axes.set_ylabel("MB in RAM")
        axes.legend(frameon=False)

    return plot("serve-memory", draw)
