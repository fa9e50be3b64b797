"""A line of the table for each map, and for each control."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.projectors.edge import EdgeModel
from benchmarks.projectors.figures import BUNDLED
from benchmarks.projectors.members import DEFAULT
from projector import maps
from projector.bundle.load import Bundle
from projector.codec.answers import same_answer
from projector.maps import Family, Map
from projector.maps.cloud_half import take_edge_half
from projector.training.fit import edge_answers, untrained_edge_states
from projector.training.map_folder import DESCRIPTION, MAP_FILE
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import PRECISIONS
from projector.validation.bounds import Bound, through_fp8
from projector.validation.estimate import clustered
from projector.validation.reconstruction import reconstruction
from protos.errors import BridgeError, FitError
from reference.demo.halves import BUNDLES

NO_BOUND: dict[str, float | None] = dict.fromkeys(
    ("bound_violations", "bound_over_actual", "estimate_over_actual")
)


def bits(right: Sequence[bool]) -> str:
    """Right and wrong answers as a text, kept so that any two maps can be compared in pairs."""
    return "".join("01"[one] for one in right)


def row(edge: EdgeModel, made: Map, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    answers, corpus = edge.answers(made), edge.corpora["test"]
    test, shifted = answers["test"], answers["shifted"]
    fit = reconstruction(made, corpus)
    return {
        "edge_model": edge.name,
        "family": name,
        "rank": made.rank,
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
    """A map's bound checked on test, calibrated on validation; `NO_BOUND` if it has none."""
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
    """A closed form with its weights rounded to a type, and the seconds that it took."""
    moments, gathered = edge.moments(seed, focus)
    begun = time.perf_counter()
    made = member.build(edge.source.layout, edge.target.layout, moments)
    seconds = gathered + time.perf_counter() - begun
    return (made if dtype == "float32" else made.in_precision(PRECISIONS[dtype])), seconds


def trained(
    edge: EdgeModel, member: Family, steps: tuple[int, int], name: str
) -> tuple[Map, float]:
    """A map trained by reconstruction, then through the frozen model, and the seconds of both."""
    moments, gathered = edge.moments(None)
    begun = time.perf_counter()
    torch.manual_seed(0)
    made = member.build(edge.source.layout, edge.target.layout, moments)
    # A map that starts from its closed form gets a low rate: a high one undoes it first.
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
    """The reference bundle for this edge, latents not rounded; None if it has none."""
    layouts = edge.source.layout, edge.target.layout
    try:
        bundle = Bundle.load(BUNDLES / f"{edge.name}-cloud", *layouts)
        made = maps.load(bundle.cloud.weights, *layouts)
    except BridgeError as error:
        print(f"{edge.name}: no bundle in the table: {error.message}", file=sys.stderr)
        return None
    encoder = bundle.encoder
    if maps.is_cloud_half(bundle.cloud.weights):
        take_edge_half(made, encoder.x_mean, encoder.x_scale, encoder.projection)
    training = bundle.certificate.get("training", {})
    minutes = training.get("minutes", 0.0)
    return row(edge, made.eval(), BUNDLED, training.get("seed", 0), 60.0 * minutes)


def trained_apart(edge: EdgeModel, seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Maps trained as a bundle's is, by its recipe with another seed.

    Args:
        edge: the edge model; maps of other models are left out.
        seed: the bundle's own seed, whose map is in the table already.

    Returns:
        The digest of each map, and a function that makes its row.
    """
    source, target = edge.source.layout, edge.target.layout
    found: dict[int, tuple[str, Callable[[], dict[str, Any]]]] = {}
    for path in sorted(edge.args.trainings.glob(f"{edge.name}*/map/{DESCRIPTION}")):
        about = json.loads(path.read_text())
        other = about["settings"]["seed"]
        models = about["source"], about["target"]
        if models == (source.fingerprint, target.fingerprint) and other != seed:
            blob = (path.parent / MAP_FILE).read_bytes()
            made = maps.load(blob, source, target)
            seconds = 60.0 * about.get("minutes", 0.0)
            make = partial(row, edge, made.eval(), BUNDLED, other, seconds)
            found[other] = hashlib.sha256(blob).hexdigest(), make
    return list(found.values())


def controls(edge: EdgeModel) -> dict[str, Any]:
    """Accuracy of the controls, and of the cloud seeing the picture, per split."""
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
    """Accuracy of the edge model itself per split: a map has to beat it."""
    found = {}
    for part, judge in edge.judges.items():
        asked = [(one.picture, one.text) for one in judge.asked]
        given = edge_answers(edge.source, edge.data[part], asked)
        right = [same_answer(a, one.answer) for a, one in zip(given, judge.asked, strict=True)]
        found[part] = float(np.mean(right))
    return found
