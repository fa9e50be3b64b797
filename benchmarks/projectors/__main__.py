"""`make bench-projectors`: every family on every edge model, in one table.

Each seed leaves out another third of the training pictures. Choices were made on validation;
accuracy is measured on the test split and on the shifted one (night, fog, unseen grounds), which
are never trained on. Finished figures are kept in `--work`, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from benchmarks.projectors import machine, page
from benchmarks.projectors.arms import (
    NO_BOUND,
    alone,
    bounds,
    closed,
    controls,
    row,
    shipped,
    trained,
    trained_apart,
)
from benchmarks.projectors.edge import CALIBRATION_PICTURES, FOLDS, SPLITS, EdgeModel
from benchmarks.projectors.figures import summarise
from benchmarks.projectors.journal import Journal
from benchmarks.projectors.members import (
    CLOSED,
    DEFAULT,
    DESCENDED,
    FINALISTS,
    FOCUS,
    FOCUSED,
    TASK,
    label,
)
from projector.bundle.load import Bundle
from projector.maps import Map
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.ridge import Ridge
from projector.models.vlm import VLM
from projector.validation.answers import PRECISIONS
from projector.validation.estimate import clustered
from reference.demo.halves import BUNDLES, MODELS
from reference.report.parts import show


def measure_edge(
    edge: EdgeModel, journal: Journal, args: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Controls and rows of one edge model."""
    steps, about = (args.reconstruct_steps, args.task_steps), edge.about
    jobs: list[tuple[list[Any], Callable[[], Any]]] = []
    jobs.append((["controls", *about], partial(controls, edge)))
    jobs.append((["alone", *about], partial(alone, edge)))

    def add(key: list[Any], name: str, seed: int, make: Callable[[], tuple[Map, float]]) -> None:
        """Queue a map's row and, from the same map, its bound."""
        made: list[tuple[Map, float]] = []

        def measured() -> dict[str, Any]:
            made.append(make())
            return row(edge, made[0][0], name, seed, made[0][1])

        def bounded() -> dict[str, float | None]:
            return bounds(edge, (made.pop() if made else make())[0])

        jobs.append((key, measured))
        jobs.append((["bound", CALIBRATION_PICTURES, *key], bounded))

    for seed in range(args.seeds):
        for member in CLOSED:
            key = ["closed", *about, label(member), asdict(member), seed]
            add(key, label(member), seed, partial(closed, edge, member, seed))
        for member in FOCUSED:
            key = ["focused", *about, label(member), asdict(member), seed]
            make = partial(closed, edge, member, seed, focus=True)
            add(key, label(member) + FOCUS, seed, make)
    for dtype in PRECISIONS:
        key = ["precision", *about, asdict(DEFAULT), dtype]
        add(key, f"{label(DEFAULT)} {dtype}", 0, partial(closed, edge, DEFAULT, 0, dtype))
    for member in (*DESCENDED, *FINALISTS):
        name, here = label(member), (0 if member.closed else steps[0], steps[1])
        if member in DESCENDED:
            here = (steps[0] // 2, 0)  # their steps cost the most, and they do not lead
        else:
            name += TASK
        key = ["trained", *about, name, asdict(member), here]
        add(key, name, 0, partial(trained, edge, member, here, name))
    unbounded: list[tuple[list[Any], Callable[[], Any]]] = []
    description = BUNDLES / f"{edge.name}-cloud" / "bundle.json"
    if description.exists():
        digest = json.loads(description.read_text())["digest"]
        unbounded.append((["shipped", *about, digest], partial(shipped, edge)))
        certificate = json.loads(description.with_name("certificate.json").read_text())
        seed = certificate.get("training", {}).get("seed", 0)
        unbounded += [(["trained apart", *about, d], m) for d, m in trained_apart(edge, seed)]
    bar = tqdm([*jobs, *unbounded], desc=f"{edge.name}: controls, maps, bounds", unit="figure")
    found, own, *figures = [journal.get(key, make) for key, make in bar]
    split = len(figures) - len(unbounded)
    pairs = zip(figures[:split:2], figures[1:split:2], strict=True)
    rows = [one | limit for one, limit in pairs]
    rows += [one | NO_BOUND for one in figures[split:] if one is not None]
    for part in SPLITS:
        found[part]["edge_only"] = own[part]
    return found, rows


def measure_machine(edge: EdgeModel, journal: Journal) -> dict[str, Any]:
    """Times of every family; damage and throughput of the default bundle."""
    layouts = edge.source.layout, edge.target.layout
    bundle = Bundle.load(BUNDLES / f"{edge.name}-cloud", *layouts)

    def members() -> Iterator[tuple[str, Map]]:
        moments, _ = edge.moments(0)
        for member in (*CLOSED, *DESCENDED, FINALISTS[-1]):
            name = label(member)
            yield (
                (f"{name} r={member.r}" if isinstance(member, LowRank) else name),
                member.build(*layouts, moments),
            )

    def flipped() -> dict[str, Any]:
        seen = edge.source.prefill([edge.data["test"].picture(0)])
        return machine.bit_flips(bundle, edge.source.states(seen)[0], edge.args.work)

    measured: dict[str, Callable[[], Any]] = {
        "ridge_over_gemm": machine.ridge_over_gemm,
        "ort_over_eager": lambda: machine.ort_over_eager(bundle, members()),
        "bit_flips": flipped,
        "verify_mb_s": lambda: machine.verify_mb_s(bundle, edge.args.work),
    }
    key = [bundle.digest, edge.args.threads]
    return {
        name: journal.get(["machine", name, *key], make)
        for name, make in tqdm(measured.items(), desc="machine", unit="figure")
    }


def compared(
    rows: Sequence[dict[str, Any]], found: dict[str, Any], edge: EdgeModel
) -> dict[str, dict[str, float]]:
    """Paired differences of accuracy that targets are about, with their intervals.

    Answers are averaged over the seeds that both sides share.
    """
    native, pictures = found["test"]["right"], found["test"]["pictures"]

    def right(name: str, rank: int | None = None) -> list[float]:
        chosen = [r for r in rows if r["family"] == name and rank in (None, r["rank"])]
        return list(np.mean([[c == "1" for c in r["right"]] for r in chosen], axis=0))

    def apart(one: list[float], other: list[float]) -> dict[str, float]:
        return clustered(np.subtract(one, other).tolist(), pictures).to_json()

    image = [float(c == "1") for c in native]
    groups = dict.fromkeys((r["family"], r["rank"]) for r in rows)
    best = max(groups, key=lambda name: np.mean(right(*name)))
    differences = {
        "best_minus_cloud_image": apart(right(*best), image),
        "ridge_minus_cloud_image": apart(right(Ridge.name), image),
        "low_rank_minus_ridge": apart(right(label(DEFAULT), DEFAULT.r), right(Ridge.name)),
    }
    if edge.source.layout.grid != edge.target.layout.grid:
        differences["mix_minus_interpolation"] = apart(
            right(Mix.name + TASK), right(label(DEFAULT) + TASK)
        )
    return differences


def bench(args: argparse.Namespace) -> int:
    """Measure, print, write after every edge model."""
    names = args.edges or sorted(path.name for path in args.models.glob("edge-*"))
    torch.set_num_threads(args.threads)
    journal = Journal(args.work / "finished.jsonl", args.fresh)
    target = VLM.load(args.models / "cloud")
    report: dict[str, Any] = {
        "command": command.command("projectors"),
        "pictures": {
            "test": args.pictures,
            "shifted": args.shifted_pictures,
            "train": args.train_pictures,
        },
        "questions_per_picture": 6,
        "controls_by_edge": {},
        "differences": {},
        "rows": [],
    }
    report |= measure_machine(EdgeModel(args.models / names[0], target, args), journal)
    torch.set_num_threads(args.threads)
    for name in names:
        edge = EdgeModel(args.models / name, target, args)
        found, rows = measure_edge(edge, journal, args)
        report["differences"][name] = compared(rows, found, edge)
        report["controls_by_edge"][name] = {
            part: {k: v for k, v in figures.items() if k not in ("right", "pictures")}
            for part, figures in found.items()
        }
        report["rows"] += [{k: v for k, v in r.items() if k != "right"} for r in rows]
        summarise(report)
        report["minutes"] = round(journal.seconds / 60, 1)
        command.write(report, args.out, page.page(report))
    show(page.parts(report), Console())
    print(json.dumps(report["controls_by_edge"], indent=1))
    return 0


def main() -> int:
    """Command line."""
    parser = command.parser(
        "projectors",
        "Every family of maps on every edge model: one table, one page. A run that was interrupted "
        "goes on where it stopped; --fresh measures all again.",
    )
    parser.add_argument("--edges", nargs="*", help="default: those in --models")
    parser.add_argument("--pictures", type=int, default=256, help="for test; default: %(default)s")
    parser.add_argument("--shifted-pictures", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--train-pictures", type=int, default=2048, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=FOLDS, choices=range(1, FOLDS + 1), help="of closed forms"
    )
    parser.add_argument("--reconstruct-steps", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--task-steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument(
        "--trainings",
        type=Path,
        default=command.ROOT / "build" / "recipes",
        help="folder of EDGE*/map, maps that reference.recipe trained with other seeds",
    )
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "projectors")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "projectors.json")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs finished")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
