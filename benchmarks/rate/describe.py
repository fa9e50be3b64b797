"""The strongest rival for this very task: a list of things, read off the edge's states and sent.

A trained head names what each image token shows; the list travels as one mixed-radix number. The
yard's own rules compute the answer from the list, so no reader of the list could do better. It is
made for known questions: a list holds kinds, colours, sizes and places only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.lessons import cell_labels
from reference.yard import COLOURS, KINDS, PICTURE_PX, Scenes, list_questions, sample_scenes

Floats = npt.NDArray[np.float32]
Grid = tuple[int, int]
Advance = Callable[[int], None]

PLACES = 8
"""Steps of an object's place within its cell, along each axis."""
MOST = 6
_BLOCK = 256
_SIZES = (28.5, 44.0)  # px, the middle of "small" and of "large"


@dataclass(frozen=True)
class Thing:
    """One entry of a list; places are in eighths of a cell, colour 0 means none."""

    cell: int
    kind: int
    colour: int
    large: int
    across: int
    down: int

    def to_number(self, cells: int) -> int:
        """One number below `radix(cells)`."""
        number = 0
        for value, radix in zip(self._values(), _radices(cells), strict=True):
            number = number * radix + value
        return number

    def _values(self) -> tuple[int, ...]:
        return (self.cell, self.kind, self.colour, self.large, self.across, self.down)

    @classmethod
    def from_number(cls, number: int, cells: int) -> Thing:
        """Back from `to_number`."""
        values = []
        for radix in reversed(_radices(cells)):
            number, value = divmod(number, radix)
            values.append(value)
        return cls(*reversed(values))


def _radices(cells: int) -> tuple[int, ...]:
    return (cells, len(KINDS), len(COLOURS) + 1, 2, PLACES, PLACES)


def radix(cells: int) -> int:
    """Number of different things."""
    return int(np.prod(_radices(cells)))


def pack(things: Sequence[Thing], cells: int) -> bytes:
    """A list of at most six things in as few whole bytes as their number needs."""
    number = 0
    for thing in things:
        number = number * radix(cells) + thing.to_number(cells)
    number = number * (MOST + 1) + len(things)
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def unpack(data: bytes, cells: int) -> list[Thing]:
    """Back from `pack`."""
    number, count = divmod(int.from_bytes(data, "big"), MOST + 1)
    things = []
    for _ in range(count):
        number, one = divmod(number, radix(cells))
        things.append(Thing.from_number(one, cells))
    return things[::-1]


