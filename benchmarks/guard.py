"""How well the guard works on pictures unlike those it was calibrated on.

It asks about test and shifted pictures, half and half. Does the bundle's risk model, which
`projector guard` made, predict that the frame's answer differs from the picture's? What are
accuracy and bytes when the guard sends the picture instead? Figures are at the default point;
`by_point` also has another point of the ladder.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from PIL import Image
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import MAX_NEW_TOKENS, Pair, decoded_answers, seeing
from benchmarks.compare.measure import quiet_libraries
from edge_agent.picture import PictureCodec
from projector.bundle.load import Bundle
from projector.calibration import disagreement
from projector.codec.answers import same_answer
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel
from projector.models.vlm import VLM
from projector.validation.estimate import LEAST_EVENTS, auroc, paired
from protos.errors import ConfigError
from protos.process.files import write_file
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.terminal import Terminal
from reference.demo.testset import Asked
from reference.report.parts import Part, Plot, Table, bold, html, percent
from reference.report.parts import show as print_tables
from reference.report.plot import CLOUD, OURS, QUIET, plot
from reference.yard import ask, render, sample_scenes

BLOCK = 32
QUESTIONS = 6
TARGET = 0.02
FIGURES = ("quantize", "dropped_attention", "latent_residual", "unfamiliarity")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class GuardRows(disagreement.Rows):
    """Answers to questions about some pictures; one row per question and point.

    Attributes:
        right_sent: whether the answer from the picture as it would be sent (WebP) is right, `[n]`;
            not asked on the calibration's pictures, where it is that from the picture itself.
        right_edge: whether the edge model's answer is right, `[n]`.
        sent_bytes: size of that WebP, `[n]`.
    """

    right_sent: Bools
    right_edge: Bools
    sent_bytes: npt.NDArray[np.int64]


def collect(
    pair: Pair, split: str, start: int, count: int, folder: Path, show: Terminal
) -> GuardRows:
    """Ask about pictures of the yard; blocks that `folder` holds already are read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with show.stage(f"{split}: from frames and from pictures", -(-count // BLOCK)) as advance:
        for first in range(start, start + count, BLOCK):
            path = folder / f"{split}-{first:06d}.npz"
            if not path.exists():
                made = _block(pair, split, first)
                blob = io.BytesIO()
                np.savez(blob, **vars(made))
                write_file(path, [blob.getbuffer()])
            with np.load(path) as stored:
                parts.append(GuardRows(**{name: stored[name] for name in stored.files}))
            advance(1)
    return GuardRows.join(parts)


def _block(pair: Pair, split: str, first: int) -> GuardRows:
    scenes = sample_scenes(split, first, BLOCK)
    pictures = [Image.fromarray(pixels) for pixels in render(scenes)]
    rng = np.random.default_rng([first, 7])
    asked = [
        Asked(row, q.text, q.subkind, q.answer)
        for row in range(BLOCK)
        for q in ask(scenes, row, QUESTIONS, 0)
    ]
    info, encoder = pair.bundle.info, pair.bundle.encoder
    between = disagreement.Comparison(pair.edge, pair.cloud, encoder, pair.backend, MAX_NEW_TOKENS)
    rows = between.rows(
        pictures,
        [[(q.text, q.truth) for q in asked if q.picture == row] for row in range(BLOCK)],
        [
            disagreement.lesson_points(encoder, info.ladder, info.default_point, rng)
            for _ in range(BLOCK)
        ],
        range(first, first + BLOCK),
        [False] * BLOCK,
    )
    codec = PictureCodec()
    files = [codec.encode(picture) for picture in pictures]
    sent = decoded_answers(pair.cloud, files, asked, _quiet)
    edge = seeing(pair.edge, pictures, asked, _quiet)
    about = rows.picture - first
    place = QUESTIONS * about + rows.question

    def right(answers: Sequence[str]) -> Bools:
        each = [same_answer(a, q.truth) for a, q in zip(answers, asked, strict=True)]
        chosen: Bools = np.array(each)[place]
        return chosen

    return GuardRows(
        **vars(rows),
        right_sent=right(sent),
        right_edge=right(edge),
        sent_bytes=np.array([len(file) for file in files])[about],
    )


def certainty(
    vlm: VLM, pictures: Sequence[Image.Image], asked: Sequence[Asked]
) -> npt.NDArray[np.float32]:
    """The edge model's distributions for the first token of its own answers, `[Q, V]`."""
    layers = vlm.prefill(pictures, attention=False).layers()
    rows = [q.picture for q in asked]
    ids = [vlm.question_ids(q.text) for q in asked]
    return vlm.first_token([(keys[rows], values[rows]) for keys, values in layers], ids)


def _quiet(_: int) -> None:
    """Ignores progress: it is shown per block."""


# -- figures ---------------------------------------------------------------------------------------


def outcome(rows: GuardRows, over: Bools) -> dict[str, float]:
    """Accuracy and bytes when the rows `over` the limit are sent as pictures."""
    right = np.where(over, rows.right_sent, rows.right_frame)
    sent = np.where(over, rows.sent_bytes, rows.frame_bytes)
    edge = np.where(over, rows.right_edge, rows.right_frame)
    return {
        "pictures_sent_share": round(float(over.mean()), 4),
        "accuracy": round(float(right.mean()), 4),
        "payload_bytes": round(float(sent.mean()), 1),
        "accuracy_edge_only": round(float(edge.mean()), 4),
    }


def _auroc(score: npt.NDArray[np.floating], differs: Bools) -> float | None:
    """AUROC, rounded; None if too few answers differ, or too few agree."""
    some = int(differs.sum())
    if min(some, len(differs) - some) < LEAST_EVENTS:
        return None
    return round(auroc(score, differs), 4)


def examine(risk: RiskModel, sets: dict[str, GuardRows]) -> dict[str, Any]:
    """The guard's figures on the mix of the sets and on each set."""
    sets = {"mixed": GuardRows.join(list(sets.values())), **sets}
    scores = {name: risk.risk(rows.found) for name, rows in sets.items()}
    mixed, score = sets["mixed"], scores["mixed"]
    guarded = np.where(score > risk.limit, mixed.right_sent, mixed.right_frame)
    clusters = (mixed.picture + 1_000_000 * (np.arange(len(mixed)) >= len(mixed) // 2)).tolist()
    at_limit = {name: outcome(rows, scores[name] > risk.limit) for name, rows in sets.items()}
    thresholds = np.quantile(score, np.linspace(0, 1, 41))
    return {
        "auroc": _auroc(score, mixed.disagree),
        "auroc_test": _auroc(scores["test"], sets["test"].disagree),
        "auroc_shifted": _auroc(scores["shifted"], sets["shifted"].disagree),
        "auroc_of_single_figures": {
            figure: _auroc(mixed.found[:, place], mixed.disagree)
            for place, figure in enumerate(FIGURES)
        },
        "limit": round(risk.limit, 4),
        "accuracy_mixed": at_limit["mixed"]["accuracy"],
        "bytes_mixed": at_limit["mixed"]["payload_bytes"],
        "cloud_image_mixed": round(float(mixed.right_picture.mean()), 4),
        "guarded_minus_cloud_image": paired(
            guarded.tolist(), mixed.right_picture.tolist(), clusters
        ).to_json(),
        "at_limit": at_limit,
        "unguarded": {
            name: outcome(rows, np.zeros(len(rows), bool)) for name, rows in sets.items()
        },
        "always_picture": {
            name: outcome(rows, np.ones(len(rows), bool)) for name, rows in sets.items()
        },
        "cloud_image": {
            name: round(float(rows.right_picture.mean()), 4) for name, rows in sets.items()
        },
        "disagree_share": {
            name: round(float(rows.disagree.mean()), 4) for name, rows in sets.items()
        },
        "questions": {name: len(rows) for name, rows in sets.items()},
        "curve": [outcome(mixed, score > threshold) for threshold in thresholds],
    }


# -- what is shown ---------------------------------------------------------------------------------


def parts(report: dict[str, Any]) -> list[Part]:
    """A row for each set of pictures, and a plot over all limits."""
    rows = []
    for name, guarded in report["at_limit"].items():
        told = report["auroc" if name == "mixed" else f"auroc_{name}"]
        frames = report["unguarded"][name]
        rows.append(
            (
                name,
                percent(report["disagree_share"][name]),
                "cannot be judged" if told is None else f"{told:.3f}",
                percent(report["cloud_image"][name]),
                percent(frames["accuracy"]),
                f"{frames['payload_bytes']:.0f}",
                *bold((percent(guarded["accuracy"]), f"{guarded['payload_bytes']:.0f}")),
                percent(guarded["pictures_sent_share"]),
                f"{report['always_picture'][name]['payload_bytes']:.0f}",
            )
        )
    heads = (
        *("pictures", "#answers that differ, %", "#AUROC", "#cloud sees the picture, %"),
        *("#frames alone, %", "#bytes", "#guarded, %", "#bytes"),
        *("#sent as pictures, %", "#bytes of a picture"),
    )
    points = [(name, *found.values()) for name, found in report["by_point"].items()]
    return [
        Table("The guard", heads, rows),
        Plot("guard.svg", "right answers against bytes at every limit", _plot(report)),
        Table(
            "By operating point, on test",
            ("point", "#questions", "#share that differs", "#mean risk"),
            points,
        ),
    ]


def _plot(report: dict[str, Any]) -> str:
    curve, chosen = report["curve"], report["at_limit"]["mixed"]
    seeing = 100 * report["cloud_image_mixed"]

    def draw(axes: Axes) -> None:
        axes.plot(
            [row["payload_bytes"] for row in curve],
            [100 * row["accuracy"] for row in curve],
            color=OURS,
            label="the picture where the risk is high",
        )
        at = (chosen["payload_bytes"], 100 * chosen["accuracy"])
        axes.plot(*at, "D", color=OURS, label="the limit")
        axes.axhline(seeing, color=CLOUD, label="cloud sees the picture")
        axes.axhline(seeing - 2, color=QUIET, linestyle=":", label="minus 2 points")
        axes.set_xscale("log")
        axes.set_xlabel("payload bytes per question, mean")
        axes.set_ylabel("right answers on the mix, %")
        axes.legend(frameon=False, fontsize=8)

    return plot("guard", draw, height=3.6)


# -- the run ---------------------------------------------------------------------------------------


def made_for(pair: Pair) -> str:
    """Names what the rows depend on: the bundle, but not the risk model in it."""
    bundle = pair.bundle
    sent = (bundle.info.default_point, bundle.info.ladder)
    plan = (disagreement.FORMAT, *sent, BLOCK, QUESTIONS, MAX_NEW_TOKENS)
    parts = (bare(bundle.encoder), bundle.cloud.weights, str(plan).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def bare(encoder: Encoder) -> bytes:
    """The edge half without its guard: the part that makes frames."""
    return replace(encoder, risk=None).to_bytes()


def evaluate(pair: Pair, pictures: int, folder: Path, show: Terminal) -> dict[str, Any]:
    """The figures of the bundle's risk model on test and shifted pictures.

    Raises:
        ConfigError: the bundle holds none.
    """
    risk = pair.bundle.encoder.risk
    if risk is None:
        raise ConfigError(
            f"bundle {pair.bundle.info.id} holds no risk model: see `projector guard`"
        )
    splits = ("test", "shifted")
    every = {s: collect(pair, s, 0, pictures, folder, show) for s in splits}
    default = pair.bundle.info.default_point
    usual = {split: rows.where(rows.point == default) for split, rows in every.items()}
    return examine(risk, usual) | {"by_point": by_point(risk, pair.bundle, every["test"])}


def by_point(risk: RiskModel, bundle: Bundle, rows: GuardRows) -> dict[str, dict[str, float]]:
    """Mean risk beside the share of answers that differ, at each point, in ladder order."""
    said = risk.risk(rows.found)
    return {
        bundle.encoder.point(index).name: {
            "questions": int(there.sum()),
            "disagree_share": round(float(rows.disagree[there].mean()), 4),
            "risk_mean": round(float(said[there].mean()), 4),
        }
        for index in bundle.info.ladder
        if (there := rows.point == index).any()
    }


def bench(given: argparse.Namespace) -> int:
    """Evaluate, print, write."""
    console = Console()
    show = Terminal(console)
    quiet_libraries()
    pair = Pair.load(given.edge, given.cloud, given.bundle)
    work = given.work / made_for(pair)
    report = {
        "command": command.command("guard"),
        "bundle": pair.bundle.digest,
        **evaluate(pair, given.pictures, work, show),
    }
    made = parts(report)
    command.write(report, given.out, html("The guard", f"`{report['command']}`", made))
    print_tables(made, console)
    return 0


def main() -> int:
    """Command line."""
    parser = command.parser("guard", (__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=512, help="of test, and of shifted")
    parser.add_argument("--edge", type=Path, default=EDGE_MODEL)
    parser.add_argument("--cloud", type=Path, default=CLOUD_MODEL)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "guard")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "guard.json")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
