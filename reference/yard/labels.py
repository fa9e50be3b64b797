"""Labels of the yard for task heads: fire or none, how many, what sort of scene, which object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.yard.questions import NUMBERS
from reference.yard.scene import GROUPS, KINDS, PICTURE_PX, Scenes
from reference.yard.sequence import CLEAR, GONE, Sequence

HAZARDS = ("calm", "smoke", "fire", "fire and smoke")
CROWDS = (*GROUPS, "goods", "mixed")
SCENES = tuple(f"{hazard}, {crowd}" for hazard in HAZARDS for crowd in CROWDS)
"""The twenty classes of `scene`: what burns, and the most frequent sort of object."""

BEFORE, NOW = (0, 12), 48
"""Frames in which the tracked objects are marked, and the frame in which one is marked again."""
CANDIDATES = 5

_GROUP = {kind: group for group, kinds in GROUPS.items() for kind in kinds}


@dataclass(frozen=True)
class Track:
    """One tracking sample: which of five objects of earlier frames the marked one is.

    Attributes:
        places: `[frames, 5, 2]`, centres (x, y) in the frames of `BEFORE`, 0 to 1.
        mark: `[2]`, the marked object's centre in frame `NOW`.
        label: its place among the five.
        moving: whether it is one that moves.
    """

    places: NDArray[np.float32]
    mark: NDArray[np.float32]
    label: int
    moving: bool


def picture_labels(scenes: Scenes, index: int) -> dict[str, str]:
    """The classes of one picture for `fire`, `count` (of vehicles, at most four) and `scene`."""
    kinds = [KINDS[k] for k in scenes.kind[index, : scenes.n_objects[index]]]
    fire, smoke = "fire" in kinds, "smoke" in kinds
    groups = Counter(_GROUP.get(k, "goods") for k in kinds if k not in ("fire", "smoke"))
    most = max(groups.values(), default=0)
    crowds = [group for group, count in groups.items() if count == most]
    crowd = crowds[0] if len(crowds) == 1 else "mixed"
    labels = {
        "fire": "yes" if fire else "no",
        "scene": f"{HAZARDS[2 * fire + smoke]}, {crowd}",
    }
    if groups["vehicles"] < len(NUMBERS):
        labels["count"] = NUMBERS[groups["vehicles"]]
    return labels


def frame_labels(sequence: Sequence, frame: int) -> dict[str, str]:
    """`picture_labels` of a frame, without those that depend on a half-hidden object."""
    clear, most = (picture_labels(sequence.seen(least), frame) for least in (CLEAR, GONE))
    return {task: label for task, label in clear.items() if most.get(task) == label}


def tracks(sequence: Sequence) -> list[Track]:
    """The tracking samples of a sequence that starts at frame 0 and reaches `NOW`.

    Candidates are the first five objects that can be made out in all frames of `BEFORE`. There is
    one sample for each of them that has moved since and can still be made out, and one for as many
    that stand still, drawn at random. A sequence with fewer than five, or none that moves, gives no
    sample.
    """
    clear = sequence.share >= CLEAR
    candidates = np.flatnonzero(clear[list(BEFORE)].all(axis=0))[:CANDIDATES]
    if len(candidates) < CANDIDATES:
        return []
    place = np.stack([sequence.drawn.x, sequence.drawn.y], axis=-1) / np.float32(PICTURE_PX)
    place = place.clip(0, 1)
    before = place[list(BEFORE)][:, candidates]
    there, moving = clear[NOW, candidates], sequence.moving[candidates]
    moved, still = np.flatnonzero(there & moving), np.flatnonzero(there & ~moving)
    rng = np.random.default_rng(int(sequence.drawn.index[0]))
    still = rng.permutation(still)[: len(moved)]
    return [
        Track(before, place[NOW, candidates[label]], int(label), bool(moving[label]))
        for label in sorted([*moved, *still])
    ]
