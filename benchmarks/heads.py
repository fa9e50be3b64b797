"""`make bench-heads`: task heads on the reference bundle: fire, count, track and scene.

Every head is trained on the train split with the map frozen, and judged on pictures and sequences
of other splits. A seed sets a head's initial weights and its batches. Arms: `cloud_only` (the cloud
model's own state), `edge_only` (the edge model's), `latents` (what travels), `projected` (the map's
output), `projected_sent` (the same through the default operating point), `transferred` (the head of
`cloud_only`, unchanged, on `projected_sent`). Controls: the commonest class, the nearest place (for
tracking), and `other_picture` (the head of `projected`, given another picture's states).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import command
from projector.bundle.load import Bundle
from projector.heads.head import Head, HeadConfig
from projector.heads.judge import judge
from projector.heads.labels import Labels, read_labels
from projector.heads.lens import fit_lens, through_lens
from projector.heads.samples import Samples
from projector.heads.train import HeadSettings, train
from projector.heads.views import FrozenMap
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, collect
from projector.training.dataset import Dataset
from reference.demo.halves import BUNDLES, CLOUD_MODEL, MODELS
from reference.export_yard import export, export_sequences
from reference.report.parts import Table, percent, show

TASKS = ("fire", "count", "track", "scene")
ARMS = {
    "cloud_only": ("native", False),
    "edge_only": ("edge", False),
    "latents": ("latents", False),
    "projected": ("projected", False),
    "projected_sent": ("projected", True),
}
"""A view, and whether latents pass through the default operating point."""
TRANSFERRED, OTHER = "transferred", "other_picture"
_QUESTIONS = 6
_HELD_OUT = 0.1
_LENS = 0.8  # lenses are fitted to this share of the training pictures, none of them held out
_FRAMES = 3

Floats = npt.NDArray[np.float32]


class Part:
    """A split's stills or sequences: pictures, labels, pairs."""

    def __init__(
        self, split: str, count: int, sequences: bool, pair: tuple[VLM, VLM], work: Path
    ) -> None:
        """Writes the pictures and collects the pairs; existing ones are not made again."""
        name = f"{split}-{'sequences-' if sequences else ''}{count}"
        folder = work / name
        if not (folder / "labels.jsonl").exists():
            (export_sequences if sequences else export)(folder, split, 0, count, _QUESTIONS)
        self.data = Dataset(folder)
        source, target = pair
        shards = work / f"corpora-{source.layout.fingerprint[:8]}" / name
        size = len(self.data)
        self.corpus: Corpus = collect(
            source, target, self.data.picture, size, shards, name, self.data.digest
        )

    def labels(self, task: str) -> Labels:
        """The samples of a task."""
        return read_labels(self.data, task)


class TaughtEdge:
    """One edge model, its bundle and its pairs."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        """Loads and collects."""
        self.name = name
        self._lenses: dict[tuple[str, bool, bool], tuple[Tensor, Tensor]] = {}
        self._seen: dict[tuple[int, str, bool, str, bool], Floats] = {}
        models = (MODELS / name, CLOUD_MODEL)
        source, target = (VLM.load(path) for path in models)
        pair, folder = (source, target), BUNDLES / f"{name}-cloud"
        info = Bundle.peek(folder)
        point = next(p.name for p in info.points if p.index == info.default_point)
        layouts = (source.layout, target.layout)
        self.maps = {
            False: FrozenMap.open(folder, *layouts),
            True: FrozenMap.open(folder, *layouts, point),
        }
        self.training = {
            False: Part("train", args.pictures, False, pair, args.work),
            True: Part("train", args.sequences, True, pair, args.work),
        }
        self.judging = {
            (split, tracked): Part(split, count, tracked, pair, args.work)
            for split in args.splits
            for tracked, count in ((False, args.test_pictures), (True, args.test_sequences))
        }

    def rows(self, task: str, seed: int, work: Path) -> Iterator[dict[str, Any]]:
        """Every arm of one task."""
        tracked = task == "track"
        training = self.training[tracked]
        trained: dict[str, Head] = {}
        for arm, (view, sent) in ARMS.items():
            head = self._head(training, task, view, sent, seed)
            states = self._states(head, training, view, sent)
            parts = training.labels(task).split(_HELD_OUT)
            learnt, held = (Samples.of(states, part, head.config.classes) for part in parts)
            folder = work / f"{self.name}-{task}-{arm}-{seed}"
            train(head, learnt, held, HeadSettings(seed=seed), folder)
            trained[arm] = head.eval()
            yield from self._judged(task, arm, seed, head, view, sent)
        native, projected = trained["cloud_only"], trained["projected"]
        yield from self._judged(task, TRANSFERRED, seed, native, "projected", True)
        yield from self._judged(task, OTHER, seed, projected, "projected", False)

    def _judged(
        self, task: str, arm: str, seed: int, head: Head, view: str, sent: bool
    ) -> Iterator[dict[str, Any]]:
        tracked = task == "track"
        for (split, sequences), part in self.judging.items():
            if sequences != tracked:
                continue
            labels = part.labels(task)
            states = self._states(head, part, view, sent)
            if arm == OTHER:
                states = np.roll(states, _FRAMES if tracked else 1, axis=0)
            samples = Samples.of(states, labels, head.config.classes)
            extra: dict[str, Any] = {}
            if arm == TRANSFERRED:
                native = self._states(head, part, "native", False)
                own = Samples.of(native, labels, head.config.classes)
                extra["variation"] = _variation(head, own, samples)
            place = {"edge_model": self.name, "split": split, "arm": arm, "seed": seed}
            yield {**place, **judge(head, samples), **extra}

    def _head(self, part: Part, task: str, view: str, sent: bool, seed: int) -> Head:
        """An untrained head; the lens of its states is fitted once for all tasks and seeds."""
        frozen, (training, _) = self.maps[sent], part.labels(task).split(_HELD_OUT)
        names = (
            map(str, range(1, training.objects + 1)) if training.objects else set(training.labels)
        )
        dim = next(frozen.look(view, part.corpus, np.arange(1))).shape[2]
        torch.manual_seed(seed)
        head = Head(
            HeadConfig(
                task=task,
                classes=tuple(sorted(names)),
                tracks=bool(training.objects),
                view=view,
                owner=frozen.owner(view),
                dim=dim,
                grid=frozen.grid(view),
                components=min(128, dim),
            )
        )
        key = (view, sent, bool(training.objects))
        if key not in self._lenses:
            fit_lens(head, frozen, part.corpus, np.arange(int(_LENS * len(part.corpus))))
            self._lenses[key] = (head.mean.clone(), head.lens.clone())
        head.mean.copy_(self._lenses[key][0])
        head.lens.copy_(self._lenses[key][1])
        return head

    def _states(self, head: Head, part: Part, view: str, sent: bool) -> Floats:
        """A part's states after the lens, kept for the next task and seed."""
        key = (id(part), head.config.view, head.config.tracks, view, sent)
        if key not in self._seen:
            self._seen[key] = through_lens(head, self.maps[sent], view, part.corpus)
        return self._seen[key]

    def relative_l2(self, split: str) -> float:
        """`||y - y'|| / ||y||` of arriving states, in z-scores of the target, over stills."""
        corpus, frozen = self.judging[split, False].corpus, self.maps[True]
        some = self.training[False].corpus.y[:256].astype(np.float32)
        mean, scale = some.mean(axis=(0, 1)), some.std(axis=(0, 1)) + 1e-6
        wrong = total = 0.0
        both = (frozen.look(view, corpus) for view in ("projected", "native"))
        for got, want in zip(*both, strict=True):
            wrong += float(np.square((want - got) / scale).sum())
            total += float(np.square((want - mean) / scale).sum())
        return float((wrong / total) ** 0.5)


