"""The settings of a training, with what `projector train --help` says of each.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from protos.errors import FitError

TASKS = ("kl", "ce", "both")
ROUNDING = "latents as they will travel: rounded while the map is trained, at steps it learns"
"""Title of the flags' second group."""


def _setting(default: Any, kind: str, said: str, group: str = "") -> Any:
    """A field with its flag's kind of value, help text and group."""
    return field(default=default, metadata={"kind": kind, "help": said, "group": group})


@dataclass(frozen=True)
class TrainSettings:
    """How a map is trained. The help text of each field says what it is."""

    reconstruct_steps: int = _setting(
        0, "count", "steps of MSE + 0.5 (1 - cosine) on z-scored states"
    )
    task_steps: int = _setting(0, "count", "steps of the task loss through the frozen cloud model")
    task: str = _setting(
        "kl",
        "task",
        "task loss: KL from the cloud model's own answers, cross-entropy of its likeliest, or both",
    )
    task_weight: float = _setting(
        0.0,
        "weight",
        "task steps lower MSE + 0.5 (1 - cosine) + L * task loss; 0: the task loss alone",
    )
    batch: int = _setting(
        16, "whole", "pictures in a task step; a step of reconstruction has twice as many"
    )
    questions: int = _setting(8, "whole", "questions per picture of a task step")
    rate: float = _setting(1e-3, "rate", "peak learning rate; quantization steps have 4 times it")
    task_rate: float = _setting(0.0, "rate", "peak rate of the task steps; 0: half of --rate")
    penalty_weight: float = _setting(
        0.01, "weight", "weight of the family's own penalty (low_rank: not being orthonormal)"
    )
    patience: int = _setting(
        0,
        "count",
        "end early after this many held-out reports (five a stage) without gain, with the best "
        "map reported; 0: never",
    )
    seed: int = _setting(0, "seed", "seed of everything random")
    step_scale: float = _setting(
        0.0,
        "weight",
        "latents are rounded to so many steps from the second quarter of the task steps on; 0: not",
        ROUNDING,
    )
    rate_weight: float = _setting(
        0.0,
        "weight",
        "price of one bit per latent, in nats of KL; rises over the second quarter of the task "
        "steps",
        ROUNDING,
    )
    quiet: float = _setting(
        0.0,
        "weight",
        "tokens whose squared levels sum to less are sent as the mean at their position, as at an "
        "operating point",
        ROUNDING,
    )
    drop: float = _setting(
        0.0,
        "rate",
        "a share of each picture's tokens, drawn between 0 and this, is dropped",
        ROUNDING,
    )
    finish_steps: int = _setting(
        0, "count", "steps after those, with the same loss and a fresh optimiser", ROUNDING
    )
    finish_scale: float = _setting(0.0, "weight", "as --step-scale, in these steps", ROUNDING)
    finish_rate: float = _setting(2e-4, "rate", "peak learning rate of these steps", ROUNDING)
    finish_weight: float = _setting(0.0, "weight", "as --rate-weight, in these steps", ROUNDING)

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            FitError: a task loss that does not exist, or settings of rounding without any.
        """
        if self.task not in TASKS:
            raise FitError(f"task loss '{self.task}': expected one of {', '.join(TASKS)}")
        if (self.quiet or self.drop) and not self.rounds:
            raise FitError(
                "--quiet and --drop are of latents that are rounded: give --step-scale or "
                "--finish-scale"
            )

    @property
    def rounds(self) -> bool:
        """Whether latents are rounded in any step."""
        return bool(self.step_scale or self.finish_scale)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return self.reconstruct_steps + self.task_steps + self.finish_steps
