"""`make bench-projectors`: every family on every edge model, in one table.

Knows which members are compared and how each figure is counted; the fitting and judging are
`projector`'s. A seed draws which pictures a map is fitted to. Choices were made on validation;
accuracy is measured on the test split and on the shifted one (night and fog), never trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from projector.backends import CloudFiles
from projector.backends.onnxruntime import OnnxRuntimeBackend
from projector.bounds import judge_bound
from projector.bundle import Bundle
from projector.corpus import Corpus, collect
from projector.damage import loader, read_files, survey
from projector.dataset import Dataset
from projector.estimate import clustered
from projector.families import Family, Map
from projector.families.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.families.bidirectional import Bidirectional
from projector.families.low_rank import LowRank
from projector.families.mix import Mix
from projector.families.procrustes import Procrustes
from projector.families.ridge import Ridge
from projector.families.shared import Shared
from projector.fit import moments_of, untrained_edge_states
from projector.maps.low_rank import CloudHalf
from projector.moments import Moments
from projector.moments import ridge as solve_ridge
from projector.train import Trainer, TrainSettings
from projector.validate import Validator, reconstruction
from projector.vlm import VLM
from protos.errors import BridgeError, FitError
from reference.export_yard import export

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "reference" / "models"
BUNDLE = ROOT / "reference" / "bundles" / "edge-a-cloud"

CLOSED: tuple[Family, ...] = (
    Ridge(),
    Ridge(layers="best", best_layers=2),
    Ridge(layers="last", best_layers=2),
    *(LowRank(r=r) for r in (8, 16, 32, 64, 128)),
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

FINALISTS: tuple[Family, ...] = (
    LowRank(r=64),
    Ridge(),
    Mix(inner="low_rank", config={"r": 64}, width=256, depth=2),
)
"""Then trained: reconstruction, and through the frozen model."""

PAIRS = 100_000


def label(member: Family) -> str:
    """A member's name with the settings that differ from its defaults."""
    changed = {k: v for k, v in asdict(member).items() if v != asdict(type(member)())[k]}
    return member.name + "".join(f" {k}={v}" for k, v in changed.items() if k != "r")


def split(folder: Path, name: str, start: int, count: int, questions: int) -> Dataset:
    """A split of the yard as a folder of pictures; written once."""
    path = folder / f"{name}-{start}-{count}-{questions}"
    if not (path / "questions.jsonl").exists():
        export(path, name, start, count, questions)
    return Dataset(path)


class Edge:
    """One edge model with its pairs."""

    def __init__(self, name: str, path: Path, target: VLM, args: argparse.Namespace) -> None:
        """Collects the pairs; shards that are there are not made again."""
        self.name, self.path, self.args = name, path, args
        self.source, self.target = VLM.load(path), target
        work = args.work / f"{name}-{self.source.layout.fingerprint[:8]}"
        self.data = {
            "train": split(args.work, "train", 0, args.train_pictures, 16),
            "test": split(args.work, "test", 0, args.pictures, 6),
            "shifted": split(args.work, "shifted", 0, args.pictures, 6),
        }
        self.corpora = {
            part: collect(
                self.source,
                target,
                data.picture,
                len(data),
                work / part,
                f"{name} {part}",
                data.digest,
            )
            for part, data in self.data.items()
        }

    def sample(self, seed: int) -> Corpus:
        """Two thirds of the training pictures, drawn by seed."""
        whole = self.corpora["train"]
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(whole), len(whole) * 2 // 3, replace=False))
        return Corpus(whole.x[chosen], whole.y[chosen], whole.attention[chosen])

    def judges(self, made: Any, folder: Path) -> dict[str, Validator]:
        """One per split."""
        found = {}
        for part in ("test", "shifted"):
            data, corpus = self.data[part], self.corpora[part]
            trainer = Trainer(
                made, corpus, self.target, data.questions, TrainSettings(), folder / part
            )
            found[part] = Validator(trainer, corpus, data)
        return found


