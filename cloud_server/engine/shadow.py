"""Shadow: how far a scene is from the cache that its own picture makes, and do answers differ?

One picture at a time, in small pieces (`Shadowing.step`): the picture's prefill, then a token of
every answer. A piece is worked on when the engine has nothing else to do, and once in `_EVERY`
steps if it always has. Scene and picture are answered side by side in a batch of their own, as
devices' questions are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from cloud_server.engine import inject
from cloud_server.engine.base import Emit
from cloud_server.engine.batch import Row, RunningBatch
from cloud_server.engine.jobs import Job, Measured, failed
from cloud_server.engine.prefill_pictures import prefill_pictures
from cloud_server.engine.reader import Read
from cloud_server.engine.scenes import SceneMemory
from cloud_server.engine.work import Picture
from projector.models.lm import LM
from projector.models.slab import Part
from projector.models.vlm import VLM
from protos.errors import BridgeError, ContextError, PictureError

_EVERY = 64
"""A busy engine gives every so many steps to shadows."""


class _Comparison:
    """The answers from one scene and its picture, being made.

    Attributes:
        job: with `shadow`.
        queue_s: until its picture was read.
        errors, questions, kl: as in `Measured`.
    """

    def __init__(self, job: Job, queue_s: float, errors: list[float], questions: list[str]) -> None:
        self.job, self.queue_s = job, queue_s
        self.errors, self.questions = errors, questions
        self.kl: list[float] = []

    def first(self, logits: Tensor) -> None:
        """Take the logits of the first tokens, `[2 Q, vocabulary]`: scenes', then pictures'."""
        chances = torch.log_softmax(logits.double(), dim=-1)
        given, seen = chances.chunk(2)
        self.kl = (seen.exp() * (seen - given)).sum(dim=-1).clamp(min=0.0).tolist()


class Shadowing:
    """The pictures to compare with their scenes.

    Args:
        model: its weights are not changed.
        question_ids: tokenizes a question.
        emit: gets the event that ends each job.
    """

    def __init__(
        self, model: VLM | LM, question_ids: Callable[[str], list[int]], emit: Emit
    ) -> None:
        self._model, self._question_ids, self._emit = model, question_ids, emit
        self._waiting: deque[Read[Picture]] = deque()
        self._now: _Comparison | None = None
        self._batch: RunningBatch[tuple[int, bool]] = RunningBatch(model)
        self._rows: list[Row[tuple[int, bool]]] = []
        self._passed = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compare."""
        return self._now is not None or bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting) + (self._now is not None)

    def add(self, read: Read[Picture]) -> None:
        """Take a picture that was read, or the error of reading it."""
        self._waiting.append(read)

    def cancel(self, job: int) -> bool:
        """Drop a job; returns whether it was here."""
        for read in self._waiting:
            if read.job.id == job:
                self._waiting.remove(read)
                return True
        if self._now is None or self._now.job.id != job:
            return False
        self._end()
        return True

    def step(self, idle: bool, scenes: SceneMemory) -> None:
        """Do the next piece, if it is time for it.

        Args:
            idle: whether the engine has nothing else to do.
            scenes: where the scenes are held.
        """
        if not self.busy:
            return
        self._passed += 1
        if not idle and self._passed < _EVERY:
            return
        self._passed = 0
        if self._now is None:
            self._begin(self._waiting.popleft(), scenes)
        elif len(self._batch):
            self._batch.step()
            self._batch.leave()
        if self._now is not None and not len(self._batch):
            self._finish(self._now)

    def _begin(self, read: Read[Picture], scenes: SceneMemory) -> None:
        try:
            self._compare(read, scenes)
        except BridgeError as error:
            self._emit(failed(read.job.id, error))
        finally:
            scenes.end_step()  # the batch has copies

    def _compare(self, read: Read[Picture], scenes: SceneMemory) -> None:
        """See the picture, compare the caches, and make the first tokens.

        Raises:
            BridgeError: the picture cannot be read or seen, the scene is not held, or no question
                fits.
        """
        job = read.job
        if read.prepared is None:
            raise read.error or PictureError("the picture was not read")
        keys, values = scenes.read(scenes.get(job.scene))
        own_keys, own_values = prefill_pictures(self._model, [read.prepared])
        own = own_keys[:, 0].to(keys.dtype), own_values[:, 0].to(values.dtype)
        errors = relative_errors((keys, values), own)
        asked = self._asked(job, keys.shape[2])
        prefix = inject.prefix_of(self._model)
        now = _Comparison(
            job,
            max(0.0, (read.taken_ns - job.received_ns) / 1e9),
            errors,
            [job.shadow[index] for index, _ in asked],
        )
        count = len(asked)
        contexts: list[list[Part]] = [[prefix, (keys, values)]] * count + [[prefix, own]] * count
        self._rows = self._batch.join(
            contexts,
            [ids for _, ids in asked] * 2,
            [(index, seen) for seen in (False, True) for index in range(count)],
            [job.max_new_tokens] * (2 * count),
            now.first,
        )
        self._batch.leave()
        self._now = now

    def _asked(self, job: Job, tokens: int) -> list[tuple[int, list[int]]]:
        """The questions that fit the model's windows, by their place in the job.

        Raises:
            BridgeError: none fits; the error of the last one.
        """
        asked: list[tuple[int, list[int]]] = []
        why: BridgeError = ContextError("there is no question to compare the answers to")
        for index, question in enumerate(job.shadow):
            try:
                ids = self._question_ids(question)
                length = len(self._model.prefix_ids) + tokens + len(ids) + job.max_new_tokens
                self._model.layout.require_window(length, "a context with its question and answer")
            except BridgeError as error:
                why = error
                continue
            asked.append((index, ids))
        if not asked:
            raise why
        return asked

    def _finish(self, now: _Comparison) -> None:
        texts = {row.owner: self._model.text(row.tokens) for row in self._rows}
        count = len(now.questions)
        self._emit(
            Measured(
                job=now.job.id,
                queue_s=now.queue_s,
                errors=now.errors,
                questions=now.questions,
                given=[texts[index, False] for index in range(count)],
                seen=[texts[index, True] for index in range(count)],
                kl=now.kl,
            )
        )
        self._end()

    def _end(self) -> None:
        self._now, self._rows = None, []
        for row in self._batch.rows:
            row.done = True
        self._batch.leave()


def relative_errors(made: Part, own: Part) -> list[float]:
    """Of each layer, the relative L2 error of keys and values together.

    Args:
        made: keys and values of the scene, `[layers, kv_heads, N, head_dim]` each.
        own: those that the model makes of the picture. Rotation changes no distance.
    """
    wrong = torch.zeros(len(own[0]), dtype=torch.float64, device=own[0].device)
    size = torch.zeros_like(wrong)
    with torch.inference_mode():
        for mine, theirs in zip(made, own, strict=True):
            there = theirs.double()
            wrong += ((mine.double() - there) ** 2).sum(dim=(1, 2, 3))
            size += (there**2).sum(dim=(1, 2, 3))
        errors: list[float] = torch.sqrt(wrong / size.clamp(min=1e-30)).tolist()
    return errors
