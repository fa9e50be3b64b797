"""What it buys to train a map with its codec in the loop.

One map, trained without a codec, is carried on for the same number of steps in four ways: still
without one; with its latents rounded and a price on bits; with quiet tokens silenced as well; with
tokens dropped at random instead. Each is then swept over roundings and quiet tokens on validation
pictures, as a bundle is. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks import command
from projector.calibration import ladder
from projector.calibration.ladder import Judge, Sweep
from projector.maps.trainable import LowRankMap
from projector.serving import backends
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training.train import Trainer, TrainSettings, closed_form
from reference.build_bundle import CALIBRATED_ON, Pairs, edge_half, measure, roundings
from reference.calibrate import PRECISION, QUESTIONS, SAMPLE_PICTURES
from reference.demo.halves import MODELS
from reference.report.parts import Table, percent, show
from reference.report.plot import QUIET as GREY
from reference.report.plot import plot

SCALE, WORTH = 16.0, 0.04
QUIET, DROP = 8.0, 0.6
VARIANTS: dict[str, dict[str, float]] = {
    "no codec": {},
    "rounded": {"finish_scale": SCALE, "finish_weight": WORTH},
    "rounded, quiet tokens": {"finish_scale": SCALE, "finish_weight": WORTH, "quiet": QUIET},
    "rounded, tokens dropped": {"finish_scale": SCALE, "finish_weight": WORTH, "drop": DROP},
}
SWEEP = Sweep(coarseness=(1.0, 2.0, 3.0, 4.0, 6.0, 8.0), quiet=(0.0, 6.0, 12.0))
WITHIN = 0.016
"""What a default point may lose against the large model's own caches, as `build_bundle` has it."""


def start(pairs: Pairs, args: argparse.Namespace) -> tuple[LowRankMap, TrainSettings]:
    """The map that every variant goes on from, trained without a codec."""
    settings = TrainSettings(
        rank=32,
        inner=128,
        mix_width=256,
        mix_depth=4,
        reconstruct_steps=args.reconstruct_steps,
        task_steps=args.task_steps,
        rate=1.5e-3,
        seed=args.seed,
    )
    made = closed_form(pairs.corpus, pairs.source.layout, pairs.target, settings)
    trainer(made, pairs, settings, args, "start").run()
    return made, settings


def trainer(
    made: LowRankMap, pairs: Pairs, settings: TrainSettings, args: argparse.Namespace, name: str
) -> Trainer[LowRankMap]:
    """Trains one map; its state is kept by name."""
    folder = args.work / f"codec-{args.edge}" / name.replace(", ", "-").replace(" ", "-")
    asked = pairs.train.questions
    return Trainer(made, pairs.corpus, pairs.target, asked, settings, folder)


def swept(
    made: LowRankMap, pairs: Pairs, judged: Trainer[LowRankMap], args: argparse.Namespace
) -> dict[str, Any]:
    """Right answers unrounded, and at every point of the sweep with its bytes."""
    calibration = pairs.corpus.part(slice(CALIBRATED_ON))
    validation = pairs.validation.part(slice(args.pictures))
    encoder = edge_half(made, pairs.source, calibration, roundings(SCALE))
    cloud = copy.deepcopy(made.cloud).eval()
    files = CloudFiles(weights=cloud.to_bytes(), graph=export(cloud).graph)
    backend = backends.get("onnxruntime")(
        files,
        pairs.target.layout,
        encoder.rank,
        threads=args.threads,
        tokens=pairs.source.layout.tokens,
    )
    questions = pairs.held_out.questions
    judge = Judge(pairs.source, pairs.target, backend, validation, questions, QUESTIONS, PRECISION)
    sample = ladder.states_of(pairs.source, calibration.part(slice(SAMPLE_PICTURES)))
    found = ladder.calibrate(encoder, judge, sample, [SWEEP], WITHIN)
    chosen = next(p for p in found.encoder.points if p.index == found.default_point)
    return {
        "unrounded": measure(judged, validation, pairs.held_out, None),
        "native": found.native,
        "default": {"name": chosen.name, **asdict(chosen)["measured"]},
        "points": {name: asdict(one) for name, one in found.tried.items()},
        "hull": [
            {"name": p.name, **asdict(p)["measured"]}
            for p in found.encoder.points
            if p.index in found.ladder and p.measured is not None and p.quantizer == "uniform"
        ],
    }


