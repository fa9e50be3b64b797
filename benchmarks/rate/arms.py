"""Every arm that sends something and gets answers, as rows of one table.

Knows the models, the bundles, the test set and how a row is counted; which rows there are is the
bench's to say. Answers are computed in this process from the bytes that would have travelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.rate import describe
from benchmarks.rate.pictures import Rival, bare_bytes, worn
from deploy.arms import Encoded, Pair, seeing
from deploy.measure import Bench, Plan, Show
from deploy.relay import Relay
from deploy.testset import TestSet
from deploy.wire import Service, Shot
from projector.estimate import clustered, paired
from projector.vlm import VLM
from protos.frame import OperatingPoint
from protos.layout import KVState
from reference.yard import sample_scenes

Advance = Callable[[int], None]
HEAD_PICTURES = 12_288


@dataclass(frozen=True)
class Judge:
    """The questions, and who was right when the large model saw the pictures."""

    test: TestSet
    native: Sequence[bool]

    def row(self, name: str, kind: str, answers: list[str], **figures: Any) -> dict[str, Any]:
        """One line: accuracy with its interval, and the paired difference from seeing."""
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
        """What the bundle can send, but for pictures."""
        return [p for p in self.pair.bundle.encoder.points if p.kind != "picture"]

    def frames(self, point: OperatingPoint) -> list[Encoded]:
        """Every picture at one operating point."""
        return [self.pair.encode(state, point) for state in self.states]

    def flat(self) -> npt.NDArray[np.float32]:
        """The states, `[n, N, d_s]`."""
        return np.stack([state.flat() for state in self.states])


def ours(
    edge: Edge, judge: Judge, wire: Callable[[Sequence[Shot]], dict[str, float]], show: Show
) -> list[dict[str, Any]]:
    """Every operating point of a bundle."""
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
                quantizer=point.quantizer,
            )
        )
    return rows


def picture_row(
    rival: Rival, cloud: VLM, judge: Judge, overhead: float, show: Show
) -> dict[str, Any]:
    """One picture codec; the cloud decodes the file and sees what is left."""
    files = [rival.encode(picture) for picture in judge.test.pictures]
    with show.stage(rival.name, len(judge.test.asked)) as advance:
        answers = seeing(cloud, worn(files), judge.test.asked, advance)
    payload = float(np.mean([len(file) for file in files]))
    return judge.row(
        rival.name,
        "image",
        answers,
        payload_bytes=round(payload, 1),
        wire_bytes=round(payload + overhead, 1),
        bare_bytes=round(float(np.mean([bare_bytes(file) for file in files])), 1),
    )


def described(edge: Edge, judge: Judge, overhead: float, args: Any) -> list[dict[str, Any]]:
    """A list of things read off the edge's states, three heads by seed."""
    grid = edge.pair.edge.layout.grid
    reader = describe.Reader(grid)
    asked = [(q.picture, q.text) for q in judge.test.asked]
    x = train_states(edge, args.head_pictures)
    states = edge.flat()
    rows = []
    for seed in range(args.seeds):
        head = describe.train(x, grid, args.head_steps, seed)
        things = describe.read(head, states)
        packed = [describe.pack(one, grid[0] * grid[1]) for one in things]
        received = [describe.unpack(data, grid[0] * grid[1]) for data in packed]
        payload = float(np.mean([len(data) for data in packed]))
        rows.append(
            judge.row(
                "list of things, answered by rules",
                "rival",
                reader.answers(received, asked),
                edge_model=edge.name,
                seed=seed,
                payload_bytes=round(payload, 1),
                wire_bytes=round(payload + overhead, 1),
            )
        )
    return rows


def train_states(edge: Edge, count: int) -> npt.NDArray[np.float32]:
    """States of the first pictures of the train split, `[n, N, d_s]` float16."""
    from reference.yard import render

    found = []
    for at in range(0, count, 256):
        block = render(sample_scenes("train", at, 256))
        states = edge.pair.states([Image.fromarray(picture) for picture in block])
        found.append(np.stack([state.flat() for state in states]).astype(np.float16))
    return np.concatenate(found)


def counter(
    plan: Plan, pair: Pair, test: TestSet, relay: Relay, service: Service, show: Show
) -> Callable[[Sequence[Shot]], dict[str, float]]:
    """Counts bytes at the relay, frames sent one after the other."""
    return Bench(plan, pair, test, relay, service, show, []).frame_bytes
