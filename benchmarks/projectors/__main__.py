"""`make bench-projectors`: every family on every edge model, in one table.

A seed leaves out another third of the training pictures. Choices were made on validation; accuracy
is measured on the test split and on the shifted one (night, fog, unseen grounds), never trained on.
What is finished is kept in `--work`, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from benchmarks.projectors import machine, page
from projector.bundle.files import write_files
from projector.bundle.load import Bundle
from projector.maps import Family, Map
from projector.maps.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.maps.bidirectional import Bidirectional
from projector.maps.cloud_half import CloudHalf
from projector.maps.linear import Linear
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.moments import Moments
from projector.maps.procrustes import Procrustes
from projector.maps.ridge import Ridge
from projector.maps.shared import Shared
from projector.maps.trainable import LowRankMap
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, collect
from projector.training.dataset import Dataset
from projector.training.fit import edge_answers, moments_of, untrained_edge_states
from projector.training.sensitivity import token_weights
from projector.training.train import Trainer, TrainSettings
from projector.validation.bounds import Bound, through_fp8
from projector.validation.estimate import clustered, same_answer
from projector.validation.validate import PRECISIONS, Answers, Validator, reconstruction
from protos.errors import BridgeError, FitError
from reference.build_bundle import TRAINED
from reference.demo.halves import BUNDLES, MODELS
from reference.export_yard import export
from reference.report.parts import show

DEFAULT = LowRank(r=64)
"""The W-Matrix at the rank that has a target; the one that is also measured in fewer bits."""

CLOSED: tuple[Family, ...] = (
    Ridge(),
    Ridge(spread=False),
    Ridge(choose=True),
    Ridge(layers="best", best_layers=2),
    Ridge(layers="last", best_layers=2),
    *(LowRank(r=r) for r in (8, 16, 32, 64, 128)),
    LowRank(r=64, spread=False),
    LowRank(r=64, start="covariance"),
    Procrustes(),
    Procrustes(softness=0.5),
    Shared(),
    Bidirectional(),
    Truncate(),
    ZeroPad(),
    Interpolate(),
    Autoencoder(),
)
"""Fitted in closed form, with every seed."""

FOCUSED: tuple[Family, ...] = (Ridge(), Ridge(choose=True), DEFAULT)
"""In closed form too, each token weighed by what the answers depend on, with every seed."""

DESCENDED: tuple[Family, ...] = (Linear(), MLP())
"""Have no closed form: reconstruction by gradient, one seed."""

FINALISTS: tuple[Family, ...] = (
    DEFAULT,
    Ridge(),
    Mix(inner="low_rank", config={"r": DEFAULT.r}, width=256, depth=2),
)
"""Then trained through the frozen model, one seed; reconstruction first where it is not closed."""

NO_BOUND: dict[str, float | None] = dict.fromkeys(
    ("bound_violations", "bound_over_actual", "estimate_over_actual")
)
SPLITS = ("test", "shifted")
TASK = " + task loss"
FOCUS = " + focus"
FOLDS = 3
CALIBRATION_PICTURES = 640
"""Of validation, that bounds are calibrated on."""


def label(member: Family) -> str:
    """A member's name with the settings that differ from its defaults; its rank is a column."""
    changed = {k: v for k, v in asdict(member).items() if v != asdict(type(member)())[k]}
    if member.name == Mix.name:
        changed = {}
    return member.name + "".join(f" {k}={v}" for k, v in changed.items() if k != "r")


