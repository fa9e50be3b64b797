"""Trains a map: closed form, then reconstruction, then through the frozen cloud model.

The losses are here; `descent` takes the steps and keeps the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from projector.maps.rounding import WHOLE, Way
from projector.models import cache as kv
from projector.models.autocast import products, trained_attention
from projector.models.cache import LayerCache
from projector.models.lm import LM
from projector.models.packed import Packed, Scenes
from projector.models.rope import apply_rotation, cos_sin
from projector.models.vlm import VLM
from projector.training import distributed
from projector.training.corpus import Corpus
from projector.training.descent import Descent, Stage, Trained
from projector.training.settings import TrainSettings
from protos.errors import FitError

_SHARE_FOR_PAIRS = 0.5  # largest share of a GPU's free memory
_LEAST_NORM = 1e-8  # as in torch's cosine similarity

Questions = Callable[[int, int, int], Sequence[tuple[str, str]]]
"""`questions(picture, count, seed)` gives exactly `count` (question, answer) pairs."""


class Trainable(Trained, Protocol):
    """A map that `Trainer` can train."""

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target's states, `[d_r]` each."""

    def to(self, device: torch.device) -> Any:
        """As in `nn.Module`."""

    def predict(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to z-scored target states `[B, M, d_r]`."""

    def travel(self, x: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """Target states `[B, M, d_r]` as the cloud would have them, and bits per number.

        A map that is not trained for a codec ignores the way.
        """

    def penalty(self) -> Tensor:
        """A scalar that training keeps small."""


M = TypeVar("M", bound=Trainable)


class Trainer(Generic[M]):
    """Runs the two gradient stages of one map, resumable."""

    def __init__(
        self,
        made: M,
        corpus: Corpus,
        target: VLM | LM,
        questions: Questions,
        settings: TrainSettings,
        folder: Path,
        save_every_s: float = 300.0,
        about: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares the frozen side.

        Args:
            made: the map, changed in place and moved to the target's device; None for a trainer
                that only judges caches.
            corpus: paired caches; pictures in the order of `questions`.
            target: the frozen cloud model.
            questions: asks about picture i.
            settings: how long and how fast.
            folder: folder of state and log.
            save_every_s: seconds from one checkpoint to the next.
            about: digest of the map and its data; a state of others is not resumed.
            details: parts of `about` by name, for people.
        """
        self.map, self.corpus, self.target = made, corpus, target
        self.questions, self.settings, self.folder = questions, settings, folder
        self.save_every_s, self.about, self.details = save_every_s, about, details or {}
        self.spent_s = 0.0
        """Seconds of training so far, those before an interruption included."""
        folder.mkdir(parents=True, exist_ok=True)
        target.model.requires_grad_(False)
        self.device = target.device
        if made is not None:
            made.to(self.device)
        cos, sin = cos_sin(target.layout.rotation, target.positions)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)
        # Tensors made under inference mode cannot be saved for a backward pass; clones can.
        self.prefix: list[LayerCache] = [
            (key.clone(), value.clone()) for key, value in target.constant_prefix()
        ]
        self._ids: dict[str, list[int]] = {}

    # -- shared pieces ---------------------------------------------------------------------------

    def packed(self, pictures: Sequence[int], count: int, seed: int) -> Packed:
        """Questions and answers of some pictures, as the frozen model tokenises them."""
        rows = []
        for picture in pictures:
            asked = self.questions(picture, count, seed)
            rows.append([(self.question_ids(q), self.answer_ids(a)) for q, a in asked])
        return Packed.of(rows, self.device)

    def question_ids(self, text: str) -> list[int]:
        """The tokens of a question, cue included."""
        if text not in self._ids:
            self._ids[text] = self.target.question_ids(text)
        return self._ids[text]

    def answer_ids(self, text: str) -> list[int]:
        """The tokens of an answer, with the target's end."""
        key = "\0" + text
        if key not in self._ids:
            self._ids[key] = self.target.answer_ids(text)
        return self._ids[key]

    def native_layers(self, y: npt.NDArray[np.floating]) -> list[LayerCache]:
        """The target's own cache, from its flat states `[B, N, d_r]`."""
        return self.layers(self.placed(y))

    def layers(self, states: Tensor) -> list[LayerCache]:
        """The cache of flat target states `[B, N, d_r]`, keys un-rotated; gradients flow.

        Tokens past a text's end are NaN. The states may be on another device than the target.
        """
        layout = self.target.layout
        states = states.to(self.device)
        there = ~states[..., 0].isnan()
        whole = bool(there.all())
        if not whole:
            states = torch.where(there[..., None], states, 0.0)
        shape = (2, layout.layers, layout.kv_heads, layout.head_dim)
        keys, values = states.unflatten(-1, shape).permute(2, 3, 0, 4, 1, 5).unbind(0)
        cos, sin = (table[..., : keys.shape[-2], :] for table in (self.cos, self.sin))
        keys = apply_rotation(keys, cos, sin, layout.rope.interleaved)
        made = kv.scene_layers(self.prefix, keys, values)
        if whole:
            return made
        return Scenes(made, there.sum(dim=1) + self.prefix[0][0].shape[2])

    def blind_layers(self, count: int) -> list[LayerCache]:
        """The cache of so many inputs that the target has not seen."""
        return [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in self.prefix]

    def mapped_layers(self, x: npt.NDArray[np.float32]) -> list[LayerCache]:
        """The cache that the map makes of source states `[B, N, d_s]`, unrounded."""
        return self.layers(self.map.travel(self.placed(x))[0])

    def placed(self, states: npt.NDArray[np.floating]) -> Tensor:
        """States as float32, on the device of the target."""
        return torch.from_numpy(states.astype(np.float32, copy=False)).to(self.device)

    def logits(self, packed: Packed, layers: Sequence[LayerCache]) -> Tensor:
        """The frozen model's logits for packed questions over a cache."""
        return packed.logits(self.target, layers)

    def accuracy(
        self,
        corpus: Corpus,
        questions: Questions,
        make: Callable[[npt.NDArray[np.float32], npt.NDArray[np.floating]], Sequence[LayerCache]],
        *,
        count: int = 6,
        limit: int = 1 << 30,
    ) -> float:
        """Exact-match accuracy over held-out pictures.

        Args:
            corpus: held-out pairs.
            questions: asks about picture i of that corpus.
            make: makes a cache from source states `[B, N, d_s]` and target states `[B, N, d_r]`.
            count: questions per picture.
            limit: most pictures.
        """
        right = []
        with torch.no_grad():
            for start in range(0, min(len(corpus), limit), 32):
                chosen = range(start, min(start + 32, len(corpus), limit))
                rows = [
                    [(self.question_ids(q), self.answer_ids(a)) for q, a in questions(i, count, 0)]
                    for i in chosen
                ]
                packed = Packed.of(rows, self.device)
                x = corpus.x[start : start + len(rows)].astype(np.float32)
                layers = make(x, corpus.y[start : start + len(rows)])
                right.append(packed.exactly_right(self.logits(packed, layers)))
        return float(torch.cat(right).float().mean())

    # -- stages ----------------------------------------------------------------------------------

    def run(self, report: Callable[[], dict[str, float]] | None = None) -> None:
        """Both stages, from wherever an earlier run stopped.

        Args:
            report: extra figures for the log, called a few times per stage.
        """
        settings = self.settings
        if settings.batch % distributed.size():
            raise FitError(
                f"{distributed.size()} processes cannot share batches of {settings.batch}"
            )
        descent = Descent(
            self.map,
            (
                Stage("reconstruct", settings.reconstruct_steps, settings.rate, judged=False),
                Stage("task", settings.task_steps, settings.task_rate or 0.5 * settings.rate),
                Stage("finish", settings.finish_steps, settings.finish_rate, fresh=True),
            ),
            self._loss,
            self.folder,
            asdict(settings),
            self.about,
            seed=settings.seed,
            patience=settings.patience,
            save_every_s=self.save_every_s,
            details=self.details,
        )
        descent.run(report)
        self.spent_s = descent.spent_s

    def _loss(self, step: int, stage: str, begun: int, rng: np.random.Generator) -> Tensor:
        with trained_attention(self.device.type):
            if stage == "reconstruct":
                return self._reconstruct(rng)
            return self._task(step, rng, *self._rounding(stage, begun))

    def _batch(self, rng: np.random.Generator, size: int) -> tuple[npt.NDArray[np.int64], Tensor]:
        chosen = np.sort(rng.choice(len(self.corpus), size, replace=False))
        chosen = chosen[distributed.rank() :: distributed.size()]
        return chosen, self._rows(0, chosen)

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor] | None:
        return _kept_there(self.corpus, self.device)

    def _rows(self, side: int, chosen: npt.NDArray[np.int64]) -> Tensor:
        """States of some pairs, the source's (0) or the target's (1), float32 on the device."""
        if self._pairs is not None:
            return self._pairs[side][torch.from_numpy(chosen).to(self.device)].float()
        return self.placed((self.corpus.x, self.corpus.y)[side][chosen])

    def _reconstruct(self, rng: np.random.Generator) -> Tensor:
        chosen, x = self._batch(rng, 2 * self.settings.batch)
        mean, scale = self.map.y_stats
        want = self._rows(1, chosen).sub_(mean).div_(scale)  # in place: `_rows` gave a large copy
        there = ~x[..., 0].isnan()
        if not bool(there.all()):  # one row of all present tokens
            x, want = x[there][None], want[there][None]
        return apart(self.map.predict(x), want) + (
            self.settings.penalty_weight * self.map.penalty()
        )

    def _task(
        self, step: int, rng: np.random.Generator, scale: float, rate_weight: float
    ) -> Tensor:
        settings = self.settings
        chosen, x = self._batch(rng, settings.batch)
        packed = self.packed(chosen.tolist(), settings.questions, step)
        absent = x[..., :1].isnan()
        way = Way(scale, settings.quiet, self._kept(rng, x) if scale else None)
        states, bits = self.map.travel(torch.where(absent, 0.0, x), way)
        if bool(absent.any()):
            states = torch.where(absent, torch.nan, states)
        with products(self.device.type):
            with torch.no_grad():
                teacher = self.logits(packed, self.layers(self._rows(1, chosen)))
            student = self.logits(packed, self.layers(states))
        loss = self._answer_loss(student, teacher)
        if settings.task_weight:
            mean, spread = self.map.y_stats
            want = self._rows(1, chosen)
            there = ~want[..., 0].isnan()
            got, want = ((s[there] - mean) / spread for s in (states, want))
            loss = settings.task_weight * loss + apart(got, want)
        return loss + rate_weight * bits + settings.penalty_weight * self.map.penalty()

    def _kept(self, rng: np.random.Generator, x: Tensor) -> Tensor | None:
        """Which tokens of `x [B, N, d_s]` travel; None for all."""
        if not self.settings.drop:
            return None
        chance = self.settings.drop * rng.random((len(x), 1))
        return torch.from_numpy(rng.random(x.shape[:2]) >= chance).to(x.device)

    def _rounding(self, stage: str, begun: int) -> tuple[float, float]:
        """The rounding steps of latents and the price of a bit, at a stage's step.

        For the first quarter of the task stage latents are not rounded; over the second quarter the
        price of a bit rises.
        """
        settings = self.settings
        if stage == "finish":
            return settings.finish_scale, settings.finish_weight
        quarter = settings.task_steps // 4
        rounding = begun - quarter
        worth = settings.rate_weight * min(1.0, max(0, rounding + 1) / max(1, quarter))
        return (settings.step_scale if rounding >= 0 else 0.0), worth

    def _answer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The task loss, a scalar, from logits `[n, vocabulary]` at the answers' tokens."""
        loss = student.new_zeros(())
        if self.settings.task in ("kl", "both"):
            loss = loss + F.kl_div(
                student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
            )
        if self.settings.task in ("ce", "both"):
            loss = loss + F.cross_entropy(student, teacher.argmax(-1), reduction="sum")
        return loss / distributed.mean_count(len(student))