def row(edge: Edge, made: Map, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    judges = edge.judges(made, edge.args.work / "state")
    test, shifted = judges["test"].mapped(), judges["shifted"].mapped()
    fit = reconstruction(made, edge.corpora["test"])
    figures: dict[str, Any] = {
        "edge_model": edge.name,
        "family": name,
        "rank": made.rank,
        "seed": seed,
        "params": made.parameters_count(),
        "accuracy": float(np.mean(test.right)),
        "interval": clustered([float(r) for r in test.right], judges["test"].pictures).to_json(),
        "accuracy_shifted": float(np.mean(shifted.right)),
        "agreement": float(np.mean(test.full)),
        "cosine": fit["whole"]["cosine"],
        "rel_l2": fit["whole"]["relative_l2"],
        "r2_k": fit["keys"]["r2"],
        "r2_v": fit["values"]["r2"],
        "bound_violations": None,
        "bound_over_actual": None,
        "estimate_over_actual": None,
        "fit_seconds": round(seconds, 3),
    }
    try:
        found = judge_bound(made, edge.corpora["test"])
    except FitError:
        return figures  # no exact norm, no bound
    return figures | {
        "bound_violations": found["violations"],
        "bound_over_actual": found["bound_over_actual"],
        "estimate_over_actual": found["estimate_over_actual"],
    }


def closed_forms(edge: Edge, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every closed form, every seed; the moments of a seed are made once."""
    rows = []
    with tqdm(total=len(seeds) * len(CLOSED), desc=f"{edge.name}: closed forms") as bar:
        for seed in seeds:
            begun = time.perf_counter()
            moments = moments_of(edge.sample(seed), edge.source, edge.target)
            gathered = time.perf_counter() - begun
            for member in CLOSED:
                begun = time.perf_counter()
                made = member.build(edge.source.layout, edge.target.layout, moments)
                seconds = gathered + time.perf_counter() - begun
                rows.append(row(edge, made, label(member), seed, seconds))
                bar.update(1)
    return rows


def finalists(edge: Edge, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The three finalists trained: reconstruction, then through the frozen model."""
    rows = []
    corpus = edge.corpora["train"]
    moments = moments_of(corpus, edge.source, edge.target)
    for number, member in enumerate(FINALISTS):
        begun = time.perf_counter()
        made = member.build(edge.source.layout, edge.target.layout, moments)
        settings = TrainSettings(
            reconstruct_steps=args.reconstruct_steps, task_steps=args.task_steps, rate=1e-3
        )
        folder = args.work / f"finalist-{edge.name}-{number}"
        trainer = Trainer(made, corpus, edge.target, edge.data["train"].questions, settings, folder)
        trainer.run()
        name = f"{label(member)} + task loss"
        rows.append(row(edge, made.eval(), name, 0, time.perf_counter() - begun))
    return rows


def controls(edge: Edge) -> dict[str, Any]:
    """What must do badly, and the two it is measured against, on test and shifted."""
    moments = moments_of(edge.sample(0), edge.source, edge.target)
    made = Ridge().build(edge.source.layout, edge.target.layout, moments)
    found: dict[str, Any] = {}
    for part, judge in edge.judges(made, edge.args.work / "state").items():
        floor = untrained_edge_states(edge.path, made, edge.corpora[part], edge.data[part].picture)
        arms = {"cloud_image": judge.native(), **judge.controls(floor)}
        found[part] = {name: float(np.mean(arm.right)) for name, arm in arms.items()}
    return found


def ridge_over_gemm() -> dict[str, float]:
    """Ridge on 100,000 pairs 512 -> 4096 against one NumPy GEMM of the same operations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((PAIRS, 512), dtype=np.float32)
    y = rng.standard_normal((PAIRS, 4096), dtype=np.float32)
    flops = 2 * PAIRS * 512 * (512 + 4096)
    inner = flops // (2 * 512 * 4096)
    a, b = y[:inner].T.copy(), x[:inner]
    ratios = []
    for _ in range(3):
        begun = time.perf_counter()
        moments = Moments.of((x[i : i + 4096], y[i : i + 4096]) for i in range(0, PAIRS, 4096))
        solve_ridge(*moments.normalised(), 1e-3)
        fitted = time.perf_counter() - begun
        begun = time.perf_counter()
        np.matmul(a[:, : len(b)], b)
        ratios.append((fitted, time.perf_counter() - begun))
    fit, gemm = (float(np.median([r[i] for r in ratios])) for i in (0, 1))
    return {"ridge_seconds": fit, "gemm_seconds": gemm, "ratio": fit / gemm, "gflop": flops / 1e9}


def ort_over_eager() -> list[dict[str, float]]:
    """The default bundle's cloud half: ONNX Runtime, eager torch and the bare GEMM."""
    info = Bundle.peek(BUNDLE)
    bundle = Bundle.load(BUNDLE, info.source, info.target)
    half = CloudHalf.from_bytes(bundle.cloud.weights)
    files: CloudFiles = bundle.cloud
    backend = OnnxRuntimeBackend(files, info.target, info.rank, threads=1)
    torch.set_num_threads(1)
    rows = []
    rng = np.random.default_rng(0)
    tokens = info.target.tokens
    positions = np.arange(tokens, dtype=np.int64)
    cos, sin = (torch.from_numpy(t) for t in info.target.rope.cos_sin(positions))
    wide = half.up.detach()
    for batch in (1, 4, 16):
        latents = rng.standard_normal((batch, tokens, info.rank), dtype=np.float32)
        kept = np.ones((batch, tokens), dtype=np.bool_)
        inner = torch.randn(batch * tokens, wide.shape[0])
        z, mask = torch.from_numpy(latents), torch.ones(batch, tokens)

        def eager(z: Any = z, mask: Any = mask) -> None:
            with torch.inference_mode():
                half(z, mask, cos, sin)

        def served(latents: Any = latents, kept: Any = kept) -> None:
            backend.project(latents, kept, positions)

        def bare(inner: Any = inner) -> None:
            with torch.inference_mode():
                torch.mm(inner, wide)

        times: dict[str, Callable[[], None]] = {
            "eager_ms": eager,
            "onnxruntime_ms": served,
            "gemm_ms": bare,
        }
        found = {name: _median_ms(call) for name, call in times.items()}
        rows.append(
            {
                "batch": batch,
                **found,
                "speedup": found["eager_ms"] / found["onnxruntime_ms"],
                "over_gemm": found["onnxruntime_ms"] / found["gemm_ms"],
            }
        )
    return rows


def _median_ms(call: Callable[[], None], rounds: int = 60) -> float:
    for _ in range(5):
        call()
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun)
    return round(1000 * float(np.median(spent)), 4)


def bit_flips() -> dict[str, Any]:
    """Damage to the default bundle: how much was tried, how much was accepted."""
    info = Bundle.peek(BUNDLE)
    files = read_files(BUNDLE)
    found = survey(loader(info.source, info.target), files, files, signed=False, most=400)
    return {
        "tried": sum(tally.tried for tally in found.values()),
        "accepted": sum(len(tally.accepted) for tally in found.values()),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The table, means over seeds."""
    table = Table(title="test split, means over seeds (accuracy in %)")
    for name in ("edge", "family", "rank", "params", "test", "shifted", "agree", "R² K", "R² V"):
        table.add_column(name, justify="left" if name in ("edge", "family") else "right")
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for one in report["rows"]:
        groups.setdefault((one["edge_model"], one["family"], one["rank"]), []).append(one)
    for (edge, family, rank), rows in groups.items():
        mean = {
            k: np.mean([r[k] for r in rows])
            for k in ("accuracy", "accuracy_shifted", "agreement", "r2_k", "r2_v")
        }
        table.add_row(
            edge,
            family,
            str(rank),
            f"{rows[0]['params']:,}",
            f"{100 * mean['accuracy']:.1f}",
            f"{100 * mean['accuracy_shifted']:.1f}",
            f"{100 * mean['agreement']:.1f}",
            f"{mean['r2_k']:.2f}",
            f"{mean['r2_v']:.2f}",
        )
    console.print(table)
    console.print(json.dumps(report["controls"], indent=1))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", nargs="*", help="default: those in --models")
    parser.add_argument("--pictures", type=int, default=512, help="of test and of shifted")
    parser.add_argument("--train-pictures", type=int, default=3072)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reconstruct-steps", type=int, default=300)
    parser.add_argument("--task-steps", type=int, default=300)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "projectors")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "projectors.json")
    args = parser.parse_args()
    try:
        return bench(args)
    except BridgeError as error:
        print(f"projectors: {error.name}: {error}", file=sys.stderr)
        return error.exit_code


def bench(args: argparse.Namespace) -> int:
    """Measure, print, write after every edge model."""
    edges = args.edges or sorted(path.name for path in args.models.glob("edge-*"))
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    target = VLM.load(MODELS / "cloud")
    report: dict[str, Any] = {
        "command": "python -m benchmarks.projectors " + " ".join(sys.argv[1:]),
        "ridge_over_gemm": ridge_over_gemm(),
        "ort_over_eager": ort_over_eager(),
        "bit_flips": {"bundle": bit_flips()},
        "controls": {},
        "rows": [],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in edges:
        edge = Edge(name, args.models / name, target, args)
        report["controls"][name] = controls(edge)
        report["rows"] += closed_forms(edge, range(args.seeds))
        report["rows"] += finalists(edge, args)
        report["minutes"] = round((time.monotonic() - begun) / 60, 1)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        show(report, Console())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
