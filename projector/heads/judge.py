"""Judges a head: accuracy on held-out samples, beside baselines that need no head (torch)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from projector.bundle.certificate import GOOD, LEAST_PICTURES, ROOM, UNJUDGED, WORSE, Verdict
from projector.heads.head import Head
from projector.heads.samples import Samples
from projector.validation.estimate import Estimate, by_group, clustered, paired

_BATCH = 256

Ints = npt.NDArray[np.int64]


def predictions(head: Head, samples: Samples) -> Ints:
    """The likeliest class of every sample, `[S]`."""
    with torch.inference_mode():
        parts = [
            head.logits(samples, np.arange(begin, min(begin + _BATCH, len(samples)))).argmax(-1)
            for begin in range(0, len(samples), _BATCH)
        ]
    found: Ints = torch.cat(parts).numpy()
    return found


def judge(head: Head, samples: Samples) -> dict[str, Any]:
    """Figures on held-out samples, beside baselines that need no head.

    Returns:
        `accuracy` with its interval (clustered by picture, or by sequence), `majority` (always the
        commonest class of training), `nearest` for tracking (the object last seen nearest to the
        mark), `above` (accuracy minus the better of these two), `other_picture` (the head on
        another picture's states), accuracies by class and by kind, and the `verdict` with its
        reason: whether the head beats all of these.
    """
    labels, truth = samples.labels, samples.targets
    clusters = labels.clusters.tolist()
    right = predictions(head, samples) == truth
    commonest = int(head.counts.argmax())
    floors = {"majority": truth == commonest}
    if labels.objects:
        apart = np.linalg.norm(labels.places[:, -1] - labels.mark[:, None], axis=-1)
        floors["nearest"] = apart.argmin(axis=1) == truth
    best = max(floors.values(), key=lambda floor: float(floor.mean()))
    half = len(samples.states) // 2  # the next one of a sequence shows nearly the same
    swapped = replace(samples, states=np.roll(samples.states, half, axis=0))
    shown = {**floors, "other_picture": predictions(head, swapped) == truth}
    above = paired(right.tolist(), best.tolist(), clusters)
    apart_from_other = paired(right.tolist(), shown["other_picture"].tolist(), clusters)
    found = verdict(
        len(set(clusters)), len(set(truth.tolist())), float(right.mean()), above, apart_from_other
    )
    return {
        "task": head.config.task,
        "view": head.config.view,
        "classes": len(head.config.classes),
        "samples": len(samples),
        "clusters": len(set(clusters)),
        "accuracy": clustered(right.astype(float).tolist(), clusters).to_json(),
        **{
            name: clustered(floor.astype(float).tolist(), clusters).to_json()
            for name, floor in shown.items()
        },
        "above": above.to_json(),
        "verdict": found.state,
        "why": found.why,
        "by_class": by_group(right.tolist(), labels.labels),
        "by_kind": {
            "head": by_group(right.tolist(), labels.kinds),
            **{name: by_group(floor.tolist(), labels.kinds) for name, floor in floors.items()},
        },
    }


def verdict(
    clusters: int, classes: int, accuracy: float, above: Estimate, other: Estimate
) -> Verdict:
    """Whether a head beats the baselines that need no head.

    Args:
        clusters: number of pictures or sequences.
        classes: number of classes among the samples.
        accuracy: the head's accuracy.
        above: accuracy minus that of the commonest class, or of the nearest place.
        other: accuracy minus that on another picture's states.
    """
    if clusters < LEAST_PICTURES:
        return Verdict(UNJUDGED, f"{clusters} pictures or sequences, and it takes {LEAST_PICTURES}")
    if classes < 2:
        return Verdict(UNJUDGED, "every sample is of one class")
    for found, what in (
        (above, "the commonest class, or the nearest place, does"),
        (other, "another picture's states do"),
    ):
        if found.low > 0:
            continue
        if found.high >= ROOM * (1 - accuracy + found.mean):
            return Verdict(UNJUDGED, f"too few samples to tell whether {what} as well")
        return Verdict(WORSE, f"{what} as well")
    return Verdict(GOOD)
