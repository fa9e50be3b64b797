"""Gradient descent on one module that survives kill -9, and keeps its last step on Ctrl-C (torch).

It handles optimisers, learning rates, checkpoints, early stopping and one JSON line per step; the
caller brings module and loss. Under `torchrun` every process takes the same steps; the first one
writes.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from projector.training import distributed, preflight
from protos.errors import ConfigError, FitError
from protos.process.files import write_files
from protos.process.folders import open_file
from protos.process.progress import Progress, note
from protos.process.stopping import Stopped, Stopping

_KEPT = {"optimiser", "step", "settings", "about", "best", "stale", "spent_s"}
_UNREADABLE = (  # what torch's unpickler raises of bytes that it did not write
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(AssertionError, AttributeError, LookupError, TypeError, ValueError),
)
_WARM_STEPS = 50
_LAST_RATE = 0.03  # a stage ends with this share of its peak rate


class Trained(Protocol):
    """A module that `Descent` can train."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups; `scale` multiplies the learning rate."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in `nn.Module`."""

    def state_dict(self) -> dict[str, Any]:
        """As in `nn.Module`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """As in `nn.Module`."""


@dataclass(frozen=True)
class Stage:
    """A run of steps with one learning-rate schedule: a short rise, then half a cosine.

    Attributes:
        name: its name in the log.
        steps: its length.
        rate: its peak learning rate.
        judged: whether reports in it count for early stopping.
        fresh: whether it begins with a new optimiser.
    """

    name: str
    steps: int
    rate: float
    judged: bool = True
    fresh: bool = False


