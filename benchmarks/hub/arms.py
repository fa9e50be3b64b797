"""The arms of the hub bench: each returns which questions were right, or a time, or bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hub.yard import FOUNDER, READING_PICTURES, Yard, points
from projector.bundle.write import write_bundle
from projector.codec.encoder import Encoder
from projector.hub.coder import OWN_TABLES, encoder_for, usual, with_own_tables
from projector.hub.half import FittedHalf, fit_half
from projector.hub.judge import other_picture
from projector.hub.tune import SETTINGS, TunedHalf, hub_map
from projector.training.corpus import Corpus
from projector.training.train import Trainer
from protos.state import KVState
from reference.demo.halves import MODELS

SAME_GRID, OTHER_GRID = "edge-c", "edge-b"
COUNTS = (4, 8, 16, 64, 256)
"""Pictures that a half is fitted to."""
CONTROL_PICTURES = 256
EDGES = 10
"""Edge models of one hub in the test of memory and start."""

Arm = tuple[list[Any], Callable[[], Any]]
"""Its key in the journal, and how it is measured."""


class Halves:
    """Edge halves fitted to the yard's hub, each once."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self._made: dict[tuple[str, str, int], tuple[FittedHalf, Encoder, float]] = {}

    def closed(self, name: str, targets: str, count: int) -> tuple[FittedHalf, Encoder, float]:
        """A closed form with its encoder, and the seconds of its algebra.

        Args:
            name: the edge model.
            targets: `founder`, `reading` or `shuffled`.
            count: pictures.
        """
        key = name, targets, count
        if key not in self._made:
            mine, founder, reading = self.yard.training(name, count)
            z = {"founder": founder, "reading": reading, "shuffled": np.roll(founder, 1, 0)}[
                targets
            ]
            space = self.yard.hub.space
            began = time.perf_counter()
            x = self.yard.on_grid(name, mine)
            half = fit_half(x, z, space.latent_scale)
            encoder = encoder_for(space, self.yard.model(name).layout, half, x)
            seconds = time.perf_counter() - began
            if count >= OWN_TABLES:
                encoder = with_own_tables(encoder, self.states(name, count))
            self._made[key] = half, encoder, seconds
        return self._made[key]

    def states(self, name: str, count: int) -> list[KVState]:
        """States of the first training pictures."""
        seen = self.yard.saw(name, self.yard.some("train", READING_PICTURES))
        layout, positions = self.yard.model(name).layout, self.yard.model(name).positions
        pairs = zip(seen.x[:count], seen.attention[:count], strict=True)
        return [KVState.from_flat(x, layout, positions, a) for x, a in pairs]

    def latents(self, name: str, targets: str, count: int, split: str) -> Any:
        """Unrounded latents of a split by a closed form."""
        seen = self.yard.saw(name, self.yard.asked(split)).x
        return self.closed(name, targets, count)[0].project(self.yard.on_grid(name, seen))

    def tuned(self, name: str, count: int) -> dict[str, Any]:
        """Tune a closed form; returns its answers, points and seconds."""
        yard = self.yard
        half, encoder, _ = self.closed(name, "reading", count)
        some, hub = yard.some("train", READING_PICTURES), yard.hub
        mine, cloud = yard.saw(name, some), yard.saw("cloud", some).x[:count]
        layout = replace(yard.model(name).layout, grid=hub.space.grid)
        made = hub_map(hub.cloud.weights, layout, yard.model("cloud").layout)
        module = TunedHalf(half, encoder, made, yard.on_grid(name, mine.x[:count]))
        corpus = Corpus(mine.x[:count], cloud, mine.attention[:count])
        folder = yard.work / f"tune-{name}-{count}"
        trainer = Trainer(
            module, corpus, yard.model("cloud"), some.questions, SETTINGS, folder, about=name
        )
        began = time.perf_counter()
        trainer.run()
        seconds = max(time.perf_counter() - began, trainer.spent_s)
        better, weights = module.result(half)

        def placed(x: Any) -> Any:
            wide = x.astype(np.float32)
            return yard.on_grid(name, wide) if weights is None else weights @ wide

        tables = encoder_for(
            hub.space, yard.model(name).layout, better, placed(mine.x[:count]), weights
        )
        tables = with_own_tables(tables, self.states(name, count))
        judge = yard.judge(name, "test", own=False)
        seen = yard.saw(name, yard.asked("test")).x
        return {
            "seconds": seconds,
            "right": yard.answers(judge, better.project(placed(seen))),
            "points": points(judge, tables),
        }


