"""The ledger: every request that devices sent, every event that they got, and the verdict.

    due → sent (once an attempt) → accepted → first token → answer, or refused, or the stream broke

The verdict is good if each request was answered exactly once with the right text, or refused with a
cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protos.neuralbridge.v1 import bridge_pb2 as pb


@dataclass(slots=True, eq=False)
class Entry:
    """One request, over all its attempts. Times are seconds on the monotonic clock.

    Attributes:
        id: request id.
        device: name of the device.
        item: index into the pool.
        due: when it should be sent.
        sent: when it was written, one time an attempt.
        accepted: when its first Accepted came; 0 before.
        first_token: when its first token or answer came; 0 before.
        ended: when its terminal event came, or it was given up; 0 before.
        answers: the text of every answer that came for this id.
        from_memory: answers that were not computed again.
        refusals: names of the errors that attempts were refused with.
        broken: causes of the streams that broke while it was open.
        cause: why it ended without an answer.
        surplus: number of events after the terminal event of the last attempt.
        timings: the last answer's timings.
    """

    id: bytes
    device: str
    item: int
    due: float
    sent: list[float] = field(default_factory=list)
    accepted: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    answers: list[str] = field(default_factory=list)
    from_memory: int = 0
    refusals: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    cause: str = ""
    surplus: int = 0
    timings: pb.Timings | None = None

    @property
    def answered(self) -> bool:
        """Whether an answer came."""
        return bool(self.answers)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a ledger.

    Attributes:
        requests: number of requests.
        answered: requests with exactly one answer.
        refused: requests that ended without an answer, by cause.
        lost: requests that have no end.
        doubled: requests with a second answer or another event after their end.
        wrong: requests with another text than from an undisturbed service.
        resent: attempts after the first one of each request.
    """

    requests: int
    answered: int
    refused: dict[str, int]
    lost: list[str]
    doubled: list[str]
    wrong: list[str]
    resent: int

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, doubled or wrong."""
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        refused = ", ".join(f"{n} {cause}" for cause, n in sorted(self.refused.items()))
        return (
            f"{self.requests} requests: {self.answered} answered, {sum(self.refused.values())} "
            f"refused ({refused or 'none'}), {len(self.lost)} lost, {len(self.doubled)} doubled, "
            f"{len(self.wrong)} wrong, {self.resent} sent again"
        )


def judge(entries: Iterable[Entry], calm: Sequence[str] | None = None) -> Verdict:
    """The verdict on some requests.

    Args:
        entries: the requests.
        calm: the answer to each item of the pool from an undisturbed service; without it texts
        are not compared.
    """
    lost, doubled, wrong = [], [], []
    refused: Counter[str] = Counter()
    answered = resent = requests = 0
    for entry in entries:
        requests += 1
        resent += max(0, len(entry.sent) - 1)
        name = f"{entry.device} {entry.id.hex()} item {entry.item}"
        if len(entry.answers) > 1 or entry.surplus:
            doubled.append(f"{name}: {len(entry.answers)} answers, {entry.surplus} events too many")
        elif entry.answers:
            answered += 1
        elif entry.cause:
            refused[entry.cause] += 1
        else:
            lost.append(f"{name}: sent {len(entry.sent)} times, {entry.refusals}, {entry.broken}")
        if calm is not None:
            wrong += [
                f"{name}: {text!r} instead of {calm[entry.item]!r}"
                for text in entry.answers
                if text != calm[entry.item]
            ]
    return Verdict(requests, answered, dict(refused), lost, doubled, wrong, resent)
