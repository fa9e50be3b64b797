"""What stands in a yard: kinds, colours, and scenes drawn at random from a split.

`render.py` draws scenes, `questions.py` asks about them. Picture i of a split is always the same
one, however it is batched: a counter-based generator is keyed by the split and by the block of 256
pictures that holds i.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ASSETS = Path(__file__).parent / "assets"
SPLITS = ("train", "validation", "test", "shifted")
PICTURE_PX = 144
MAX_OBJECTS = 6
KINDS = (
    "car", "truck", "tractor", "bus", "bicycle", "person", "worker", "dog", "cat", "horse",
    "crate", "barrel", "ladder", "barrier", "wrench", "tree", "fire", "smoke",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
UNTINTED = ("tree", "fire", "smoke")
GROUPS: dict[str, tuple[str, ...]] = {
    "vehicles": ("car", "truck", "tractor", "bus", "bicycle"),
    "animals": ("dog", "cat", "horse"),
    "people": ("person", "worker"),
}
GROUND_COUNTS = {"train": 16, "test": 6}  # photographs in each strip of `assets/`
NO_COLOUR = -1

_BLOCK = 256
_KEY = 0x59415244  # "YARD"
_ORDINARY = KINDS.index("fire")  # the kinds before fire may repeat
_TRIES = 32  # candidate places for each object
_SPACING = 0.70  # least distance of two centres, in units of the sum of their half sizes
_MARGIN = 0.45  # least distance of a centre from the edge, in units of the object's size
_SMALL_PX = (26.0, 31.0)
_LARGE_PX = (40.0, 48.0)


@dataclass(frozen=True)
class Scenes:
    """N scenes as a struct of arrays, with up to six objects each (slots past `n_objects` are 0).

    Lengths are in picture px, x to the right and y down from the top left corner, angles in
    degrees; an object's size is the longest side of its sprite.
    """

    split: str
    index: Ints  # [N] position in the split
    n_objects: Ints  # [N] 3 to 6
    kind: Ints  # [N, 6] into KINDS
    colour: Ints  # [N, 6] into COLOURS, NO_COLOUR for a kind that is not tinted
    large: Bools  # [N, 6]
    size_px: Floats  # [N, 6]
    angle: Floats  # [N, 6] -20 to 20
    mirror: Bools  # [N, 6]
    x: Floats  # [N, 6] centre
    y: Floats  # [N, 6] centre
    ground: Ints  # [N] photograph in the split's strip
    ground_x: Floats  # [N] 0 to 1, place of the crop among those possible
    ground_y: Floats  # [N] 0 to 1
    ground_scale: Floats  # [N] photograph px per picture px
    ground_mirror: Bools  # [N]
    brightness: Floats  # [N] factor
    contrast: Floats  # [N] factor
    warmth: Floats  # [N] red is multiplied by 1 + warmth, blue by 1 - warmth
    gradient: Floats  # [N, 2] relative change of light from the centre to the edge, in x and y
    shade: Floats  # [N, 3] strength, direction in radians, offset in px of a large soft shadow
    blur_px: Floats  # [N] standard deviation, 0 for none
    noise: Floats  # [N] standard deviation, in grey levels of 255
    fog: Floats  # [N] 0 to 1, share of grey mixed in; 0 outside "shifted"
    noise_seed: Ints  # [N]

    def __len__(self) -> int:
        """Number of scenes, N."""
        return len(self.n_objects)

    def __getitem__(self, rows: slice) -> Scenes:
        """The scenes in `rows`, as views."""
        return Scenes(self.split, **{n: getattr(self, n)[rows] for n in _ARRAYS})


_ARRAYS = tuple(f.name for f in fields(Scenes) if f.name != "split")


def sample_scenes(split: str, start: int, count: int) -> Scenes:
    """Scenes `start` to `start + count - 1` of `split` (see `SPLITS`).

    Train and validation share photographs, not pictures; test has photographs of its own; shifted
    is test by night or in fog. Raises ValueError for an unknown split or a negative range.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {SPLITS}")
    if start < 0 or count < 1:
        raise ValueError(f"expected start >= 0 and count >= 1, got {start} and {count}")
    first, last = start // _BLOCK, (start + count - 1) // _BLOCK
    blocks = [_sample_block(split, block) for block in range(first, last + 1)]
    joined = {n: np.concatenate([getattr(b, n) for b in blocks]) for n in _ARRAYS}
    skipped = start - first * _BLOCK
    return Scenes(split, **joined)[skipped : skipped + count]


def strip_of(split: str) -> str:
    """The strip of photographs that `split` uses: "train" or "test"."""
    return "train" if split in ("train", "validation") else "test"


