"""A fixed camera over time: one ground, drifting light, new noise per frame, a few things moving.

It says how the objects of a scene move and which of them can be made out. Frame t of a sequence is
always the same one, however the frames are batched: every path and every drift is a function of
time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.yard.questions import Question, ask, list_questions
from reference.yard.scene import (
    GROUPS,
    KINDS,
    MAX_OBJECTS,
    PICTURE_PX,
    SPLITS,
    Bools,
    Floats,
    Ints,
    Scenes,
    sample_scenes,
)

CLEAR = 0.45  # an object counts as there if this share of it shows
GONE = 0.05  # and as not there below this share; in between no question depends on it

_FIRST_SCENE = 1 << 25  # stills come before, sequences after
_MOST = 1 << 24
_BLOCK = 256
_KEY = 0x4D4F5645  # "MOVE"
_MOVERS = [KINDS.index(kind) for group in GROUPS.values() for kind in group]
_MOVING = 0.6  # probability that an object that can move does so; at most three do
_REACH_PX = (30.0, 110.0)
_SPEED_PX = (0.8, 2.5)  # per frame, on average over a loop
_STOPS = 3  # standstills per loop
_LIGHT_FRAMES = (300.0, 900.0)  # period of a drift
_BRIGHTNESS, _WARMTH, _GRADIENT, _SHADE_PX = 0.08, 0.03, 0.05, 12.0

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Sequence:
    """T frames of one camera.

    Attributes:
        drawn: the frames as `render` takes them. An object keeps its slot in all of them, in or out
            of the picture: the slot is its identity.
        moving: `[6]`, which objects move at all.
        share: `[T, 6]`, how much of each object's box shows, 0 for an empty slot.
    """

    drawn: Scenes
    moving: Bools
    share: Floats

    def __len__(self) -> int:
        """Number of frames, T."""
        return len(self.drawn)

    def identities(self, least: float = CLEAR) -> Ints:
        """The slots of `drawn` that `seen` holds, in its order, `[T, 6]`; -1 past the last."""
        present = self.share >= least
        order = np.argsort(~present, axis=1, kind="stable")
        return np.where(np.take_along_axis(present, order, axis=1), order, -1)

    def seen(self, least: float = CLEAR) -> Scenes:
        """The frames with only the objects that show at least the share `least`.

        These are labels, not scenes to render: an object half out of the picture is missing.
        """
        slots = self.identities(least)
        there = slots >= 0
        moved: dict[str, Any] = {}
        for field in fields(Scenes):
            values = getattr(self.drawn, field.name)
            if field.name != "split" and values.shape[1:] == (MAX_OBJECTS,):
                kept = np.take_along_axis(values, np.maximum(slots, 0), axis=1)
                moved[field.name] = np.where(there, kept, np.zeros_like(kept))
        return replace(self.drawn, n_objects=there.sum(axis=1), **moved)

    def ask(self, frame: int, count: int, seed: int) -> list[Question]:
        """Up to `count` distinct questions about a frame, as `questions.ask` draws them.

        Only questions whose answer does not depend on an object that is half hidden or half out.
        """
        clear = self._one(frame, CLEAR)
        unsure = (self.share[frame] >= GONE) & (self.share[frame] < CLEAR)
        if not unsure.any():
            return ask(clear, 0, count, seed)
        known = {q.text for q in self.listed(frame)}
        return [q for q in ask(clear, 0, 3 * count, seed) if q.text in known][:count]

    def listed(self, frame: int) -> list[Question]:
        """Every question that can be asked about a frame without ambiguity."""
        known = {q.text: q.answer for q in list_questions(self._one(frame, GONE), 0)}
        listed = list_questions(self._one(frame, CLEAR), 0)
        return [q for q in listed if known.get(q.text) == q.answer]

    def _one(self, frame: int, least: float) -> Scenes:
        rows = slice(frame, frame + 1)
        return Sequence(self.drawn[rows], self.moving, self.share[rows]).seen(least)


def sample_sequence(split: str, number: int, start: int, count: int) -> Sequence:
    """Frames `start` to `start + count - 1` of sequence `number` of a split.

    At frame 0 all objects stand where the scene's generator put them. From there up to three of the
    vehicles, animals and people move back and forth on smooth loops, past the others, out of the
    picture and in again. No sequence shares its scene with a still of any split.

    Raises:
        ValueError: an unknown split, a number or a range that is not possible.
    """
    if not 0 <= number < _MOST or start < 0 or not 1 <= count or start + count > _MOST:
        raise ValueError(f"expected number and start >= 0 and count >= 1 (at most {_MOST})")
    block = _scenes(split, number // _BLOCK)
    base = block[number % _BLOCK : number % _BLOCK + 1]
    key = (_KEY << 32) + SPLITS.index(split)
    rng = np.random.Generator(np.random.Philox(key=key, counter=number << 64))
    time = np.arange(start, start + count, dtype=np.float64)
    moving, x, y = _paths(rng, base, time)
    repeated = {
        f.name: np.repeat(getattr(base, f.name), count, axis=0)
        for f in fields(Scenes)
        if f.name != "split"
    }
    frames = Scenes(split, **repeated)
    drift = _drifts(rng, time)
    shade = frames.shade.copy()
    shade[:, 2] += _SHADE_PX * drift[:, 4]
    drawn = replace(
        frames,
        index=(frames.index << 24) + np.arange(start, start + count),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        brightness=(frames.brightness * (1 + _BRIGHTNESS * drift[:, 0])).astype(np.float32),
        warmth=(frames.warmth + _WARMTH * drift[:, 1]).astype(np.float32),
        gradient=(frames.gradient + _GRADIENT * drift[:, 2:4]).astype(np.float32),
        shade=shade.astype(np.float32),
        noise_seed=frames.noise_seed + np.arange(start, start + count),
    )
    return Sequence(drawn, moving, _shares(drawn))


@lru_cache(maxsize=4)
def _scenes(split: str, block: int) -> Scenes:
    return sample_scenes(split, _FIRST_SCENE + block * _BLOCK, _BLOCK)


def _paths(rng: np.random.Generator, base: Scenes, time: Doubles) -> tuple[Bools, Doubles, Doubles]:
    """Who moves `[6]`, and centres x, y `[T, 6]`."""
    able = np.isin(base.kind[0], _MOVERS) & (np.arange(MAX_OBJECTS) < base.n_objects[0])
    wish = np.where(able, rng.random(MAX_OBJECTS), 2.0)
    rank = np.argsort(np.argsort(wish))
    moving = able & ((rank == 0) | ((wish < _MOVING) & (rank < 3)))
    reach = rng.uniform(*_REACH_PX, MAX_OBJECTS) * moving
    turn = rng.uniform(*_SPEED_PX, MAX_OBJECTS) / np.maximum(reach, 1.0) * (np.pi / 2)
    heading, phase, pause, aside = rng.random((4, MAX_OBJECTS)) * 2 * np.pi
    # The phase never decreases: its speed is turn * (1 + cos(...)), zero at each standstill.
    walked = turn * time[:, None]
    walked = walked + (np.sin(_STOPS * walked + pause) - np.sin(pause)) / _STOPS
    along = reach * (np.sin(walked + phase) - np.sin(phase))
    across = 0.4 * reach * (np.sin(2 * walked + aside) - np.sin(aside))
    x = base.x + along * np.cos(heading) - across * np.sin(heading)
    y = base.y + along * np.sin(heading) + across * np.cos(heading)
    return moving, x, y


def _drifts(rng: np.random.Generator, time: Doubles) -> Doubles:
    """Five slow waves `[T, 5]` of amplitude 1."""
    period, phase = rng.uniform(*_LIGHT_FRAMES, 5), rng.random(5) * 2 * np.pi
    waves: Doubles = np.sin(2 * np.pi * time[:, None] / period + phase)
    return waves


def _shares(drawn: Scenes) -> Floats:
    """How much of each object's box `[T, 6]` is in the picture and under no object before it."""
    size = drawn.size_px.astype(np.float64)
    there = np.arange(MAX_OBJECTS) < drawn.n_objects[:, None]
    low = np.stack([drawn.x, drawn.y]) - size / 2  # [2, T, 6]
    high = low + size
    inside = np.clip(np.minimum(high, PICTURE_PX) - np.maximum(low, 0), 0, None).prod(axis=0)
    common = np.minimum(high[..., :, None], high[..., None, :])
    common = np.clip(common - np.maximum(low[..., :, None], low[..., None, :]), 0, None).prod(
        axis=0
    )
    order = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1)  # as `render` draws them
    before = (order[:, None, :] > order[:, :, None]) & there[:, None, :]
    area = np.maximum(size**2, 1.0)
    share = np.clip(inside - (common * before).sum(axis=2), 0, None) / area
    return np.asarray(share * there, np.float32)
