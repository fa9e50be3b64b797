"""Shadow: how far a scene is from the cache that its own picture makes, and do answers differ?

One picture at a time, in small pieces (`Shadowing.step`): the picture's prefill, then, for a few
questions after the others, a token of each answer. A piece is worked on when the engine has nothing
else to do, and once in `_EVERY` steps if it always has. Scene and picture are answered side by side
in a batch of their own, as devices' questions are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

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

SHADOW_ROWS = 8
"""Answers that are made at once: each holds a copy of its scene or picture."""
_EVERY = 32
"""A busy engine gives every so many steps to shadows."""


class _Comparison:
    """The answers from one scene and its picture, being made.

    Args:
        job: with `shadow`.
        queue_s: until its picture was read.
        errors: as in `Measured`.
        contexts: prefix and scene, prefix and picture: the parts before each question.
        asked: questions that fit, with their token ids.

    Attributes:
        questions, given, seen, kl: as in `Measured`, so far.
    """

    def __init__(
        self,
        job: Job,
        queue_s: float,
        errors: list[float],
        contexts: tuple[list[Part], list[Part]],
        asked: Sequence[tuple[str, list[int]]],
    ) -> None:
        self.job, self.queue_s, self.errors, self.contexts = job, queue_s, errors, contexts
        self.left = deque(asked)
        self.questions: list[str] = []
        self.given: list[str] = []
        self.seen: list[str] = []
        self.kl: list[float] = []

    def next(self) -> list[list[int]]:
        """Token ids of the questions that are asked next, `SHADOW_ROWS` rows of them at most."""
        some = [self.left.popleft() for _ in range(min(len(self.left), SHADOW_ROWS // 2))]
        self.questions += [question for question, _ in some]
        return [ids for _, ids in some]

    def first(self, logits: Tensor) -> None:
        """Take the logits of first tokens, `[2 Q, vocabulary]`: scene's, then picture's."""
        chances = torch.log_softmax(logits.double(), dim=-1)
        given, seen = chances.chunk(2)
        self.kl += (seen.exp() * (seen - given)).sum(dim=-1).clamp(min=0.0).tolist()


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
        self._batch: RunningBatch[bool] = RunningBatch(model)
        self._rows: list[Row[bool]] = []
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
            self._take()
        elif self._now.left:
            self._ask(self._now)
        if self._now is not None and not len(self._batch) and not self._now.left:
            self._finish(self._now)

    def _begin(self, read: Read[Picture], scenes: SceneMemory) -> None:
        try:
            self._compare(read, scenes)
        except BridgeError as error:
            self._emit(failed(read.job.id, error))
        finally:
            scenes.end_step()  # what goes on has copies

    def _compare(self, read: Read[Picture], scenes: SceneMemory) -> None:
        """See the picture and compare the caches.

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
        queue_s = max(0.0, (read.taken_ns - job.received_ns) / 1e9)
        # the scene's pages may get another scene before the last question
        scene = keys.clone(), values.clone()
        contexts: tuple[list[Part], list[Part]] = [prefix, scene], [prefix, own]
        self._now = _Comparison(job, queue_s, errors, contexts, asked)

    def _ask(self, now: _Comparison) -> None:
        """Make the first tokens of the next questions."""
        ids = now.next()
        count = len(ids)
        self._rows = self._batch.join(
            [now.contexts[0]] * count + [now.contexts[1]] * count,
            ids * 2,
            [seen for seen in (False, True) for _ in range(count)],
            [now.job.max_new_tokens] * (2 * count),
            now.first,
        )
        self._batch.leave()
        self._take()

    def _take(self) -> None:
        """Take the answers of the questions that were asked last, once all of them are made."""
        if self._now is None or len(self._batch):
            return
        for row in self._rows:
            into = self._now.seen if row.owner else self._now.given
            into.append(self._model.text(row.tokens))
        self._rows = []

    def _asked(self, job: Job, tokens: int) -> list[tuple[str, list[int]]]:
        """The questions that fit the model's windows, with their token ids.

        Raises:
            BridgeError: none fits; the error of the last one.
        """
        asked: list[tuple[str, list[int]]] = []
        why: BridgeError = ContextError("there is no question to compare the answers to")
        for question in job.shadow:
            try:
                ids = self._question_ids(question)
                length = len(self._model.prefix_ids) + tokens + len(ids) + job.max_new_tokens
                self._model.layout.require_window(length, "a context with its question and answer")
            except BridgeError as error:
                why = error
                continue
            asked.append((question, ids))
        if not asked:
            raise why
        return asked

    def _finish(self, now: _Comparison) -> None:
        self._emit(
            Measured(
                job=now.job.id,
                queue_s=now.queue_s,
                errors=now.errors,
                questions=now.questions,
                given=now.given,
                seen=now.seen,
                kl=now.kl,
            )
        )
        self._end()

    def _end(self) -> None:
        """Let go of the present picture, and of the batch's memory."""
        self._now, self._rows, self._batch = None, [], RunningBatch(self._model)


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
