"""Which tokens to keep: every selector at every budget, on validation pictures.

Everything goes through the served path: `Encoder.encode`, the bundle's backend, the frozen cloud
model. Every table and plot also has random, uniform, and a variant without a selector: all tokens
are sent, the quiet ones as zeros.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from projector.bundle.load import Bundle
from projector.calibration import ladder
from projector.calibration.ladder import Found, Judge
from projector.codec.encoder import Encoder
from projector.codec.select import DEFAULT, SELECTORS
from projector.models.autocast import product_type, said
from projector.models.vlm import VLM
from projector.training.corpus import SHARD_PICTURES, collect
from projector.validation.estimate import paired
from protos.points import OperatingPoint
from protos.state import KVState
from reference.demo.halves import BUNDLE, MODELS
from reference.report.parts import Part, Plot, Table, html, percent, show
from reference.report.plot import QUIET as GREY
from reference.report.plot import plot
from reference.split import Split

SHARES = (1 / 12, 1 / 6, 1 / 3, 1 / 2)
"""Budgets, as shares of the image tokens."""
QUIET = (4.0, 6.0, 8.0)
CONTROLS = ("uniform", "random")
QUESTIONS = 6


def rows(
    judge: Judge,
    encoder: Encoder,
    coarseness: float,
    training: Sequence[KVState],
    budgets: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per selector and budget, and those without a selector."""
    whole = ladder.grid(ladder.Sweep((coarseness,), (0.0,)), encoder.rank)[0][0]

    def named(name: str, **over: Any) -> OperatingPoint:
        return replace(whole, name=name, steps=name, **over)

    plans = [("none", named(f"quiet-{q:g}", quiet=q), encoder) for q in (0.0, *QUIET)]
    for name in SELECTORS:
        chosen = replace(encoder, selector=name)
        plans += [(name, named(f"{name}-{b}", tokens=b), chosen) for b in budgets]
    made, reference = [], None
    for name, point, chosen in tqdm(plans, desc="selectors", unit="point"):
        tabled = ladder.tabled(chosen, [(point, coarseness)], training)
        found = judge.measure(tabled, tabled.points[0])
        reference = reference or found
        made.append({"selector": name, **_plain(point, found, reference)})
    return made


def _plain(point: OperatingPoint, found: Found, whole: Found) -> dict[str, Any]:
    right, full = found.right.reshape(-1), whole.right.reshape(-1)
    pictures = np.repeat(np.arange(len(found.right)), found.right.shape[1])
    against = paired(right.tolist(), full.tolist(), pictures.tolist())
    return {
        "budget": point.tokens,
        "quiet": point.quiet,
        **{key: round(value, 5) for key, value in asdict(found.measured).items()},
        "minus_all_tokens": against.to_json(),
    }


