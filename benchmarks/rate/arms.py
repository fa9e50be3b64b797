"""Every arm that sends something and gets answers, as rows of one table.

Answers are computed in this process from the bytes that would have travelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.compare.arms import Frame, Pair, seeing
from benchmarks.compare.wire import Shot
from benchmarks.guard import certainty
from benchmarks.rate import describe
from benchmarks.rate.pictures import Rival, bare_bytes, worn
from projector.codec.risk import RiskModel, features, losses_of
from projector.models.vlm import VLM
from projector.validation.estimate import clustered, paired
from protos.distortion import Distortion
from protos.points import OperatingPoint
from protos.state import KVState
from reference.demo.terminal import Terminal
from reference.demo.testset import TestSet
from reference.yard import sample_scenes

Advance = Callable[[int], None]
HEAD_PICTURES = 12_288
GUARDED_AT_ONCE = 32


@dataclass(frozen=True)
class Baseline:
    """The questions, and which the cloud model answers right when it sees the pictures."""

    test: TestSet
    native: Sequence[bool]

    def row(self, name: str, kind: str, answers: list[str], **figures: Any) -> dict[str, Any]:
        """One row: accuracy with its interval, and the paired difference from seeing it."""
        right = self.test.right(answers)
        clusters = self.test.clusters
        difference = paired(right, self.native, clusters)
        return {
            "name": name,
            "kind": kind,
            "edge_model": "",
            "seed": 0,
            "payload_bytes": None,
            "wire_bytes": None,
            "accuracy": round(float(np.mean(right)), 5),
            "accuracy_guarded": None,
            "interval": clustered([float(r) for r in right], clusters).to_json(),
            "minus_cloud_image": difference.to_json(),
            **figures,
        }


class Edge:
    """One edge model with its bundle, and every picture's state."""

    def __init__(
        self, name: str, models: Path, bundle: Path, test: TestSet, advance: Advance
    ) -> None:
        """Loads the pair and prefills the pictures.

        Raises:
            BridgeError: the bundle does not fit the models.
        """
        self.name = name
        self.pair = Pair.load(models / name, models / "cloud", bundle)
        self.states: list[KVState] = []
        for at in range(0, len(test.pictures), 256):
            self.states += self.pair.states(test.pictures[at : at + 256])
            advance(len(self.states) - at)

    @property
    def points(self) -> list[OperatingPoint]:
        """The bundle's points, without pictures and without floats, which nobody would send."""
        skipped = ("picture", "none")
        points = self.pair.bundle.encoder.points
        return [p for p in points if p.kind not in skipped and p.quantizer not in skipped]

    def frames(self, point: OperatingPoint) -> list[Frame]:
        """Every picture at one operating point."""
        return [self.pair.encode(state, point) for state in self.states]

    def flat(self) -> npt.NDArray[np.float32]:
        """The states, `[n, N, d_s]`."""
        return np.stack([state.flat() for state in self.states])


def ours(
    edge: Edge, judge: Baseline, wire: Callable[[Sequence[Shot]], dict[str, float]], show: Terminal
) -> list[dict[str, Any]]:
    """Every operating point of a bundle; `right` says which of its answers are right."""
    rows = []
    asked = [(q.picture, q.text) for q in judge.test.asked]
    for point in edge.points:
        frames = edge.frames(point)
        counted = wire([frame.shot for frame in frames])
        with show.stage(f"{edge.name}: {point.name}", len(asked)) as advance:
            answers = edge.pair.injected(frames, asked, advance)
        rows.append(
            judge.row(
                point.name,
                "ours",
                answers,
                edge_model=edge.name,
                payload_bytes=counted["payload_mean"],
                wire_bytes=counted["mean"],
                tokens=point.tokens,
                rank=point.rank,
                quiet=point.quiet,
                quantizer=point.quantizer,
                default=point.index == edge.pair.bundle.info.default_point,
                right="".join("01"[right] for right in judge.test.right(answers)),
            )
        )
    return rows


