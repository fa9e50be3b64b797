"""The demo's report, as parts. Computes no figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from projector.codec.answers import same_answer
from reference.report.parts import Part, Table, bold, judged, percent, picture

ARM_NAMES = {
    "cloud_image": "cloud, sees the picture",
    "injected": "cloud, injected cache (ours)",
    "injected_float": "… latents not quantized",
    "raw_kv_fp8": "… raw cache in FP8",
    "edge_only": "edge alone",
    "other_picture": "another picture's cache",
    "other_picture_labels": "… what its labels would score",
    "mean_state": "mean state",
    "blind": "no picture",
}
STAGE_NAMES = {
    "edge_prefill": "edge: prefill",
    "select": "edge: select",
    "encode": "edge: encode",
    "uplink": "wire and gRPC",
    "queue": "cloud: queue",
    "decode": "cloud: decode",
    "project": "cloud: project",
    "inject": "cloud: inject",
    "prefill": "cloud: question prefill",
    "generate": "cloud: generate",
}
LOSSES = {
    "quantize": "relative L2 error of the latents",
    "select": "attention on dropped tokens",
    "latent": "share of the cache's norm outside the latents",
    "actual": "relative L2 error against the cloud's own cache",
}
_BAR = 40

Report = Mapping[str, Any]


def parts(report: Report, pictures: Mapping[int, Image.Image]) -> list[Part]:
    """The demo's report.

    Args:
        report: as `report.json` holds it.
        pictures: those that `first_questions` names, by number.
    """
    passed = report["uplink"]
    made = [
        *incomplete(report),
        *first_questions(report, pictures),
        "## Right answers",
        accuracy(report),
        "## Bytes",
        "Counted at a relay between the agent and the service, in TLS: connection, set-up, frames "
        "and questions. Every question took its picture's frame along.",
        Table(
            "Bytes up the wire",
            ("what", "#bytes"),
            [
                bold((f"a frame's payload ({report['operating_point']['name']})", _mean(report))),
                ("everything, per question", f"{passed['bytes'] / report['questions']:.0f}"),
                ("a picture as PNG, for comparison", f"{report['png_bytes']:,.0f}"),
            ],
        ),
        *latency(report),
        *distortion(report),
    ]
    return [*made, *how(report)]


def _mean(report: Report) -> str:
    found = report["payload_bytes_per_frame"]
    return f"{found['mean']:.0f} (p95 {found['p95']:.0f})"


def incomplete(report: Report) -> list[Part]:
    """What was left unanswered or unmeasured; nothing if the run was whole."""
    return [] if report["whole"] else ["## This run was not whole", *report["problems"]]


def first_questions(report: Report, pictures: Mapping[int, Image.Image]) -> list[Part]:
    """The first questions, each with the answer of every arm."""
    rows = report["first_questions"]
    arms = [arm for arm in ARM_NAMES if arm in rows[0]]
    split = report["made"]["split"]
    shown: dict[int, str] = {
        number: picture(image, f"picture {number} of the {split} split")
        for number, image in pictures.items()
    }
    table = Table(
        f"The first {len(rows)} questions",
        ("", "question", "truth", *(ARM_NAMES[arm] for arm in arms)),
        [
            (
                shown[row["picture"]],
                row["question"],
                row["truth"],
                *(
                    judged(same_answer(row[a], row["truth"]), row[a], row[a] or "nothing")
                    for a in arms
                ),
            )
            for row in rows
        ],
    )
    note = "One per picture, in the order of the split: nothing was chosen."
    return ["## The first questions", note, table]


def accuracy(report: Report) -> Table:
    """Right answers of every arm that the report has, by kind of question."""
    kinds = list(report["questions_by_kind"])
    rows = []
    for arm in (arm for arm in ARM_NAMES if arm in report["accuracy"]):
        low, high = report["accuracy_interval"][arm]
        by_kind = report["accuracy_by_kind"][arm]
        row = (
            ARM_NAMES[arm],
            percent(report["accuracy"][arm]),
            f"{percent(low)} to {percent(high)}",
            *(percent(by_kind[kind]) for kind in kinds),
        )
        rows.append(bold(row) if arm == "injected" else row)
    return Table(
        f"Right answers, % ({report['questions']} questions, {report['pictures']} pictures)",
        ("arm", "#all", "#95 %", *(f"#{kind}" for kind in kinds)),
        rows,
    )


def latency(report: Report, more: Iterable[tuple[str, ...]] = ()) -> list[Part]:
    """Where the time goes: median latency of each stage; `more` are further rows of the table."""
    found = report["latency_ms"]
    rows: list[tuple[str, ...]] = []
    start, total = 0.0, max(found["total"]["p50"], 1e-9)
    for stage, name in STAGE_NAMES.items():
        p50 = found[stage]["p50"]
        left, width = round(_BAR * start / total), max(1, round(_BAR * p50 / total))
        rows.append(
            (name, f"{p50:.2f}", f"{found[stage]['p95']:.2f}", "\u2007" * left + "█" * width)
        )
        start += p50
    for stage, name in (("ttft", "arrived → first token"), ("total", "picture → answer")):
        rows.append(bold((name, f"{found[stage]['p50']:.2f}", f"{found[stage]['p95']:.2f}", "")))
    note = (
        "The agent's own requests, one at a time. “Wire and gRPC” is the round trip less the "
        "server's own total."
    )
    title = "Latency, ms (one request at a time)"
    heads = ("stage", "#p50", "#p95", "")
    return ["## Where the time goes", note, Table(title, heads, [*rows, *more])]


def distortion(report: Report) -> list[Part]:
    """The distortion of every step."""
    found = report["distortion"]
    rows = [(name, f"{found[name]:.3f}", said) for name, said in LOSSES.items() if name in found]
    table = Table("Distortion per stage", ("stage", "#figure", "is"), rows)
    return ["## What is lost on the way", table]


def how(report: Report, more: Sequence[tuple[str, str]] = ()) -> list[Part]:
    """The machine, the duration, the inputs; `more` are further rows."""
    made = report["made"]
    rows = [
        ("machine", f"{made['machine']}; Python {made['python']}"),
        ("threads", f"{made['threads_per_process']} to each process that runs a model"),
        ("took", f"{made['seconds']} s, {made['seconds_loading']} of them until all was loaded"),
        *more,
        ("bundle", f"`{made['bundle']}`"),
        ("operating point", report["operating_point"]["name"]),
        (
            "metrics",
            "while it ran: `{metrics}`; kept in `cloud-metrics.txt`, `edge-metrics.txt`".format(
                **made
            ),
        ),
        ("all figures", "`report.json`"),
    ]
    return ["## How this was made", Table("", ("", ""), rows)]