class Head(nn.Module):
    """States `[B, N, d_s]` to logits per token: presence, kind, colour, size; and a place."""

    mean: Tensor
    scale: Tensor

    def __init__(self, x: Floats, width: int = 160, depth: int = 2) -> None:
        super().__init__()
        flat = x[:2048].astype(np.float32).reshape(-1, x.shape[-1])
        self.register_buffer("mean", torch.from_numpy(flat.mean(0)))
        self.register_buffer("scale", torch.from_numpy(flat.std(0) + 1e-6))
        self.inward = nn.Linear(x.shape[-1], width)
        self.place = nn.Parameter(torch.randn(x.shape[1], width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.sizes = (1, len(KINDS), len(COLOURS) + 1, 2, 2)
        self.outward = nn.Linear(width, sum(self.sizes))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each `[B, N, size]`."""
        tokens = self.inward((x - self.mean) / self.scale) + self.place
        split: tuple[Tensor, ...] = self.outward(self.layers(tokens)).split(self.sizes, dim=-1)
        return split


def train(x: Floats, grid: Grid, steps: int, seed: int, advance: Advance) -> Head:
    """Fit a head to the first pictures of the train split.

    Args:
        x: `[n, N, d_s]` their states, in order.
        grid: grid of the image tokens.
        steps: training steps, each of 64 pictures.
        seed: seed of weights and order.
        advance: called after every step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = Head(x)
    blocks = [sample_scenes("train", at, _BLOCK) for at in range(0, len(x), _BLOCK)]
    labels = [cell_labels(scenes, np.arange(_BLOCK), grid) for scenes in blocks]
    whole = {k: np.concatenate([part[k] for part in labels]) for k in labels[0] if k != "cell"}
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = rng.choice(len(x), 64, replace=False)
        there, kind, colour, large, place = head(torch.from_numpy(x[rows].astype(np.float32)))
        taught = {k: torch.from_numpy(v[rows]) for k, v in whole.items()}
        full = taught["count"] > 0
        one = full & (taught["kind"].sum(-1) == 1)
        tint = torch.cat(
            [(taught["colour"].sum(-1, keepdim=True) == 0).float(), taught["colour"]], -1
        )
        loss = F.binary_cross_entropy_with_logits(there[..., 0], full.float())
        loss = loss + F.cross_entropy(kind[one], taught["kind"][one].argmax(-1))
        loss = loss + F.cross_entropy(colour[one], tint[one].argmax(-1))
        loss = loss + F.cross_entropy(large[one], taught["large"][one].argmax(-1))
        loss = loss + 4 * F.mse_loss(place[one], taught["offset"][one])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        advance(1)
    return head.eval()


def read(head: Head, x: Floats) -> list[list[Thing]]:
    """The list of every picture: tokens that show something, the surest six."""
    found = []
    for at in range(0, len(x), _BLOCK):
        with torch.no_grad():
            parts = head(torch.from_numpy(x[at : at + _BLOCK].astype(np.float32)))
        there, kind, colour, large, place = (part.numpy() for part in parts)
        steps = np.clip(((place + 0.5) * PLACES).astype(int), 0, PLACES - 1)
        best = [array.argmax(-1) for array in (kind, colour, large)]
        for b in range(len(there)):
            sure = there[b, :, 0]
            cells = np.sort(np.argsort(-sure)[:MOST])
            found.append(
                [
                    Thing(int(c), *(int(array[b, c]) for array in best), *steps[b, c].tolist())
                    for c in cells
                    if sure[c] > 0
                ]
            )
    return found


class Reader:
    """Answers from lists; if a list does not settle a question, the usual answer."""

    def __init__(self, grid: Grid, pictures: int = 2048) -> None:
        """Learns the usual answers from the train split."""
        self.grid = grid
        usual: dict[str, Counter[str]] = {}
        scenes = sample_scenes("train", 0, pictures)
        for index in range(pictures):
            for question in list_questions(scenes, index):
                usual.setdefault(question.text, Counter())[question.answer] += 1
        self._usual = {text: counter.most_common(1)[0][0] for text, counter in usual.items()}
        self._blank = sample_scenes("train", 0, 1)

    def answers(
        self, lists: Sequence[Sequence[Thing]], asked: Sequence[tuple[int, str]]
    ) -> list[str]:
        """One answer per (row of `lists`, question)."""
        known: dict[int, dict[str, str]] = {}
        out = []
        for row, text in asked:
            if row not in known:
                scenes = self._scenes(lists[row])
                known[row] = {q.text: q.answer for q in list_questions(scenes, 0)}
            out.append(known[row].get(text) or self._usual.get(text, ""))
        return out

    def _scenes(self, things: Sequence[Thing]) -> Scenes:
        rows, columns = self.grid
        scenes = self._blank
        count = len(things)
        arrays = {
            name: np.zeros_like(getattr(scenes, name))
            for name in ("kind", "colour", "large", "size_px", "x", "y")
        }
        for slot, thing in enumerate(things):
            row, column = divmod(thing.cell, columns)
            arrays["kind"][0, slot] = thing.kind
            arrays["colour"][0, slot] = thing.colour - 1
            arrays["large"][0, slot] = bool(thing.large)
            arrays["size_px"][0, slot] = _SIZES[thing.large]
            arrays["x"][0, slot] = (column + (thing.across + 0.5) / PLACES) * PICTURE_PX / columns
            arrays["y"][0, slot] = (row + (thing.down + 0.5) / PLACES) * PICTURE_PX / rows
        return replace(scenes, n_objects=np.array([count]), **arrays)
