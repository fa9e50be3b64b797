"""`python -m benchmarks.selectors`: which tokens to keep, every selector at every budget.

Knows the reference pair, its bundle and the yard's validation split (choices are made there, so no
test picture is looked at). Everything goes through the served path: `Encoder.encode`, the bundle's
backend, the frozen large model. Random and uniform are in every table and plot, and so is what
needs no selector: all tokens sent, the quiet ones as zeros.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from projector.bundle.load import Bundle
from projector.calibration import ladder
from projector.calibration.ladder import Found, Judge
from projector.codec.encoder import Encoder
from projector.codec.select import DEFAULT, SELECTORS
from projector.models.autocast import product_type, said
from projector.models.vlm import VLM
from projector.training.corpus import SHARD_PICTURES, collect
from projector.validation.estimate import paired
from protos.errors import BridgeError
from protos.points import OperatingPoint
from protos.state import KVState
from reference.split import Split

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "reference"
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
    """One row per selector and budget, and those without a selector.

    Args:
        judge: of the held-out pictures.
        encoder: with task weights.
        coarseness: of the latents' rounding, as multiples of the finest steps.
        training: what entropy tables are fitted to, for each row apart.
        budgets: tokens kept.
    """
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
    """Per budget the selector with the most right answers, and how the default does there."""
    best = {}
    for budget in sorted({row["budget"] for row in made if row["budget"]}):
        here = {r["selector"]: r["accuracy"] for r in made if r["budget"] == budget}
        best[str(budget)] = {
            "best": max(here, key=lambda name: here[name]),
            "accuracy": max(here.values()),
            **{name: here[name] for name in (DEFAULT, *CONTROLS)},
        }
    return best


def plot(made: Sequence[dict[str, Any]], native: float, by: str, label: str) -> str:
    """Accuracy against tokens or bytes, one line per selector, as an SVG element."""
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    whole = next(row for row in made if row["selector"] == "none" and not row["quiet"])
    for name in dict.fromkeys(row["selector"] for row in made):
        mine = [row for row in made if row["selector"] == name]
        if by == "budget" and name == "none":
            continue
        line = sorted([*mine, *([] if name == "none" else [whole])], key=lambda r: r[by] or 1e9)
        axes.plot(
            [row[by] or max(r["budget"] for r in made) * 4 / 3 for row in line],
            [100 * row["accuracy"] for row in line],
            {"uniform": "k--", "random": "k:"}.get(name, "o-"),
            label="all tokens, quiet ones as zeros" if name == "none" else name,
            markersize=3.5,
        )
    axes.axhline(100 * native, color="grey", linewidth=0.8, label="large model, own cache")
    axes.set_xlabel(label)
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def page(report: dict[str, Any]) -> str:
    """The report as one page."""
    columns = ("selector", "budget", "quiet", "payload_bytes", "accuracy", "dropped_attention")
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[c]))}</td>" for c in columns) + "</tr>"
        for row in report["rows"]
    )
    plots = plot(report["rows"], report["native"], "budget", "image tokens kept")
    plots += plot(report["rows"], report["native"], "payload_bytes", "payload, bytes per picture")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Selectors</title>"
        "<style>body{font-family:sans-serif;max-width:60em;margin:2em auto}"
        "td,th{padding:.1em .8em;text-align:right}</style>"
        f"<h1>Which tokens to keep</h1><p>{html.escape(report['command'])}; "
        f"{report['pictures']} validation pictures, {report['questions']} questions.</p>"
        f"{plots}<table><tr>{head}</tr>{body}</table></html>\n"
    )


def show(report: dict[str, Any], console: Console) -> None:
    """Accuracy in a table, selectors down, budgets across."""
    made = report["rows"]
    budgets = sorted({row["budget"] for row in made if row["budget"]})
    table = Table(title="accuracy in %, by tokens kept")
    table.add_column("selector")
    for budget in budgets:
        table.add_column(str(budget), justify="right")
    for name in SELECTORS:
        here = {r["budget"]: r["accuracy"] for r in made if r["selector"] == name}
        table.add_row(name, *(f"{100 * here[b]:.1f}" for b in budgets))
    console.print(table)
    for row in made:
        if row["selector"] == "none":
            console.print(
                f"all tokens, quiet below {row['quiet']:g}: {row['payload_bytes']:.1f} bytes, "
                f"{100 * row['accuracy']:.1f} %"
            )


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
        "command": "python -m benchmarks.selectors " + " ".join(sys.argv[1:]),
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
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "selectors.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "selectors.html").write_text(page(report))
    show(report, Console())
    print(f"wrote {args.out / 'selectors.json'} and {args.out / 'selectors.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    parser.add_argument("--models", type=Path, default=REFERENCE / "models")
    parser.add_argument("--bundle", type=Path, default=REFERENCE / "bundles" / "edge-a-cloud")
    parser.add_argument("--pool", type=Path, default=Path("build/pool"), help="rendered pictures")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="pairs of caches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    try:
        return bench(parser.parse_args(argv))
    except BridgeError as error:
        print(f"selectors: {error.name}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
