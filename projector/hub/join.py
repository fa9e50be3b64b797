"""Joins an edge model to a hub: fits its edge half, judges it beside controls (torch)."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from projector.bundle.certificate import GOOD
from projector.bundle.load import Bundle
from projector.calibration.ladder import Judge, states_of
from projector.codec.arrays import Floats
from projector.codec.encoder import Encoder
from projector.hub.coder import OWN_TABLES, encoder_for, rungs, usual, with_own_tables
from projector.hub.half import FittedHalf, fit_half
from projector.hub.hub import Hub
from projector.hub.judge import judged, other_picture
from projector.hub.make import latents_of, onto_grid
from projector.hub.photos import Seen, Some, see
from projector.hub.tune import TunedHalf, hub_map
from projector.models.vlm import VLM
from projector.serving import backends
from projector.serving.backends import Backend
from projector.training.corpus import Corpus
from projector.training.fit import untrained
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from protos.errors import BundleLayoutError

States = npt.NDArray[np.floating]
_SEED = 2


@dataclass(frozen=True, eq=False)
class Like:
    """Another edge model of the hub, whose latents are the targets.

    Attributes:
        bundle: its bundle.
        model: the model.
    """

    bundle: Bundle
    model: VLM


@dataclass(frozen=True, eq=False)
class Joined:
    """An edge half of a hub.

    Attributes:
        encoder: with measured points.
        default_point: index of the point to start with.
        ladder: indices, fewest bytes first.
        certificate: figures beside controls, and how it was made.
        backend: runs the hub's cloud half.
        good: whether it beats every control.
    """

    encoder: Encoder
    default_point: int
    ladder: tuple[int, ...]
    certificate: dict[str, Any]
    backend: Backend
    good: bool


def require_member(hub: Hub, bundle: Bundle) -> None:
    """Refuse a bundle that is no edge half of a hub.

    Raises:
        BundleLayoutError: its cloud half is another.
    """
    if bundle.info.cloud_half != hub.info.cloud_half:
        raise BundleLayoutError(
            f"bundle '{bundle.info.id}' version {bundle.info.version} is not of hub "
            f"'{hub.info.id}' version {hub.info.version}: their cloud halves differ, so their "
            "latents do not mean the same"
        )


def backend_of(hub: Hub, target: VLM, edge: VLM, threads: int) -> Backend:
    """The hub's cloud half, in ONNX Runtime."""
    sent = replace(edge.layout, grid=hub.space.grid)
    made = backends.get("onnxruntime")
    return made(hub.cloud, target.layout, hub.space.rank, threads=threads, source=sent)


@dataclass(frozen=True, eq=False)
class Work:
    """What joining works with.

    Attributes:
        hub: the hub.
        edge: the small model that joins.
        target: the hub's large model.
        fitted: pictures that the half is fitted to.
        held: pictures kept apart, with questions.
        checkpoint: of the small model; its shapes with random weights are a control.
        like: another edge model whose latents are the targets; None to read the large model's own
            cache.
        states: folder that keeps what models saw; None to keep nothing.
    """

    hub: Hub
    edge: VLM
    target: VLM
    fitted: Some
    held: Some
    checkpoint: Path
    like: Like | None = None
    states: Path | None = None

    def targets(self) -> States:
        """Latents that the hub should receive of the pictures fitted to, `[n, N, r]`."""
        if self.like is not None:
            seen = see(self.like.model, self.fitted, self.states, "the other edge model")
            return latents_of(self.like.bundle, seen.x)
        y = see(self.target, self.fitted, self.states, "the large model").x
        space = self.hub.space
        return space.read(onto_grid(y, self.target.layout.grid, space.grid))

    def on_grid(self, x: States, weights: Floats | None = None) -> States:
        """The small model's states on the hub's grid, by bilinear weights or others."""
        if weights is not None:
            moved: States = np.matmul(weights, x.astype(np.float32))
            return moved
        return onto_grid(x, self.edge.layout.grid, self.hub.space.grid)


