"""What an error of the target's state costs its answers, measured through the frozen model.

Knows a frozen target, pairs and questions about them. Does not know: source states, maps, files.
Reconstruction counts every number of a state alike; answers do not: in Gemma 3 270M two thirds of
what they depend on lies in the values of one layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from projector.moments import Doubles
from projector.packed import Packed
from projector.products import products
from projector.ragged import present
from protos.errors import FitError

if TYPE_CHECKING:
    from projector.train import Trainer

Floats = npt.NDArray[np.floating]

_INPUTS, _BATCH, _ASKED = 960, 16, 4  # what is measured on


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
            for some in tqdm(every, desc="sensitivity", unit="batch")
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
    draw = torch.Generator().manual_seed(0)
    for states, packed in batches:
        leaf = trainer.placed(states).requires_grad_()
        with products(trainer.device.type):
            logits = trainer.logits(packed, trainer.layers(leaf)).float()
        with torch.no_grad():
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=draw)
        loss = -logits.log_softmax(-1).gather(1, drawn.to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        rows = gradient[torch.from_numpy(present(states)).to(leaf.device)]
        rows = rows.unflatten(-1, (blocks, -1)).transpose(0, 1)
        part = (rows.mT @ rows).double().cpu()
        total = part if total is None else total + part
    if total is None:
        raise FitError("no pairs to measure the target's sensitivity on")
    found: Doubles = total.numpy()
    return found
