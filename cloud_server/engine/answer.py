"""Answer: prefill the questions over their scenes, then make one token a step for every answer.

The running batch itself is in `batch.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from cloud_server.engine import spans
from cloud_server.engine.batch import Row, RunningBatch
from cloud_server.engine.jobs import Answered, TokenMade
from cloud_server.engine.scenes import Scene
from cloud_server.engine.work import Work
from projector.models.frozen import FrozenModel
from projector.models.slab import Part

_MOST_PADDING = 0.5


class Answering:
    """The answers being made.

    Args:
        model: its weights are not changed.
    """

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._batch: RunningBatch[Work] = RunningBatch(model)

    def __len__(self) -> int:
        return len(self._batch)

    def require_fit(self, work: Work, scene: Scene) -> None:
        """Refuse a question that is too long to answer about its scene.

        Raises:
            ContextError: the model's windows do not reach from the answer's last token to the
                scene's first.
        """
        job, model = work.job, self._model
        length = len(model.prefix_ids) + scene.tokens + len(work.question) + job.max_new_tokens
        model.layout.require_window(length, "a context with its question and answer")

    def prefill(
        self, group: Sequence[Work], contexts: Sequence[Sequence[Part]]
    ) -> Iterator[TokenMade | Answered]:
        """Run questions over their scenes; yields the events that follow.

        Questions of different lengths are padded to the longest, unless that costs too much.

        Args:
            group: the work of each question, tokenized.
            contexts: the parts before each question, see `RunningBatch.join`.
        """
        for part in _alike([len(work.question) for work in group]):
            started, works = time.perf_counter(), [group[index] for index in part]
            rows = self._batch.join(
                [contexts[index] for index in part],
                [work.question for work in works],
                works,
                [work.job.max_new_tokens for work in works],
                added=[work.added for work in works],
            )
            prefill_s, now = time.perf_counter() - started, time.monotonic_ns()
            for index, work in zip(part, works, strict=True):
                before = sum(keys.shape[2] for keys, _ in contexts[index])
                work.prefill_s, work.prefilled_ns, work.scene = prefill_s, now, None
                work.prompt_tokens = before + len(work.question)
            yield from self._say(rows)

    def step(self) -> Iterator[TokenMade | Answered]:
        """Make one more token for every answer; yields the events that follow."""
        return self._say(self._batch.step())

    def cancel(self, job: int) -> bool:
        """End a job's answer; returns whether it was being made."""
        for row in self._batch.rows:
            if row.owner.job.id == job:
                row.done = True
                self._batch.leave()
                return True
        return False

    def _say(self, rows: Sequence[Row[Work]]) -> Iterator[TokenMade | Answered]:
        """Yield what each row has that was not sent yet; then free the rows that are done."""
        for row in rows:
            work, text = row.owner, self._model.text(row.tokens)
            if row.fresh:
                # A character may still be missing bytes; the text of an answer is authoritative.
                whole = text.startswith(work.told) and not text.endswith("\ufffd")
                piece = text[len(work.told) :] if whole else ""
                work.told += piece
                yield TokenMade(work.job.id, len(row.tokens) - 1, piece, work.prompt_tokens)
            if row.done:
                yield Answered(
                    job=work.job.id,
                    text=text,
                    tokens=len(row.tokens),
                    queue_s=work.queue_s,
                    prefill_s=work.prefill_s,
                    generate_s=(time.monotonic_ns() - work.prefilled_ns) / 1e9,
                    prompt_tokens=work.prompt_tokens,
                    spans=spans.of_answer(work),
                )
        self._batch.leave()


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Group questions by length, so that padding is at most half of a group's tokens; indices."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    groups: list[list[int]] = []
    tokens = 0
    for index in order:
        length = lengths[index]
        fits = groups and length * (len(groups[-1]) + 1) <= (1 + _MOST_PADDING) * (tokens + length)
        if not fits:
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += length
    return groups
