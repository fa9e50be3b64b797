"""Whether frames move: which steps of the work run, and since when nothing of their kind ended."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_agent.sight import EdgeModel, Seen, Sight
from projector.codec.arrays import Floats
from projector.codec.confidence import Confidence
from projector.codec.feedback import FeedbackDecoder
from projector.models.running import Running
from protos.layout import KVLayout

MODEL, DISK = "model", "disk"
"""Kinds of steps that must end by themselves; waiting for a picture or the network need not."""


@dataclass
class Pulse:
    """The steps under way, by kind; safe to use from any thread.

    Attributes:
        clock: monotonic, seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _open: dict[str, int] = field(default_factory=dict, repr=False)
    _moved: dict[str, float] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """A step that must end; its end, also by an error, is a move."""
        with self._lock:
            if not self._open.get(kind):
                self._moved[kind] = self.clock()
            self._open[kind] = self._open.get(kind, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._open[kind] -= 1
                self._moved[kind] = self.clock()

    def stuck(self, limit_s: float) -> str:
        """The kind of step that has not moved for so long; empty if everything moves."""
        with self._lock:
            for kind, number in self._open.items():
                if number and self.clock() - self._moved[kind] > limit_s:
                    return kind
        return ""


class WatchedModel:
    """A small model whose runs are steps of a pulse.

    Args:
        model: the model.
        pulse: knows its runs.
    """

    def __init__(self, model: EdgeModel, pulse: Pulse) -> None:
        self._model, self._pulse = model, pulse

    @property
    def layout(self) -> KVLayout:
        """See `EdgeModel`."""
        return self._model.layout

    @property
    def confidence(self) -> Confidence | None:
        """See `EdgeModel`."""
        return self._model.confidence

    @property
    def running(self) -> Running:
        """See `EdgeModel`."""
        return self._model.running

    def see(self, seen: Seen) -> Sight:
        """See `EdgeModel`."""
        with self._pulse.step(MODEL):
            return self._watched(self._model.see(seen))

    def inject(self, decoder: FeedbackDecoder, latents: Floats) -> Sight:
        """See `EdgeModel`."""
        with self._pulse.step(MODEL):
            return self._watched(self._model.inject(decoder, latents))

    def _watched(self, sight: Sight) -> Sight:
        answer, first = sight.answer, sight.first_token

        def watched_answer(question: str, max_new_tokens: int) -> str:
            with self._pulse.step(MODEL):
                return answer(question, max_new_tokens)

        def watched_first(question: str) -> npt.NDArray[np.float32]:
            assert first is not None
            with self._pulse.step(MODEL):
                return first(question)

        return dataclasses.replace(
            sight, answer=watched_answer, first_token=None if first is None else watched_first
        )