def _kept_there(corpus: Corpus, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Both sides of a corpus on a GPU, if it has room for them; else batches are copied in turn."""
    if device.type != "cuda" or not isinstance(corpus.x, np.ndarray):
        return None
    if not isinstance(corpus.y, np.ndarray):
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if corpus.x.nbytes + corpus.y.nbytes > _SHARE_FOR_PAIRS * free:
        return None
    return torch.from_numpy(corpus.x).to(device), torch.from_numpy(corpus.y).to(device)


class _Apart(torch.autograd.Function):
    """`apart`, in few passes over large tensors."""

    @staticmethod
    def forward(ctx: Any, got: Tensor, want: Tensor) -> Tensor:
        off = (got - want).flatten()
        square = torch.dot(off, off) / off.numel()
        inner, own, other = (
            torch.einsum("...d,...d->...", a, b) for a, b in ((got, want), (got, got), (want, want))
        )
        own, other = own.sqrt().clamp(min=_LEAST_NORM), other.sqrt().clamp(min=_LEAST_NORM)
        cosine = inner / (own * other)
        ctx.save_for_backward(got, want, own, other, cosine)
        return square + 0.5 * (1 - cosine.mean())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        got, want, own, other, cosine = ctx.saved_tensors
        share, turn = 2 / got.numel(), 0.5 / cosine.numel()
        of_got = grads[0] * (share + turn * cosine / own.square())
        of_want = grads[0] * (share + turn / (own * other))
        return (got * of_got.unsqueeze(-1)).addcmul_(want, of_want.unsqueeze(-1), value=-1), None


def apart(got: Tensor, want: Tensor) -> Tensor:
    """`MSE + 0.5 (1 - cosine)` of z-scored states `[..., d_r]`; gradients flow into the first."""
    found: Tensor = _Apart.apply(got, want)  # type: ignore[no-untyped-call]
    return found


def plot_losses(log: Path, picture: Path) -> None:
    """Draw a training log: the loss of every step, smoothed, and held-out accuracy where known.

    Args:
        log: `log.jsonl` of a `Trainer`; an empty one is not drawn.
        picture: a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    every: list[dict[str, Any]] = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(ValueError):  # a line cut off by a full disk
            every.append(json.loads(line))
    if not every:
        return
    # The last run only; a step repeated after an interruption counts once.
    begun = max((i for i, row in enumerate(every) if row["step"] == 0), default=0)
    rows = list({row["step"]: row for row in every[begun:]}.values())
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for stage in ("reconstruct", "task", "finish"):
        part = [row for row in rows if row["stage"] == stage]
        if not part:
            continue
        losses = np.array([row["loss"] for row in part])
        width = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot([row["step"] for row in part][width - 1 :], smooth, label=f"{stage} loss")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    judged = [row for row in rows if "accuracy" in row]
    if judged:
        right = axes.twinx()
        right.plot([row["step"] for row in judged], [row["accuracy"] for row in judged], "k.--")
        right.set_ylabel("held-out accuracy (dots)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