@dataclass
class Descent:
    """One module's training, resumable.

    Attributes:
        module: changed in place.
        stages: in their order.
        loss: a step's loss, `loss(step, stage, begun, rng)`; `begun` is the step's place in its
            stage, `rng` is the step's own.
        folder: folder of `<what>.pt` (the checkpoint) and `log.jsonl`.
        settings: a checkpoint made with other settings is not resumed.
        about: digest of the module and its data; a checkpoint of others is not resumed.
        what: name of the module.
        seed: seed of every step's `rng`.
        decay: weight decay.
        reports: reports per stage.
        patience: reports without a better `accuracy` after which training ends with the best
            weights reported; 0: never.
        save_every_s: seconds from one checkpoint to the next.
        details: parts of `about` by name; messages name those that changed since a checkpoint.
    """

    module: Trained
    stages: tuple[Stage, ...]
    loss: Callable[[int, str, int, np.random.Generator], Tensor]
    folder: Path
    settings: Mapping[str, Any]
    about: str = ""
    what: str = "map"
    seed: int = 0
    decay: float = 0.0
    reports: int = 5
    patience: int = 0
    save_every_s: float = 300.0
    details: Mapping[str, Any] = field(default_factory=dict)
    spent_s: float = 0.0
    """Seconds of training so far, those before an interruption included."""

    def run(self, report: Callable[[], dict[str, float]] | None = None) -> None:
        """All stages, from wherever an earlier run stopped.

        A checkpoint that does not match is renamed, and a message says what has changed. SIGINT and
        SIGTERM let the step under way finish and keep it.

        Args:
            report: extra figures for the log.

        Raises:
            FitError: a loss that is not finite, or a checkpoint that cannot be read.
            DiskFullError: there is no room for a checkpoint (checked before the first step too);
                the last one is still whole.
            Stopped: a signal asked for it; the checkpoint holds the step that was under way.
        """
        with Stopping(patient=distributed.size() > 1) as stopping:
            self._run(report, stopping)

    def _run(self, report: Callable[[], dict[str, float]] | None, stopping: Stopping) -> None:
        optimiser = self._optimiser()
        total = sum(stage.steps for stage in self.stages)
        state_file = self.folder / f"{self.what}.pt"
        done, best, best_weights, stale = 0, -1.0, None, 0
        changed: list[str] = []
        if state_file.exists():
            state = _checkpoint(state_file)
            if (state["settings"], state["about"]) == (dict(self.settings), self.about):
                self.module.load_state_dict(state[self.what])
                optimiser.load_state_dict(state["optimiser"])
                done, best = state["step"], state["best"]
                best_weights, stale = state[f"best_{self.what}"], state["stale"]
                self.spent_s = state["spent_s"]
            else:
                changed = self._changes(state)
        if self.patience and stale >= self.patience:
            total = done
        saved, first = time.monotonic(), distributed.rank() == 0
        begun_s = saved - self.spent_s
        distributed.barrier()  # no process writes a checkpoint before all have read the last one
        if changed and first:
            kept = _aside(state_file)
            note(
                f"training of the {self.what} starts anew: {'; '.join(changed)}. What was trained "
                f"before is kept: {kept}"
            )
        if first and done < total:
            numbers = sum(p.numel() * p.element_size() for p in self.module.parameters())
            best_too = 1 + (self.patience > 0)
            size = numbers * (2 + best_too)  # the optimiser has two moments
            preflight.room(self.folder, size, f"a checkpoint of the {self.what}")
            note(
                f"training the {self.what} from step {done} of {total}; Ctrl-C keeps what is done, "
                "and the same command goes on from there"
            )
        path = self.folder / "log.jsonl" if first else Path(os.devnull)
        shown = Progress(f"training the {self.what}", total, shown=first)
        with _appended(path) as log, shown:
            shown.skip(done)
            for step in range(done, total):
                stage, begun = self._place(step)
                if stage.fresh and begun == 0:
                    optimiser = self._optimiser()
                row = {
                    "step": step,
                    "stage": stage.name,
                    "loss": self._step(optimiser, step, stage, begun),
                }
                every = max(1, stage.steps // self.reports)
                if report and (begun + 1 == stage.steps or (begun + 1) % every == 0):
                    figures = report()
                    row |= figures
                    if stage.judged and self.patience:
                        better = figures.get("accuracy", -1.0) > best
                        stale = 0 if better else stale + 1
                        if better:
                            best = figures["accuracy"]
                            weights = self.module.state_dict()
                            best_weights = {k: v.clone() for k, v in weights.items()}
                log.write(json.dumps(row) + "\n")
                log.flush()
                over = step + 1 == total or (self.patience > 0 and stale >= self.patience)
                asked = distributed.most(stopping.asked)
                if first and (asked or time.monotonic() - saved > self.save_every_s or over):
                    saved = time.monotonic()
                    with stopping.writing():
                        blob = io.BytesIO()
                        torch.save(
                            {
                                self.what: self.module.state_dict(),
                                "optimiser": optimiser.state_dict(),
                                "step": step + 1,
                                "settings": dict(self.settings),
                                "about": self.about,
                                "details": dict(self.details),
                                "best": best,
                                f"best_{self.what}": best_weights,
                                "stale": stale,
                                "spent_s": time.monotonic() - begun_s,
                            },
                            blob,
                        )
                        write_files(self.folder, {state_file.name: blob.getvalue()})
                shown.advance()
                if asked:
                    if first:
                        note(
                            f"stopped by {signal.Signals(asked).name} after step {step + 1} of "
                            f"{total}, kept in {state_file}: the same command goes on from there"
                        )
                    raise Stopped(asked)
                if over:
                    break
        if done < total:
            self.spent_s = time.monotonic() - begun_s
        if best_weights is not None:
            self.module.load_state_dict(best_weights)

    def _changes(self, state: Mapping[str, Any]) -> list[str]:
        """How a checkpoint differs from this training, in words."""
        known = state.get("details", {})
        was, now = {**state["settings"], **known}, {**self.settings, **self.details}
        names = [n for n in {**was, **now} if n in self.settings or known or n in state["settings"]]
        told = [
            f"{name} was {was.get(name, 'not set')}, is {now.get(name, 'not set')}"
            for name in names
            if was.get(name) != now.get(name)
        ]
        return told or ["the models, the inputs or the shape of what is trained are others"]

    def _step(self, optimiser: torch.optim.Optimizer, step: int, stage: Stage, begun: int) -> float:
        """Take one step; returns its loss."""
        rate = stage.rate * min(1.0, (begun + 1) / _WARM_STEPS)
        fall = 0.5 * (1 + math.cos(math.pi * begun / stage.steps))
        rate *= _LAST_RATE + (1 - _LAST_RATE) * fall
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss = self.loss(step, stage.name, begun, np.random.default_rng([self.seed, step]))
        optimiser.zero_grad(set_to_none=True)
        value = loss.item()
        if not math.isfinite(value):
            raise FitError(f"step {step}: the loss is {value}: lower the rate")
        loss.backward()
        distributed.average_gradients(self.module.parameters())
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        optimiser.step()
        return value

    def _optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.module.groups(), weight_decay=self.decay, betas=(0.9, 0.98))

    def _place(self, step: int) -> tuple[Stage, int]:
        """The stage that a step belongs to, and its place in it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ValueError(f"step {step} lies past the last stage")


def _aside(path: Path) -> Path:
    """Rename a checkpoint to the first free name."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.earlier-{number}{path.suffix}")).exists():
        number += 1
    try:
        os.replace(path, kept)
    except OSError as error:
        raise ConfigError(f"cannot keep {path} as {kept}: {error.strerror}") from error
    return kept


def _appended(path: Path) -> TextIO:
    """Open a file to append; anything but a file is refused, never waited for."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "a")


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise FitError(f"{path} is not a readable checkpoint ({reason}); remove it") from error
    if not isinstance(state, dict) or not _KEPT <= set(state):
        raise FitError(f"{path} is no checkpoint of a training; remove it")
    return state
