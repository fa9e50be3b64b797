"""How a head is trained: cross-entropy until held-out accuracy stops rising (torch)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from projector.heads.head import Head
from projector.heads.judge import predictions
from projector.heads.samples import Samples
from projector.training.descent import Descent, Stage

_DROPOUT = 0.2
_REPORTS = 20


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained.

    Attributes:
        steps: most training steps.
        batch: samples per step.
        rate: peak learning rate.
        decay: weight decay.
        patience: end after this many of the 20 reports without better held-out accuracy; 0: never.
        seed: seed of everything random.
    """

    steps: int = 600
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    patience: int = 8
    seed: int = 0


def train(
    head: Head, training: Samples, held: Samples, settings: HeadSettings, folder: Path
) -> None:
    """Cross-entropy until held-out accuracy stops rising; resumes where an earlier run stopped.

    Args:
        head: changed in place; its lens is fitted.
        training: samples to learn from.
        held: samples that decide when to stop; they share no picture with `training`.
        settings: how long and how fast.
        folder: where checkpoint and log are kept.

    Raises:
        FitError: the loss is not finite.
    """
    classes = len(head.config.classes)
    head.counts.copy_(torch.from_numpy(np.bincount(training.targets, minlength=classes)))
    folder.mkdir(parents=True, exist_ok=True)

    def loss(_step: int, _stage: str, _begun: int, rng: np.random.Generator) -> Tensor:
        rows = rng.choice(len(training), min(settings.batch, len(training)), replace=False)
        torch.manual_seed(int(rng.integers(1 << 62)))
        logits = head.logits(training, rows, 1 - _DROPOUT)
        return functional.cross_entropy(logits, torch.from_numpy(training.targets[rows]))

    def report() -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions(head, held) == held.targets))}

    inputs = (head.lens.numpy(), training.labels.pictures, training.targets)
    digest = hashlib.sha256(b"".join(part.tobytes() for part in inputs)).hexdigest()
    Descent(
        head,
        (Stage("head", settings.steps, settings.rate),),
        loss,
        folder,
        asdict(settings),
        json.dumps([asdict(head.config), digest]),
        what="head",
        seed=settings.seed,
        decay=settings.decay,
        reports=_REPORTS,
        patience=settings.patience,
        details={**asdict(head.config), "samples and their states": digest[:12]},
    ).run(report)
