"""What an error of the target's state costs its answers, measured through the frozen model.

Reconstruction weighs every number of a state alike; answers do not. In Gemma 3 270M two thirds of
the answers' sensitivity lies in the values of one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.maps.moments import Doubles
from projector.models.autocast import products
from projector.models.packed import Packed
from projector.training.ragged import present
from protos.errors import FitError
from protos.process.progress import track

if TYPE_CHECKING:
    from projector.training.train import Trainer

Floats = npt.NDArray[np.floating]

Weights = npt.NDArray[np.float32]

FLOOR = 0.1
_INPUTS, _BATCH, _ASKED = 960, 16, 4  # inputs, batch size and questions measured
_ASKED_OF_TOKENS, _CHUNK = 16, 64


def measure(trainer: Trainer[Any]) -> Doubles:
    """Second moments at the first 960 of a trainer's pairs, four questions each.

    Args:
        trainer: holds the frozen target, pairs and questions; its map is not looked at.

    Returns:
        As `second_moments`.

    Raises:
        FitError: there are no pairs.
    """
    count = min(len(trainer.corpus), _INPUTS)
    every = [range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH)]
    return second_moments(
        trainer,
        (
            (trainer.corpus.y[some.start : some.stop], trainer.packed(some, _ASKED, 0))
            for some in track(every, "sensitivity", "batch")
        ),
    )


def second_moments(trainer: Trainer[Any], batches: Iterable[tuple[Floats, Packed]]) -> Doubles:
    """Second moments of the gradient of the answers' log-likelihood at the target's own states.

    Answers are drawn from the model's own distribution, so that the moments are the Fisher
    information: the KL that a small error e of a state causes is 1/2 e^T F e (Amari, 1998).

    Args:
        trainer: holds the frozen target.
        batches: the target's states `[B, N, d_r]` with questions about them.

    Returns:
        `[2 layers, w, w]`, summed over tokens.

    Raises:
        FitError: there are no batches.
    """
    total: Tensor | None = None
    blocks = 2 * trainer.target.layout.layers
    for states, gradient in _gradients(trainer, batches):
        rows = gradient[torch.from_numpy(present(states)).to(gradient.device)]
        rows = rows.unflatten(-1, (blocks, -1)).transpose(0, 1)
        part = (rows.mT @ rows).double().cpu()
        total = part if total is None else total + part
    if total is None:
        raise FitError("no pairs to measure the target's sensitivity on")
    found: Doubles = total.numpy()
    return found


def token_weights(trainer: Trainer[Any], floor: float = FLOOR) -> Weights:
    """How much the answers depend on each token of each of a trainer's targets.

    The trace of the Fisher information at the token's own state, in units of the target's
    deviations. A regression weighted by it (importance-weighted least squares) fits best the few
    tokens that questions are about.

    Args:
        trainer: holds the frozen target, pairs and questions; its map is not looked at.
        floor: share of the mean weight that is added to each, so that no token is free.

    Returns:
        `[n, M]` float32 of mean 1; 0 past a text's end.

    Raises:
        FitError: there are no pairs, or no answer depends on any state.
    """
    count = len(trainer.corpus)
    every = [range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH)]
    found = np.zeros((count, trainer.target.layout.tokens), dtype=np.float64)
    by = trainer.placed(_deviations(trainer.corpus.y))
    batches = (
        (trainer.corpus.y[some.start : some.stop], trainer.packed(some, _ASKED_OF_TOKENS, 0))
        for some in track(every, "token weights", "batch")
    )
    known = np.zeros(found.shape, dtype=np.bool_)
    for some, (states, gradient) in zip(every, _gradients(trainer, batches), strict=True):
        rows, width = slice(some.start, some.stop), states.shape[1]
        known[rows, :width] = present(states)
        found[rows, :width] = (gradient * by).square().sum(-1).double().cpu().numpy()
    found[~known] = 0.0
    if not found.sum() > 0:
        raise FitError("no answer depends on any token's state: there is nothing to weigh by")
    found /= found[known].mean()
    found[known] = (found[known] + floor) / (1 + floor)
    return found.astype(np.float32)


def _deviations(states: Any) -> Floats:
    """Standard deviations `[d]` of states `[n, M, d]`, or of texts, over their tokens."""
    count, total, square = 0, 0.0, 0.0
    for begin in range(0, len(states), _CHUNK):
        part = states[begin : begin + _CHUNK]
        flat = part[present(part)].astype(np.float64)
        count, total, square = count + len(flat), total + flat.sum(0), square + (flat**2).sum(0)
    found: Floats = np.sqrt(np.maximum(square / count - (total / count) ** 2, 0.0))
    return found


def _gradients(
    trainer: Trainer[Any], batches: Iterable[tuple[Floats, Packed]]
) -> Iterator[tuple[Floats, Tensor]]:
    """States, and at them the gradient of the log-likelihood of answers that the model draws.

    Past a text's end states are NaN and gradients 0.
    """
    draw = torch.Generator().manual_seed(0)
    for states, packed in batches:
        leaf = trainer.placed(states).requires_grad_()
        with products(trainer.device.type):
            logits = trainer.logits(packed, trainer.layers(leaf)).float()
        with torch.no_grad():
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=draw)
        loss = -logits.log_softmax(-1).gather(1, drawn.to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        yield states, gradient