def bench(args: argparse.Namespace) -> int:
    """Train, sweep, write."""
    torch.set_num_threads(args.threads)
    pairs = Pairs.of(args.edge, args.train_pictures, "cpu", args)
    first, settings = start(pairs, args)
    found: dict[str, Any] = {}
    for name, changed in VARIANTS.items():
        made = copy.deepcopy(first)
        plan = replace(
            settings,
            reconstruct_steps=0,
            task_steps=0,
            finish_steps=args.steps,
            finish_rate=args.rate,
            **changed,  # type: ignore[arg-type]
        )
        run = trainer(made, pairs, plan, args, name)
        run.run()
        found[name] = {"settings": changed, **swept(made, pairs, run, args)}
        chosen = found[name]["default"]
        print(
            f"codec-training: {name}: unrounded {found[name]['unrounded']:.3f}, "
            f"{chosen['payload_bytes']:.1f} bytes {chosen['accuracy']:.3f}",
            flush=True,
        )
    report = {
        "command": command.command("codec_training"),
        "edge_model": args.edge,
        "split": "validation",
        "pictures": args.pictures,
        "questions": QUESTIONS * args.pictures,
        "train_pictures": args.train_pictures,
        "steps": {
            "reconstruct": args.reconstruct_steps,
            "task": args.task_steps,
            "each variant": args.steps,
        },
        "variants": found,
    }
    show([table(report)], Console())
    command.write(report, args.out / "codec_training.json")
    (args.out / "codec_training.svg").write_text(draw(report))
    return 0


def draw(report: dict[str, Any]) -> str:
    """Right answers against bytes, the hull of every variant, as SVG."""
    variants = report["variants"]

    def drawn(axes: Axes) -> None:
        for name, one in variants.items():
            hull = sorted(one["hull"], key=lambda p: float(p["payload_bytes"]))
            x = [p["payload_bytes"] for p in hull]
            axes.plot(x, [100 * p["accuracy"] for p in hull], ".-", label=name)
        native = next(iter(variants.values()))["native"]  # the same in all
        axes.axhline(100 * native, color=GREY, linewidth=0.5)
        axes.set(xscale="log", xlabel="bytes of payload", ylabel="right answers, %")
        axes.legend()

    return plot("codec-training", drawn)


def table(report: dict[str, Any]) -> Table:
    """Every variant's default point and single points."""
    names = ("x1", "x4", "x4-q6", "x6-q12")
    rows = []
    for variant, one in report["variants"].items():
        points = [one["default"], *(one["points"][name] for name in names)]
        cells = (f"{p['payload_bytes']:.1f}, {percent(p['accuracy'])}" for p in points)
        rows.append((variant, percent(one["unrounded"]), *cells))
    heads = ("variant", "unrounded", "default: bytes, right", *names)
    return Table(f"{report['edge_model']}: trained with what in the loop", heads, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("codec_training", __doc__)
    parser.add_argument("--edge", default="edge-c", help="edge model; default: %(default)s")
    parser.add_argument("--train-pictures", type=int, default=10240, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=512, help="judged on; %(default)s")
    parser.add_argument("--reconstruct-steps", type=int, default=1500, help="%(default)s")
    parser.add_argument("--task-steps", type=int, default=600, help="without codec; %(default)s")
    parser.add_argument("--steps", type=int, default=500, help="of each variant; %(default)s")
    parser.add_argument("--rate", type=float, default=4e-4, help="of each; %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--pool", type=Path, default=Path("build/pool"), help="rendered pictures")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="pairs and state")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