def _sample_block(split: str, block: int) -> Scenes:
    key = (_KEY << 32) + SPLITS.index(split)
    rng = np.random.Generator(np.random.Philox(key=key, counter=block << 64))
    n_objects, kind = _sample_kinds(rng)
    colour = _sample_colours(rng, kind)
    large = rng.random((_BLOCK, MAX_OBJECTS)) < 0.45
    small_px, large_px = (rng.uniform(*r, large.shape) for r in (_SMALL_PX, _LARGE_PX))
    size_px = np.where(large, large_px, small_px)
    x, y, placed = _place(rng, size_px, np.arange(MAX_OBJECTS) < n_objects[:, None])
    order = np.argsort(~placed, axis=1, kind="stable")  # moves the few not placed to the end
    present = np.take_along_axis(placed, order, axis=1)

    def slots(values: NDArray[np.generic]) -> NDArray[np.generic]:
        moved = np.take_along_axis(values, order, axis=1)
        return np.where(present, moved, np.zeros_like(moved))

    night = (split == "shifted") & (rng.random(_BLOCK) < 0.5)
    foggy = (split == "shifted") & ~night
    brightness = rng.uniform(0.80, 1.15, _BLOCK) * np.where(night, 0.5, 1.0)
    warmth = rng.uniform(-0.07, 0.07, _BLOCK) - np.where(night, 0.08, 0.0)
    fog = rng.uniform(0.25, 0.45, _BLOCK) * foggy
    shaded = rng.random(_BLOCK) < 0.4
    shade = rng.uniform((0.15, 0.0, -50.0), (0.40, 2 * np.pi, 50.0), (_BLOCK, 3))
    shade[:, 0] *= shaded
    blurred = rng.random(_BLOCK) < 0.35
    return Scenes(
        split=split,
        index=np.arange(_BLOCK) + block * _BLOCK,
        n_objects=placed.sum(axis=1),
        kind=slots(kind).astype(np.int64),
        colour=slots(colour).astype(np.int64),
        large=slots(large).astype(np.bool_),
        size_px=slots(size_px).astype(np.float32),
        angle=slots(rng.uniform(-20, 20, size_px.shape)).astype(np.float32),
        mirror=slots(rng.random(size_px.shape) < 0.5).astype(np.bool_),
        x=slots(x).astype(np.float32),
        y=slots(y).astype(np.float32),
        ground=rng.integers(GROUND_COUNTS[strip_of(split)], size=_BLOCK),
        ground_x=rng.random(_BLOCK, np.float32),
        ground_y=rng.random(_BLOCK, np.float32),
        ground_scale=rng.uniform(1.0, 2.2, _BLOCK).astype(np.float32),
        ground_mirror=rng.random(_BLOCK) < 0.5,
        brightness=brightness.astype(np.float32),
        contrast=rng.uniform(0.85, 1.1, _BLOCK).astype(np.float32),
        warmth=warmth.astype(np.float32),
        gradient=rng.uniform(-0.15, 0.15, (_BLOCK, 2)).astype(np.float32),
        shade=shade.astype(np.float32),
        blur_px=(rng.uniform(0.35, 0.7, _BLOCK) * blurred).astype(np.float32),
        noise=rng.uniform(0.5, 3.0, _BLOCK).astype(np.float32),
        fog=fog.astype(np.float32),
        noise_seed=rng.integers(1 << 62, size=_BLOCK),
    )


def _sample_kinds(rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Numbers of objects [256] and kinds [256, 6]: at most one kind repeats, two to four times."""
    n_objects = rng.choice([3, 4, 5, 6], size=_BLOCK, p=[0.15, 0.25, 0.30, 0.30])
    fire, smoke = rng.random(_BLOCK) < 0.42, rng.random(_BLOCK) < 0.35
    room = n_objects - fire - smoke
    copies = np.where(rng.random(_BLOCK) < 0.55, rng.integers(2, 5, _BLOCK), 1)
    copies = np.minimum(copies, room)
    rank = rng.random((_BLOCK, _ORDINARY))
    people = [KINDS.index(kind) for kind in GROUPS["people"]]
    rank[:, people] -= 0.4 * fire[:, None]  # else few pictures would have both a fire and a person
    others = np.argsort(rank, axis=1)
    slot = np.arange(MAX_OBJECTS)
    kind = np.take_along_axis(others, np.maximum(slot - copies[:, None] + 1, 0), axis=1)
    kind = np.where(fire[:, None] & (slot == room[:, None]), KINDS.index("fire"), kind)
    last = (n_objects - 1)[:, None]
    kind = np.where(smoke[:, None] & (slot == last), KINDS.index("smoke"), kind)
    shuffle = rng.random(kind.shape) + 10.0 * (slot >= n_objects[:, None])
    return n_objects, np.take_along_axis(kind, np.argsort(shuffle, axis=1), axis=1)


def _sample_colours(rng: np.random.Generator, kind: Ints) -> Ints:
    """Colours [256, 6]; some scenes favour one, so that counting it is not trivial."""
    colour = rng.integers(len(COLOURS), size=kind.shape)
    favoured = rng.integers(len(COLOURS), size=(_BLOCK, 1))
    takes = rng.random(kind.shape) < 0.6 * (rng.random((_BLOCK, 1)) < 0.5)
    untinted = np.isin(kind, [KINDS.index(k) for k in UNTINTED])
    return np.where(untinted, NO_COLOUR, np.where(takes, favoured, colour))


def _place(
    rng: np.random.Generator, size_px: NDArray[np.float64], wanted: Bools
) -> tuple[NDArray[np.float64], NDArray[np.float64], Bools]:
    """Centres x, y (the first free one of 32) and whether one was found, [256, 6] each."""
    x, y = np.zeros_like(size_px), np.zeros_like(size_px)
    placed = np.zeros_like(wanted)
    rows = np.arange(_BLOCK)
    for slot in range(MAX_OBJECTS):
        margin = _MARGIN * size_px[:, slot, None]
        span = PICTURE_PX - 2 * margin
        try_x = margin + span * rng.random((_BLOCK, _TRIES))
        try_y = margin + span * rng.random((_BLOCK, _TRIES))
        free = np.ones((_BLOCK, _TRIES), dtype=np.bool_)
        for other in range(slot):
            distance = np.hypot(try_x - x[:, other, None], try_y - y[:, other, None])
            least = _SPACING * (size_px[:, slot] + size_px[:, other]) / 2
            free &= (distance >= least[:, None]) | ~placed[:, other, None]
        chosen = np.argmax(free, axis=1)
        x[:, slot], y[:, slot] = try_x[rows, chosen], try_y[rows, chosen]
        placed[:, slot] = wanted[:, slot] & free[rows, chosen]
    return x, y, placed