@dataclass(frozen=True, eq=False)
class Guarded:
    """Inputs of a bundle's guard, and the results of sending the picture instead.

    Attributes:
        risk: the bundle's risk model; None if it has none: then nothing is guarded.
        rows: the picture that each question is about, `[Q]`.
        found: features of every question, `[Q, F]`; the frame's own losses are filled in later.
        right_sent: whether the cloud model answers right from the picture as WebP, `[Q]`.
        sent_bytes: bytes on the wire of each picture as WebP, `[n]`.
    """

    risk: RiskModel | None
    rows: npt.NDArray[np.int64]
    found: npt.NDArray[np.float32]
    right_sent: npt.NDArray[np.bool_]
    sent_bytes: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        edge: Edge,
        test: TestSet,
        right_sent: Sequence[bool],
        sent_bytes: npt.NDArray[np.float64],
        advance: Advance,
    ) -> Guarded:
        """Ask the edge model how sure it is of its own answers."""
        encoder = edge.pair.bundle.encoder
        rows = np.array([q.picture for q in test.asked])
        found: list[npt.NDArray[np.float32]] = []
        for first in range(0, len(test.pictures), GUARDED_AT_ONCE):
            part = [q for q in test.asked if first <= q.picture < first + GUARDED_AT_ONCE]
            here = [replace(q, picture=q.picture - first) for q in part]
            pictures = test.pictures[first : first + GUARDED_AT_ONCE]
            moved = [
                encoder.project(state.flat()) - encoder.centre
                for state in edge.states[first : first + GUARDED_AT_ONCE]
            ]
            found += [
                features(Distortion(), q.text, chances, moved[q.picture])
                for q, chances in zip(here, certainty(edge.pair.edge, pictures, here), strict=True)
            ]
            advance(len(part))
        return cls(encoder.risk, rows, np.stack(found), np.array(right_sent), sent_bytes)

    def figures(
        self, frames: Sequence[Frame], right: npt.NDArray[np.bool_], wire_bytes: float
    ) -> dict[str, Any]:
        """`accuracy_guarded`, `wire_bytes_guarded`, `pictures_sent_share`; empty without a guard.

        Args:
            frames: every picture's frame at one operating point.
            right: whether the answers from these frames are right, `[Q]`.
            wire_bytes: mean bytes on the wire of such a frame.
        """
        losses = [frame.shot.distortion for frame in frames]
        if self.risk is None or any(one is None for one in losses):
            return {}
        found = self.found.copy()
        own = np.stack([losses_of(one) for one in losses if one is not None])
        found[:, : own.shape[1]] = own[self.rows]
        over = self.risk.risk(found) > self.risk.limit
        sent = np.where(over, self.sent_bytes[self.rows], wire_bytes)
        return {
            "accuracy_guarded": round(float(np.where(over, self.right_sent, right).mean()), 5),
            "wire_bytes_guarded": round(float(sent.mean()), 1),
            "pictures_sent_share": round(float(over.mean()), 4),
        }


def picture_row(rival: Rival, cloud: VLM, judge: Baseline, show: Terminal) -> dict[str, Any]:
    """One picture codec; the cloud decodes the file and sees the result.

    `wire_bytes` are the file's, without the transport's.
    """
    files = [rival.encode(picture) for picture in judge.test.pictures]
    with show.stage(rival.name, len(judge.test.asked)) as advance:
        answers = seeing(cloud, worn(files), judge.test.asked, advance)
    payload = round(float(np.mean([len(file) for file in files])), 1)
    return judge.row(
        rival.name,
        "image",
        answers,
        payload_bytes=payload,
        wire_bytes=payload,
        bare_bytes=round(float(np.mean([bare_bytes(file) for file in files])), 1),
    )


def described(edge: Edge, judge: Baseline, args: Any, show: Terminal) -> list[dict[str, Any]]:
    """Lists of things read off the edge's states, by one head per seed.

    `wire_bytes` are the payload's, without the transport's.
    """
    grid = edge.pair.edge.layout.grid
    reader = describe.Reader(grid)
    asked = [(q.picture, q.text) for q in judge.test.asked]
    with show.stage(f"{edge.name}: states of training pictures", args.head_pictures) as advance:
        x = train_states(edge, args.head_pictures, advance)
    states = edge.flat()
    rows = []
    for seed in range(args.seeds):
        with show.stage(f"{edge.name}: head {seed} that reads things", args.head_steps) as advance:
            head = describe.train(x, grid, args.head_steps, seed, advance)
        things = describe.read(head, states)
        packed = [describe.pack(one, grid[0] * grid[1]) for one in things]
        received = [describe.unpack(data, grid[0] * grid[1]) for data in packed]
        payload = round(float(np.mean([len(data) for data in packed])), 1)
        rows.append(
            judge.row(
                "list of things, answered by rules",
                "rival",
                reader.answers(received, asked),
                edge_model=edge.name,
                seed=seed,
                payload_bytes=payload,
                wire_bytes=payload,
            )
        )
    return rows


def train_states(edge: Edge, count: int, advance: Advance) -> npt.NDArray[np.float32]:
    """States of the first pictures of the train split, `[n, N, d_s]` float16."""
    from reference.yard import render

    found = []
    for at in range(0, count, 256):
        block = render(sample_scenes("train", at, 256))
        states = edge.pair.states([Image.fromarray(picture) for picture in block])
        found.append(np.stack([state.flat() for state in states]).astype(np.float16))
        advance(len(block))
    return np.concatenate(found)
