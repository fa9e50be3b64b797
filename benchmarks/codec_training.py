"""What training a map with its codec in the loop gains.

One map, trained without a codec, is trained on for the same number of steps in four ways: still
without a codec; with latents rounded and bits priced; with quiet tokens sent as zeros too; with
tokens dropped at random instead. Each is then swept over roundings and quiet tokens on validation
pictures, as a bundle is. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks import command
from projector.calibration import ladder
from projector.calibration.calibrate import encoder_of
from projector.calibration.ladder import Judge, Sweep
from projector.maps import Map, ServedMap
from projector.maps.mix import Mix
from projector.models.autocast import product_type
from projector.models.vlm import VLM
from projector.serving import backends
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training.corpus import Corpus, collect
from projector.training.fit import moments_of
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from reference.demo.halves import MODELS
from reference.report.parts import Table, percent, show
from reference.report.plot import QUIET as GREY
from reference.report.plot import plot
from reference.split import HELD_OUT, Split, pairs_folder

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
"""Accuracy that a default point may lose against the cloud's own caches, as in the recipes."""
MEMBER = Mix("factors", {"r": 128, "travels": 32}, width=256, depth=4, order="target")
"""The map of the recipes."""
CALIBRATED_ON, SAMPLE_PICTURES = 10240, 1024
"""Most training pictures for the edge half's tables, and for the sweep's."""
QUESTIONS = 6


@dataclass(frozen=True)
class Pairs:
    """Two models and pairs of their caches, for training and for validation."""

    source: VLM
    target: VLM
    train: Split
    held_out: Split
    corpus: Corpus
    validation: Corpus

    @classmethod
    def of(cls, args: argparse.Namespace) -> Pairs:
        """Makes the pairs that are not there yet."""
        source, target = VLM.load(args.models / args.edge), VLM.load(args.models / "cloud")
        folder = args.work / pairs_folder(args.edge, source, target)
        sizes = {"train": args.train_pictures, "validation": HELD_OUT}
        splits = {name: Split(name, count, args.pool) for name, count in sizes.items()}
        train, validation = (
            collect(source, target, splits[name].picture, count, folder / name, name)
            for name, count in sizes.items()
        )
        return cls(source, target, splits["train"], splits["validation"], train, validation)


def start(pairs: Pairs, args: argparse.Namespace) -> tuple[Map, TrainSettings]:
    """The map that every variant starts from, trained without a codec."""
    settings = TrainSettings(
        reconstruct_steps=args.reconstruct_steps,
        task_steps=args.task_steps,
        rate=1.5e-3,
        seed=args.seed,
    )
    torch.manual_seed(args.seed)
    moments = moments_of(pairs.corpus, pairs.source, pairs.target, target_gram=False)
    made = MEMBER.build(pairs.source.layout, pairs.target.layout, moments)
    made.start_rounding(torch.from_numpy(pairs.corpus.x.mean(axis=0, dtype=np.float32)))
    trainer(made, pairs, settings, args, "start").run()
    return made, settings


def trainer(
    made: Map, pairs: Pairs, settings: TrainSettings, args: argparse.Namespace, name: str
) -> Trainer[Map]:
    """The trainer of one map; its state is kept by name."""
    folder = args.work / f"codec-{args.edge}" / name.replace(", ", "-").replace(" ", "-")
    asked = pairs.train.questions
    return Trainer(made, pairs.corpus, pairs.target, asked, settings, folder)


def swept(
    made: Map, pairs: Pairs, judged: Trainer[Map], args: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy without rounding, and accuracy and bytes at every point of the sweep."""
    calibration = pairs.corpus.part(slice(CALIBRATED_ON))
    validation = pairs.validation.part(slice(args.pictures))
    encoder = encoder_of(made.eval(), calibration.x)
    files = CloudFiles(weights=made.to_bytes(), graph=export(ServedMap(made)).graph)
    backend = backends.get("onnxruntime")(
        files,
        pairs.target.layout,
        encoder.rank,
        threads=args.threads,
        source=pairs.source.layout,
    )
    questions = pairs.held_out.questions
    precision = product_type()
    judge = Judge(pairs.source, pairs.target, backend, validation, questions, QUESTIONS, precision)
    sample = ladder.states_of(pairs.source, calibration.part(slice(SAMPLE_PICTURES)))
    found = ladder.calibrate(encoder, judge, sample, [SWEEP], WITHIN)
    chosen = next(p for p in found.encoder.points if p.index == found.default_point)
    unrounded = judged.accuracy(validation, questions, lambda x, _y: judged.mapped_layers(x))
    return {
        "unrounded": unrounded,
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
    pairs = Pairs.of(args)
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
    """Accuracy against bytes, the hull of every variant, as SVG."""
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
    """Table of every variant's default point and single points."""
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
    parser.add_argument("--pictures", type=int, default=512, help="to judge on; %(default)s")
    parser.add_argument("--reconstruct-steps", type=int, default=1500, help="%(default)s")
    parser.add_argument("--task-steps", type=int, default=600, help="without codec; %(default)s")
    parser.add_argument("--steps", type=int, default=500, help="per variant; %(default)s")
    parser.add_argument("--rate", type=float, default=4e-4, help="per variant; %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--pool", type=Path, default=Path("build/pool"), help="rendered pictures")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="pairs and state")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