def join(
    work: Work,
    per_picture: int = 6,
    within: float = 0.016,
    tuning: TrainSettings | None = None,
) -> Joined:
    """Fit, calibrate and judge an edge half.

    Args:
        work: hub, models and pictures.
        per_picture: questions about each picture kept apart.
        within: accuracy that the default point may lose against the large model's own caches.
        tuning: tune the closed form through the frozen hub and large model; its pictures need
            questions, but no right answers.

    Raises:
        CorpusError: too few pictures, or states that are not finite.
        BundleLayoutError: `like` is of another hub.
    """
    if work.like is not None:
        require_member(work.hub, work.like.bundle)
    space = work.hub.space
    seen = see(work.edge, work.fitted, work.states, "the edge model")
    z = work.targets()
    started = time.perf_counter()
    x = work.on_grid(seen.x)
    half = fit_half(x, z, space.latent_scale)
    encoder = encoder_for(space, work.edge.layout, half, x)
    closed, weights = half, None
    times = {"fit_seconds": round(time.perf_counter() - started, 3)}
    if tuning is not None:
        started = time.perf_counter()
        half, weights = _tuned(work, seen, half, encoder, x, tuning)
        times["tune_seconds"] = round(time.perf_counter() - started, 3)
        encoder = encoder_for(space, work.edge.layout, half, work.on_grid(seen.x, weights), weights)
    if len(x) >= OWN_TABLES:
        corpus = Corpus(seen.x, np.zeros((len(seen.x), 1, 1)), seen.attention)
        encoder = with_own_tables(encoder, states_of(work.edge, corpus))
    judge, backend, held = _judge(work, per_picture)
    mapped = half.project(work.on_grid(held, weights))
    told = judged(judge, {"mapped": mapped, **_controls(work, mapped, x, z, held)})
    encoder, default, ladder = rungs(encoder, judge, told["accuracy"]["native"]["mean"], within)
    return Joined(
        encoder,
        default,
        ladder,
        _certificate(work, closed, told, encoder, default, times),
        backend,
        told["verdict"] == GOOD,
    )


def _judge(work: Work, per_picture: int) -> tuple[Judge, Backend, States]:
    backend = backend_of(work.hub, work.target, work.edge, torch.get_num_threads())
    mine = see(work.edge, work.held, work.states, "the edge model, pictures kept apart")
    cloud = see(work.target, work.held, work.states, "the large model, pictures kept apart")
    corpus = Corpus(mine.x, cloud.x, mine.attention)
    judge = Judge(work.edge, work.target, backend, corpus, work.held.questions, per_picture)
    return judge, backend, mine.x


def _tuned(
    work: Work,
    seen: Seen,
    half: FittedHalf,
    encoder: Encoder,
    x: States,
    settings: TrainSettings,
) -> tuple[FittedHalf, Floats | None]:
    hub, target = work.hub, work.target
    y = see(target, work.fitted, work.states, "the large model").x
    sent = replace(work.edge.layout, grid=hub.space.grid)
    module = TunedHalf(half, encoder, hub_map(hub.cloud.weights, sent, target.layout), x)
    parts = hub.info.digest, work.edge.layout.fingerprint, work.fitted.digest
    about = hashlib.sha256("".join(parts).encode()).hexdigest()
    corpus = Corpus(seen.x, y, seen.attention)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing) if work.states is None else work.states / f"tune-{about[:16]}"
        Trainer(module, corpus, target, work.fitted.questions, settings, folder, about=about).run()
    return module.result(half)


def _controls(
    work: Work, mapped: Floats, x: States, z: States, held: States
) -> dict[str, npt.NDArray[np.float32]]:
    """Latents of the pictures kept apart by every control; those that are fitted, closed form."""
    scale = work.hub.space.latent_scale
    apart = work.on_grid(held)
    random = untrained(work.checkpoint, _SEED, None)
    assert isinstance(random, VLM), "its trained twin sees pictures"
    drawn, drawn_apart = (
        work.on_grid(see(random, some, work.states, "a random edge model", " random").x)
        for some in (work.fitted, work.held)
    )
    return {
        "mean_state": usual(work.hub.space, len(apart)),
        "other_picture": other_picture(mapped),
        "untrained_edge": fit_half(drawn, z, scale).project(drawn_apart),
        "shuffled_targets": fit_half(x, np.roll(z, 1, axis=0), scale).project(apart),
    }


def _certificate(
    work: Work,
    half: FittedHalf,
    told: dict[str, Any],
    encoder: Encoder,
    default: int,
    times: dict[str, float],
) -> dict[str, Any]:
    info = work.hub.info
    point = encoder.point(default)
    assert point.measured is not None, "every point was measured"
    accuracy = told["accuracy"]
    above = accuracy["native"]["mean"] - accuracy["blind"]["mean"]
    retention = (accuracy["mapped"]["mean"] - accuracy["blind"]["mean"]) / above if above else None
    retention = retention if told["verdict"] == GOOD else None
    return {
        **told,
        "accuracy": {**accuracy, point.name: point.measured.accuracy},
        "retention": retention,
        "seen_in_training": 0,
        "hub": {"id": info.id, "version": info.version, "digest": info.digest},
        "joined": {
            "pictures": len(work.fitted),
            "targets": "reading" if work.like is None else work.like.bundle.info.id,
            "ridge_weight": half.weight,
            "explained": round(half.explained, 4),
            "largest_spread": round(float(half.spread.max()), 4),
            **times,
        },
    }
