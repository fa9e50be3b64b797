"""The comparison as parts of a report. Computes no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from PIL import Image

from reference.demo.page import (
    ARM_NAMES,
    Report,
    accuracy,
    distortion,
    first_questions,
    how,
    incomplete,
    latency,
)
from reference.report.parts import Part, Plot, Table, bold, judged, percent, points
from reference.report.plot import CLOUD, EDGE, JPEG, OURS, QUIET, WEBP, plot

_COLOURS = {
    "cloud_image": CLOUD,
    "injected": OURS,
    "injected_float": OURS,
    "raw_kv_fp8": OURS,
    "edge_only": EDGE,
}
_TTFT = {
    "injected": ("injected cache", OURS),
    "picture_png": ("picture, PNG", CLOUD),
    "picture_webp": ("picture, WebP", WEBP),
}


def title(report: Report) -> tuple[str, str]:
    """Title and lead."""
    return (
        f"{_whole(report['questions'])} questions about {_whole(report['pictures'])} pictures that "
        "nobody trained on",
        "A small model at the edge saw each picture. "
        f"{_whole(report['wire_bytes_per_frame']['mean'])} bytes of its cache crossed the wire. "
        "The large model in the cloud never saw the picture; it answered from these bytes.",
    )


def tiles(report: Report) -> list[tuple[str, str]]:
    """The four figures that matter most."""
    right, ratio, fewer = report["accuracy"], report["ttft_ratio"], report["bytes_ratio"]
    png = _whole(report["wire_bytes_per_frame_by_arm"]["cloud_image"])
    than = f"{fewer['ratio']:.1f}× fewer than {fewer['codec']}" if fewer["ratio"] else f"PNG: {png}"
    return [
        (
            f"{percent(right['injected'])} %",
            "right from the injected cache; "
            f"{percent(right['cloud_image'])} % when the cloud sees the picture",
        ),
        (
            f"{_whole(report['wire_bytes_per_frame']['mean'])} B",
            f"on the wire per frame; {than}",
        ),
        (
            f"{ratio['batch_1']:.2f}",
            "time to first token, injected over picture, one at a time",
        ),
        (f"{ratio['batch_16']:.2f}", "the same with sixteen at once"),
    ]


def parts(report: Report, pictures: Mapping[int, Image.Image]) -> list[Part]:
    """The report.

    Args:
        report: as `report.json` holds it, complete (`schema.problems` finds nothing).
        pictures: those that `first_questions` names, by number.
    """
    ratios = [
        bold((f"first token, injected / picture, {_spaced(batch)}", f"{ratio:.2f}", "", ""))
        for batch, ratio in report["ttft_ratio"].items()
    ]
    flops = report["flops"]
    models = [f"{report['made'][f'{half}_parameters'] / 1e6:.1f} M" for half in ("edge", "cloud")]
    paired = "; ".join(
        f"{_spaced(name.replace('_minus_', ' − '))} {points(d)}"
        for name, d in report["differences"].items()
    )
    agreement = percent(report["agreement"]["injected_with_cloud_image"])
    return [
        *incomplete(report),
        *first_questions(report, pictures),
        "## Accuracy of every arm",
        "Dots are means over all questions, bars 95 % intervals that resample whole pictures. Grey "
        "arms are controls: answers without this picture.",
        Plot("accuracy.svg", "right answers of every arm", _accuracy(report)),
        accuracy(report),
        f"Paired, in points: {paired}. The injected cache and the picture lead to the same answer "
        f"in {agreement} % of questions.",
        "## Bytes, and the accuracy they leave",
        "Uplink bytes at a counting TCP relay after set-up, divided by frames; pictures took the "
        "same path. Questions and set-up (mostly the encoder) are not counted.",
        Plot("bytes.svg", "accuracy against bytes on the wire", _bytes(report)),
        _bytes_table(report),
        *latency(report, ratios),
        "## Time to first token, in turn",
        "Last byte of the request to first token, through the same front end and engine, the arms "
        "in turn within each round; decoding and preparing the picture belong to the picture. Work "
        f"up to the first token: {_mega(flops['injected'])} million operations from the cache "
        f"({_mega(flops['project'])} of them the projector's), {_mega(flops['picture'])} million "
        "from the picture.",
        Plot("ttft.svg", "time to first token by batch size", _first_token(report)),
        *distortion(report),
        Plot("layers.svg", "error by layer", _layers(report["distortion_by_layer"])),
        "## Targets",
        f"Set for the full test split (`make bench`). This run asked {_whole(report['questions'])} "
        f"questions of the {report['made']['split']} split.",
        _targets(report),
        *how(report, [("models", "edge {} parameters, cloud {}".format(*models))]),
    ]


def _bytes_table(report: Report) -> Table:
    wire, payload = report["wire_bytes_per_frame"], report["payload_bytes_per_frame"]["mean"]
    right, by_arm = report["accuracy"], report["wire_bytes_per_frame_by_arm"]
    ours = f"ours ({report['operating_point']['name']})"
    sent = {
        "injected_float": "latents, not quantized",
        "raw_kv_fp8": "raw cache in FP8",
        "cloud_image": "PNG",
    }
    rows: list[Sequence[str]] = [
        bold(
            (
                ours,
                _whole(wire["mean"]),
                _whole(wire["p95"]),
                f"{payload:.0f}",
                percent(right["injected"]),
            )
        ),
        *((name, _whole(by_arm[arm]), "", "", percent(right[arm])) for arm, name in sent.items()),
    ]
    for codec in sorted(report["image_codecs"], key=lambda c: -float(c["bytes"])):
        name = f"{codec['codec']} q{codec['quality']}, {codec['size_px']} px"
        sizes = (_whole(codec["bytes"]), "", _whole(codec["payload_bytes"]))
        rows.append((name, *sizes, percent(codec["accuracy"])))
    rows.append(("set-up, once", _whole(report["setup_bytes"]), "", "", ""))
    rows.append(("a question", _whole(report["wire_bytes_per_question"]), "", "", ""))
    heads = ("what is sent", "#bytes", "#p95", "#payload", "#right, %")
    return Table("Bytes on the wire per frame", heads, rows)


def _targets(report: Report) -> Table:
    rows = [
        (
            row["name"],
            row["target"],
            "–" if row["measured"] is None else row["measured"],
            judged(row["met"]),
        )
        for row in report["targets"]
    ]
    heads = ("figure", "target", "#here", "")
    return Table("Targets (set for the full split: make bench)", heads, rows)


def _whole(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _mega(value: float) -> str:
    return f"{value / 1e6:.1f}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _accuracy(report: Report) -> str:
    """Every arm as a dot with its 95 % interval; the floors in grey."""
    arms = [arm for arm in ARM_NAMES if arm in report["accuracy"]]

    def draw(axes: Axes) -> None:
        for row, arm in enumerate(arms):
            value = 100 * report["accuracy"][arm]
            low, high = (100 * v for v in report["accuracy_interval"][arm])
            colour = _COLOURS.get(arm, QUIET)
            axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45)
            axes.plot(value, row, "o", color=colour, markersize=8)
            axes.text(101.5, row, f"{value:.1f}", va="center", ha="left")
        axes.set_yticks(range(len(arms)), [ARM_NAMES[arm] for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("right answers, %")

    return plot("accuracy", draw)


def _bytes(report: Report) -> str:
    """What each byte buys: picture codecs, raw cache and our frames, bytes on a log axis."""
    points = report["image_codecs"]
    wire = report["wire_bytes_per_frame_by_arm"]
    accuracy_of = report["accuracy"]

    def draw(axes: Axes) -> None:
        for codec, colour, label in (("jpeg", JPEG, "JPEG"), ("webp", WEBP, "WebP")):
            mine = sorted((p["bytes"], 100 * p["accuracy"]) for p in points if p["codec"] == codec)
            if mine:
                axes.plot(*zip(*mine, strict=True), "o-", color=colour, markersize=5, label=label)
        others = (
            ("cloud_image", CLOUD, "D", "PNG"),
            ("raw_kv_fp8", QUIET, "s", "raw cache, FP8"),
            ("injected_float", OURS, "^", "ours, not quantized"),
            ("injected", OURS, "*", "ours"),
        )
        for arm, colour, marker, label in others:
            size = 15 if marker == "*" else 7
            x, y = wire[arm], 100 * accuracy_of[arm]
            axes.plot(x, y, marker, color=colour, markersize=size, label=label)
        floor = 100 * accuracy_of["cloud_image"] - 2
        axes.axhline(floor, color=CLOUD, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            0.995, floor, "cloud − 2 points ", va="bottom", ha="right", fontsize=9,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("bytes on the wire per frame (log)")
        axes.set_ylabel("right answers, %")
        axes.legend(frameon=False, fontsize=9, loc="lower right", ncols=2)

    return plot("bytes", draw)


def _first_token(report: Report) -> str:
    """Median time to first token of the arms, by batch size; whiskers end at p95."""
    batches = list(report["ttft_ms"])

    def draw(axes: Axes) -> None:
        height = 0.25
        for row, batch in enumerate(batches):
            for place, (arm, (label, colour)) in enumerate(_TTFT.items()):
                found = report["ttft_ms"][batch][arm]
                y = row + (place - 1) * height
                shown = label if row == 0 else None
                axes.barh(y, found["p50"], height=height * 0.85, color=colour, label=shown)
                axes.plot([found["p50"], found["p95"]], [y, y], color=colour, linewidth=1.4)
                axes.annotate(
                    f"{found['p50']:.1f}", (max(found["p50"], found["p95"]), y), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=9.5,
                )  # fmt: skip
        axes.set_yticks(range(len(batches)), [b.replace("_", " ") for b in batches])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        axes.set_xlabel("milliseconds to the first token")
        axes.legend(frameon=False, fontsize=9, loc="upper right")

    return plot("ttft", draw, height=2.9)


def _layers(per_layer: Sequence[Mapping[str, float]]) -> str:
    """Relative error of the projected keys and values, by layer of the cloud model."""

    def draw(axes: Axes) -> None:
        places = range(len(per_layer))
        for key, colour, marker in (("keys", OURS, "o-"), ("values", CLOUD, "s-")):
            axes.plot(
                places, [p[key] for p in per_layer], marker, color=colour, markersize=6, label=key
            )
        axes.set_xticks(list(places))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer of the cloud model")
        axes.set_ylabel("relative L2 error")
        axes.legend(frameon=False, fontsize=9)

    return plot("layers", draw, height=2.6)