class Journal:
    """What an earlier run has finished: one JSON line per figure, under all that determines it."""

    def __init__(self, path: Path, fresh: bool) -> None:
        """Reads it; a line that was cut short is dropped."""
        self.path, self.found, self.seconds = path, {}, 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        whole = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if whole and not whole[-1].endswith(b"\n"):
            os.truncate(path, sum(map(len, whole[:-1])))
            whole = whole[:-1]
        for line in whole:
            entry = json.loads(line)
            self.found[entry["key"]] = entry

    def get(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """The figure of that key, measured if it is not there."""
        name = json.dumps(key)
        if name not in self.found:
            begun = time.perf_counter()
            value = make()
            entry = {"key": name, "seconds": time.perf_counter() - begun, "value": value}
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self.found[name] = entry
        self.seconds += self.found[name]["seconds"]
        return self.found[name]["value"]


def split(folder: Path, name: str, count: int, questions: int) -> Dataset:
    """A split of the yard as a folder of pictures; written once."""
    path = folder / f"{name}-{count}-{questions}"
    if not (path / "questions.jsonl").exists():
        export(path, name, 0, count, questions)
    return Dataset(path)


class EdgeModel:
    """One edge model; pairs, moments and judges are made when they are first needed."""

    def __init__(self, path: Path, target: VLM, args: argparse.Namespace) -> None:
        """Loads the model only."""
        self.name, self.path, self.target, self.args = path.name, path, target, args
        self.source = VLM.load(path)
        self.work = args.work / f"{self.name}-{self.source.layout.fingerprint[:8]}"
        self._kept: dict[bool, list[tuple[Moments, float]]] = {}
        self.sizes = {
            "train": (args.train_pictures, 16),
            "test": (args.pictures, 6),
            "shifted": (args.shifted_pictures, 6),
        }

    @property
    def about(self) -> list[Any]:
        """All that determines a figure of this edge, besides the map."""
        layouts = [self.source.layout.fingerprint, self.target.layout.fingerprint]
        return [self.name, *layouts, sorted(self.sizes.items())]

    @cached_property
    def data(self) -> dict[str, Dataset]:
        """Pictures and questions per split."""
        return {name: split(self.args.work, name, *size) for name, size in self.sizes.items()}

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Pairs per split; shards that are there are not made again."""
        return {
            part: collect(
                self.source,
                self.target,
                data.picture,
                len(data),
                self.work / part,
                f"{self.name} {part}",
                data.digest,
            )
            for part, data in self.data.items()
        }

    @cached_property
    def _weights(self) -> tuple[npt.NDArray[np.float32], float]:
        """Of the training pictures' tokens, and the seconds they took; one pass for all edges."""
        whole, data = self.corpora["train"], self.data["train"]
        name = f"weights-{self.target.layout.fingerprint[:8]}-{data.digest[:8]}.npz"
        path = self.args.work / name
        if not path.exists():
            begun = time.perf_counter()
            trainer: Trainer[Any] = Trainer(
                None, whole, self.target, data.questions, TrainSettings(), self.work / "state"
            )
            found = token_weights(trainer)
            stream = io.BytesIO()
            np.savez(stream, weights=found, seconds=time.perf_counter() - begun)
            write_files(path.parent, {path.name: stream.getvalue()})
        with np.load(path, allow_pickle=False) as kept:
            return kept["weights"], float(kept["seconds"])

    def _folds(self, focus: bool) -> list[tuple[Moments, float]]:
        """Moments of each third of the training pictures, and the seconds they took."""
        if focus not in self._kept:
            whole, found = self.corpora["train"], []
            order = np.random.default_rng(0).permutation(len(whole))
            weights, spent = self._weights if focus else (None, 0.0)
            for fold in range(FOLDS):
                begun = time.perf_counter()
                chosen = np.sort(order[fold::FOLDS])
                part = Corpus(whole.x[chosen], whole.y[chosen], whole.attention[chosen])
                each = None if weights is None else weights[chosen]
                moments = moments_of(part, self.source, self.target, weights=each)
                found.append((moments, time.perf_counter() - begun + spent / FOLDS))
            self._kept[focus] = found
        return self._kept[focus]

    def moments(self, seed: int | None, focus: bool = False) -> tuple[Moments, float]:
        """Moments of all thirds but one (None: of all), and the seconds they took.

        What a fit chooses is judged on the third left out.
        """
        folds = self._folds(focus)
        chosen = [folds[i] for i in range(FOLDS) if i != seed]
        total = chosen[0][0]
        for moments, _ in chosen[1:]:
            total = total + moments
        held = None if seed is None else folds[seed][0]
        return replace(total, held=held), sum(seconds for _, seconds in chosen)

    @cached_property
    def judges(self) -> dict[str, Validator]:
        """One per split, for any map."""
        found = {}
        for part in SPLITS:
            data, corpus = self.data[part], self.corpora[part]
            nothing = TrainSettings(reconstruct_steps=0, task_steps=0)
            trainer: Trainer[Any] = Trainer(
                None, corpus, self.target, data.questions, nothing, self.work / "state"
            )
            found[part] = Validator(trainer, corpus, data)
        return found

    @cached_property
    def calibration(self) -> Corpus:
        """Pairs of validation pictures."""
        data = split(self.args.work, "validation", CALIBRATION_PICTURES, 1)
        folder, name = self.work / "validation", f"{self.name} validation"
        return collect(self.source, self.target, data.picture, len(data), folder, name, data.digest)

    def answers(self, made: Any) -> dict[str, Answers]:
        """Through a map, per split."""
        for judge in self.judges.values():
            judge.trainer.map = made
        return {part: judge.mapped() for part, judge in self.judges.items()}


def bits(right: Sequence[bool]) -> str:
    """Right and wrong answers as a text, kept so that any two maps can be compared in pairs."""
    return "".join("01"[one] for one in right)


def row(edge: EdgeModel, made: Any, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    answers, corpus = edge.answers(made), edge.corpora["test"]
    test, shifted = answers["test"], answers["shifted"]
    fit = reconstruction(made, corpus)
    return {
        "edge_model": edge.name,
        "family": name,
        "rank": made.rank if isinstance(made, Map) else made.down.shape[1],
        "seed": seed,
        "params": sum(p.numel() for p in made.parameters()),
        "accuracy": float(np.mean(test.right)),
        "interval": clustered(
            [float(r) for r in test.right], edge.judges["test"].pictures
        ).to_json(),
        "accuracy_shifted": float(np.mean(shifted.right)),
        "agreement": float(np.mean(test.full)),
        "cosine": fit["whole"]["cosine"],
        "mse": fit["whole"]["mse"],
        "rel_l2": fit["whole"]["relative_l2"],
        "r2_k": fit["keys"]["r2"],
        "r2_v": fit["values"]["r2"],
        "fit_seconds": round(seconds, 3),
        "right": bits(test.right),
    }


def bounds(edge: EdgeModel, made: Map) -> dict[str, float | None]:
    """How a map's bound fares on test, calibrated on validation; nothing where it has no bound."""
    try:
        bound = Bound.calibrate(made, edge.calibration)
    except FitError:
        return NO_BOUND  # no exact norm
    codec = through_fp8(made, edge.calibration)
    found = bound.check(made, edge.corpora["test"], codec)
    return {
        "bound_violations": found["violations"],
        "bound_over_actual": found["bound_over_actual"],
        "estimate_over_actual": found["estimate_over_actual"],
    }


def closed(
    edge: EdgeModel, member: Family, seed: int, dtype: str = "float32", focus: bool = False
) -> tuple[Map, float]:
    """A closed form, its weights rounded to a type, and the seconds that it took."""
    moments, gathered = edge.moments(seed, focus)
    begun = time.perf_counter()
    made = member.build(edge.source.layout, edge.target.layout, moments)
    seconds = gathered + time.perf_counter() - begun
    return (made if dtype == "float32" else made.in_precision(PRECISIONS[dtype])), seconds


def trained(
    edge: EdgeModel, member: Family, steps: tuple[int, int], name: str
) -> tuple[Map, float]:
    """A map trained by gradient: reconstruction, then through the frozen model; and its seconds."""
    moments, gathered = edge.moments(None)
    begun = time.perf_counter()
    torch.manual_seed(0)
    made = member.build(edge.source.layout, edge.target.layout, moments)
    # What starts from its closed form is moved with care: a high rate undoes it first.
    settings = TrainSettings(
        reconstruct_steps=steps[0], task_steps=steps[1], rate=1e-3, task_rate=2e-4
    )
    trainer = Trainer(
        made,
        edge.corpora["train"],
        edge.target,
        edge.data["train"].questions,
        settings,
        edge.work / "".join(c if c.isalnum() else "-" for c in name),
        about=json.dumps([*edge.about, name, asdict(member)]),
    )
    trainer.run()
    return made.eval(), gathered + time.perf_counter() - begun


def shipped(edge: EdgeModel) -> dict[str, Any] | None:
    """The reference bundle for this edge, latents not rounded; None if there is no such bundle."""
    try:
        bundle = Bundle.load(BUNDLES / f"{edge.name}-cloud", edge.source.layout, edge.target.layout)
        half = CloudHalf.from_bytes(bundle.cloud.weights)
    except BridgeError as error:
        print(f"{edge.name}: no bundle in the table: {error.message}", file=sys.stderr)
        return None
    encoder = bundle.encoder
    x_mean, x_scale = torch.from_numpy(encoder.x_mean), torch.from_numpy(encoder.x_scale)
    made = LowRankMap(
        x_mean,
        x_scale,
        x_mean.expand(edge.source.layout.tokens, -1),
        torch.from_numpy(encoder.projection),
        torch.ones(encoder.rank),
        half,
    )
    training = bundle.certificate.get("training", {})
    minutes = training.get("minutes", 0.0)
    return row(edge, made.eval(), page.BUNDLED, training.get("seed", 0), 60.0 * minutes)


def trained_apart(edge: EdgeModel, seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Maps trained as a bundle's is, by `reference.build_bundle --seed N --train-only`.

    Returns:
        Digest of each, and what makes its row.
    """
    layouts = [vlm.layout.fingerprint for vlm in (edge.source, edge.target)]
    found: dict[int, tuple[str, Callable[[], dict[str, Any]]]] = {}
    for path in sorted(edge.args.trainings.glob(f"map-{edge.name}-*/{TRAINED}")):
        blob = path.read_bytes()
        made, about = LowRankMap.from_bytes(blob)
        other = about["settings"]["seed"]
        if about.get("models") == layouts and other != seed:
            minutes = 60.0 * about["minutes"]
            make = partial(row, edge, made.eval(), page.BUNDLED, other, minutes)
            found[other] = hashlib.sha256(blob).hexdigest(), make
    return list(found.values())


def controls(edge: EdgeModel) -> dict[str, Any]:
    """What must do badly, and what it is measured against, per split."""
    moments, _ = edge.moments(0)
    made = DEFAULT.build(edge.source.layout, edge.target.layout, moments)
    found: dict[str, Any] = {}
    for part, judge in edge.judges.items():
        judge.trainer.map = made
        floor = untrained_edge_states(
            edge.path, made, edge.corpora[part], edge.data[part], edge.target
        )
        arms = {"cloud_image": judge.native(), **judge.controls(floor)}
        right, where = judge.other_labels()
        found[part] = {name: float(np.mean(arm.right)) for name, arm in arms.items()} | {
            "other_picture_labels": float(np.mean(right)),
            "other_picture_where_labels_tell": float(
                np.mean([arms["other_picture"].right[i] for i in where])
            ),
            "right": bits(arms["cloud_image"].right),
            "pictures": judge.pictures,
        }
    return found


def alone(edge: EdgeModel) -> dict[str, float]:
    """The edge model's own answers, share right per split: what a map has to beat."""
    found = {}
    for part, judge in edge.judges.items():
        asked = [(one.picture, one.text) for one in judge.asked]
        given = edge_answers(edge.source, edge.data[part], asked)
        right = [same_answer(a, one.answer) for a, one in zip(given, judge.asked, strict=True)]
        found[part] = float(np.mean(right))
    return found


def measure_edge(
    edge: EdgeModel, journal: Journal, args: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Controls and rows of one edge model."""
    steps, about = (args.reconstruct_steps, args.task_steps), edge.about
    jobs: list[tuple[list[Any], Callable[[], Any]]] = []
    jobs.append((["controls", *about], partial(controls, edge)))
    jobs.append((["alone", *about], partial(alone, edge)))

    def add(key: list[Any], name: str, seed: int, make: Callable[[], tuple[Map, float]]) -> None:
        """A map's row and, from the same map, its bound."""
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
    """Times, damage and throughput, of the default bundle and of every family."""
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
    """Differences of accuracy that targets are about, in pairs of answers, with their intervals.

    Over the seeds that both sides share, answers averaged.
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
        page.summarise(report)
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
    parser.add_argument("--pictures", type=int, default=256, help="of test; default: %(default)s")
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
        default=command.ROOT / "build" / "training",
        help="where reference.build_bundle --train-only left maps of other seeds",
    )
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "projectors")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "projectors.json")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs finished")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