def winners(made: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per budget, the selector with the most right answers, beside the default selector."""
    best = {}
    for budget in sorted({row["budget"] for row in made if row["budget"]}):
        here = {r["selector"]: r["accuracy"] for r in made if r["budget"] == budget}
        best[str(budget)] = {
            "best": max(here, key=lambda name: here[name]),
            "accuracy": max(here.values()),
            **{name: here[name] for name in (DEFAULT, *CONTROLS)},
        }
    return best


def parts(report: dict[str, Any]) -> list[Part]:
    """Accuracy by budget, everything that was tried, and two plots."""
    made = report["rows"]
    budgets = sorted({row["budget"] for row in made if row["budget"]})
    by_budget = {(row["selector"], row["budget"]): row["accuracy"] for row in made}
    columns = ("selector", "budget", "quiet", "payload_bytes", "accuracy", "dropped_attention")
    return [
        Table(
            "Accuracy in %, by tokens kept",
            ("selector", *(f"#{budget}" for budget in budgets)),
            [(name, *(percent(by_budget[name, b]) for b in budgets)) for name in SELECTORS],
        ),
        Table(
            "All tokens; those quieter than a limit are sent as zeros",
            ("#quiet below", "#bytes", "#right, %"),
            [
                (f"{row['quiet']:g}", f"{row['payload_bytes']:.1f}", percent(row["accuracy"]))
                for row in made
                if row["selector"] == "none"
            ],
        ),
        Plot("tokens.svg", "accuracy against tokens", _plot(report, "budget", "image tokens kept")),
        Plot(
            "bytes.svg",
            "accuracy against bytes",
            _plot(report, "payload_bytes", "payload, bytes per picture"),
        ),
        Table("", columns, [[row[column] for column in columns] for row in made]),
    ]


def _plot(report: dict[str, Any], by: str, label: str) -> str:
    """Accuracy against tokens or bytes, one line per selector."""
    made = report["rows"]
    whole = next(row for row in made if row["selector"] == "none" and not row["quiet"])
    every = max(row["budget"] for row in made) * 4 / 3

    def draw(axes: Axes) -> None:
        for name in dict.fromkeys(row["selector"] for row in made):
            if by == "budget" and name == "none":
                continue
            mine = [row for row in made if row["selector"] == name]
            line = sorted([*mine, *([] if name == "none" else [whole])], key=lambda r: r[by] or 1e9)
            axes.plot(
                [row[by] or every for row in line],
                [100 * row["accuracy"] for row in line],
                {"uniform": "k--", "random": "k:"}.get(name, "o-"),
                label="all tokens, quiet ones as zeros" if name == "none" else name,
                markersize=3.5,
            )
        axes.axhline(
            100 * report["native"], color=GREY, linewidth=0.8, label="cloud model, own cache"
        )
        axes.set_xlabel(label)
        axes.set_ylabel("right answers, %")
        axes.legend(fontsize=8)

    return plot(f"selectors-{by}", draw, height=4.4)


def bench(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    begun = time.monotonic()
    torch.set_num_threads(args.threads)
    source, target = VLM.load(args.models / args.edge), VLM.load(args.models / "cloud")
    bundle = Bundle.load(args.bundle, source.layout, target.layout)
    backend = bundle.backend("onnxruntime", threads=args.threads)
    pair = f"{source.layout.fingerprint[:8]}-{target.layout.fingerprint[:8]}"
    corpora = args.work / f"corpus-{args.edge}-{pair}"
    judges = {}
    for split, count in (("train", args.train_pictures), ("validation", args.pictures)):
        whole = -(-count // SHARD_PICTURES) * SHARD_PICTURES
        pictures = Split(split, whole, args.pool)
        corpus = collect(source, target, pictures.picture, whole, corpora / split, split)
        judges[split] = Judge(
            source,
            target,
            backend,
            corpus.part(slice(count)),
            pictures.questions,
            QUESTIONS,
            product_type(),
        )
    weights = ladder.learn_task_weights(judges["train"], bundle.encoder)
    encoder = replace(bundle.encoder, task_weights=weights)
    budgets = sorted({max(1, round(share * source.image_tokens)) for share in args.shares})
    training = judges["train"].states
    made = rows(judges["validation"], encoder, args.coarseness, training, budgets)
    report = {
        "command": command.command("selectors"),
        "edge_model": args.edge,
        "bundle": bundle.digest,
        "split": "validation",
        "pictures": args.pictures,
        "questions": QUESTIONS * args.pictures,
        "precision": f"{said(product_type())} products in the large model",
        "coarseness": args.coarseness,
        "native": float(judges["validation"].native().mean()),
        "task_weights": [round(float(w), 6) for w in weights],
        "winners": winners(made),
        "rows": made,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    show(parts(report), Console())
    command.write(report, args.out / "selectors.json", page(report))
    return 0


def page(report: dict[str, Any]) -> str:
    """The report as one page."""
    lead = (
        f"`{report['command']}`; {report['pictures']} validation pictures, "
        f"{report['questions']} questions."
    )
    return html("Which tokens to keep", lead, parts(report))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("selectors", __doc__)
    parser.add_argument("--edge", default="edge-a", help="edge model; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--train-pictures", type=int, default=256, help="default: %(default)s")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=SHARES,
        metavar="SHARE",
        help="budgets, as shares of the image tokens; default: 1/12, 1/6, 1/3 and 1/2",
    )
    parser.add_argument(
        "--coarseness",
        type=float,
        default=4.0,
        help="rounding, in multiples of the bundle's finest steps; default: %(default)s",
    )
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--pool", type=Path, default=Path("build/pool"), help="rendered pictures")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="pairs of caches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