def _variation(head: Head, native: Samples, other: Samples) -> float:
    """Mean total variation distance of a head's answers to two sorts of states, 0 to 1."""
    rows = np.arange(len(native))
    with torch.inference_mode():
        p, q = (head.logits(samples, rows).softmax(-1) for samples in (native, other))
    return float(0.5 * (p - q).abs().sum(-1).mean())


def amplification(rows: list[dict[str, Any]], relative_l2: dict[str, float]) -> dict[str, Any]:
    """How much the head's answers move (D_task), and how much per unit of state error (C)."""
    found: dict[str, Any] = {}
    for row in rows:
        if "variation" in row:
            key = f"{row['split']} {row['task']}"
            found.setdefault(key, []).append(row["variation"])
    return {
        key: {"d_task": float(np.mean(v)), "c": float(np.mean(v)) / error if error > 0 else None}
        for key, v in found.items()
        for error in (relative_l2[key.split()[0]],)
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Means over seeds, one line per edge model, split and arm."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["edge_model"], row["split"]), []).append(row)
    made = []
    for group, part in groups.items():
        for arm in (*ARMS, TRANSFERRED, OTHER, "majority", "nearest"):
            cells = []
            for task in TASKS:
                chosen = [r for r in part if r["task"] == task and arm in (r["arm"], *r)]
                values = [r["accuracy" if r["arm"] == arm else arm]["mean"] for r in chosen]
                cells.append(percent(float(np.mean(values))) if values else "")
            made.append((*group, arm.replace("_", " "), *cells))
    heads = ("edge", "split", "states", *(f"#{task}" for task in TASKS))
    return Table("Right answers in %, means over seeds", heads, made)


def main() -> int:
    """Command line."""
    parser = command.parser("heads", __doc__)
    parser.add_argument("--edges", nargs="*", default=["edge-a"], help="default: edge-a")
    parser.add_argument("--splits", nargs="*", default=["test", "shifted"])
    parser.add_argument("--pictures", type=int, default=2000, help="to train on")
    parser.add_argument("--test-pictures", type=int, default=500, help="per split")
    parser.add_argument("--sequences", type=int, default=800, help="to train on")
    parser.add_argument("--test-sequences", type=int, default=250, help="per split")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "heads")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "heads.json")
    return command.run(parser, bench)


def bench(args: argparse.Namespace) -> int:
    """Measure, write after every task, print."""
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "command": command.command("heads"),
        "rows": rows,
        "states": {},
    }
    for name in args.edges:
        edge = TaughtEdge(name, args)
        errors = {split: edge.relative_l2(split) for split in args.splits}
        for task in TASKS:
            for seed in range(args.seeds):
                rows += edge.rows(task, seed, args.work / "state")
            mine = [row for row in rows if row["edge_model"] == name]
            report["states"][name] = {
                "relative_l2": errors,
                "amplification": amplification(mine, errors),
            }
            report["minutes"] = round((time.monotonic() - begun) / 60, 1)
            command.write(report, args.out)
    show([table(rows)], Console())
    print(json.dumps(report["states"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