def arms(yard: Yard) -> dict[str, list[Arm]]:
    """Every arm, in groups that may be measured apart."""
    made = Halves(yard)
    split = {"test": yard.pictures, "shifted": yard.shifted}

    def floors(part: str) -> Arm:
        def run() -> dict[str, list[int]]:
            judge = yard.judge(FOUNDER, part, own=False)
            return {
                "native": judge.native().ravel().astype(int).tolist(),
                "blind": judge.blind().ravel().astype(int).tolist(),
            }

        return ["floors", part, split[part]], run

    def own(name: str, part: str) -> Arm:
        def run() -> list[int]:
            seen = yard.saw(name, yard.asked(part)).x.astype(np.float32)
            judge = yard.judge(name, part, own=True)
            return yard.answers(judge, yard.bundle(name).encoder.project(seen))

        return ["own", name, part, split[part]], run

    def own_points(name: str, part: str) -> Arm:
        def run() -> Any:
            bundle = yard.bundle(name)
            default = bundle.encoder.point(bundle.info.default_point)
            if part == "shifted":
                alone = replace(bundle.encoder, points=(default,))
                return points(yard.judge(name, part, own=True), alone)
            found = points(yard.judge(name, part, own=True), bundle.encoder)
            return [
                one | ({"default": True} if one["point"] == default.name else {}) for one in found
            ]

        return ["own points", name, part, split[part]], run

    def joined(name: str, targets: str, count: int, part: str = "test") -> Arm:
        def run() -> list[int]:
            z = made.latents(name, targets, count, part)
            return yard.answers(yard.judge(name, part, own=False), z)

        return ["joined", name, targets, count, part, split[part]], run

    def joined_points(name: str, targets: str, count: int, part: str = "test") -> Arm:
        def run() -> Any:
            judge = yard.judge(name, part, own=False)
            return points(judge, made.closed(name, targets, count)[1])

        return ["joined points", name, targets, count, part, split[part]], run

    def control(what: str) -> Arm:
        def run() -> list[int]:
            judge = yard.judge(SAME_GRID, "test", own=False)
            if what == "mean state":
                return yard.answers(judge, usual(yard.hub.space, yard.pictures))
            if what == "another picture":
                z = made.latents(SAME_GRID, "founder", CONTROL_PICTURES, "test")
                return yard.answers(judge, other_picture(z))
            name = "random " + SAME_GRID if what == "untrained edge" else SAME_GRID
            targets = "shuffled" if what == "shuffled targets" else "founder"
            z = made.latents(name, targets, CONTROL_PICTURES, "test")
            return yard.answers(judge, z)

        return ["control", what, CONTROL_PICTURES, yard.pictures], run

    def seconds() -> list[float]:
        closed = []
        for _ in range(3):
            fresh = Halves(yard)
            closed.append(fresh.closed(SAME_GRID, "founder", 64)[2])
        return closed

    controls = ("mean state", "another picture", "untrained edge", "shuffled targets")
    return {
        "same": [
            floors("test"),
            own(SAME_GRID, "test"),
            *(joined(SAME_GRID, "founder", n) for n in COUNTS),
            *(joined(SAME_GRID, "reading", n) for n in COUNTS),
            own_points(SAME_GRID, "test"),
            *(joined_points(SAME_GRID, "founder", n) for n in (16, 64, 256)),
            *(control(what) for what in controls),
            (["seconds", "closed", 64], seconds),
        ],
        "other": [
            own(OTHER_GRID, "test"),
            joined(OTHER_GRID, "reading", 64),
            joined(OTHER_GRID, "reading", 256),
            (["tuned", OTHER_GRID, 256, yard.pictures], lambda: made.tuned(OTHER_GRID, 256)),
        ],
        "shift": [
            floors("shifted"),
            *(own(name, "shifted") for name in (FOUNDER, SAME_GRID, OTHER_GRID)),
            *(own_points(name, "shifted") for name in (FOUNDER, SAME_GRID, OTHER_GRID)),
            (["read", "shifted", yard.shifted], lambda: read_through(yard)),
        ],
        "service": [(["service", EDGES], lambda: service(made))],
    }


def read_through(yard: Yard) -> list[int]:
    """The large model's own cache of shifted pictures, read by R, through the cloud half.

    No small model and no coder: what is lost here is lost by latent space and cloud half.
    """
    y = yard.saw("cloud", yard.asked("shifted")).x
    space = yard.hub.space
    z = space.read(y)
    flat = z.reshape(-1, space.rank)
    spread = np.clip(space.latent_scale / flat.std(axis=0), 0.5, 3.0)
    z = (z - flat.mean(axis=0)) * spread + flat.mean(axis=0)
    return yard.answers(yard.judge(FOUNDER, "shifted", own=False), z.astype(np.float32))


def service(made: Halves) -> dict[str, Any]:
    """Resident memory and start of an engine with one edge model of the hub, and with ten."""
    yard = made.yard
    layout = yard.model(SAME_GRID).layout
    _, encoder, _ = made.closed(SAME_GRID, "founder", 64)
    folders = []
    for number in range(EDGES):
        twin = replace(layout, model_id=f"{layout.model_id}-{number}")
        folder = yard.work / "edges" / str(number)
        write_bundle(
            folder,
            id=f"edge-{number}",
            version=1,
            source=twin,
            target=yard.model("cloud").layout,
            encoder=replace(encoder, source_fingerprint=twin.fingerprint),
            cloud=yard.hub.cloud,
            certificate={},
            default_point=encoder.points[0].index,
        )
        folders.append(folder)
    found = {}
    for count in (1, EDGES):
        runs = [_started(folders[:count]) for _ in range(3)]
        found[str(count)] = {
            "bytes": sorted(run["bytes"] for run in runs)[1],
            "seconds": sorted(run["seconds"] for run in runs)[1],
        }
    return found


def _started(folders: list[Path]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.hub.start", str(MODELS / "cloud")]
    done = subprocess.run(
        [*command, *map(str, folders)], check=True, capture_output=True, text=True
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told
