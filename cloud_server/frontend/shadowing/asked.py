"""The questions that were asked lately, by session: shadowed frames are asked them again."""

from __future__ import annotations

from collections import OrderedDict, deque

from msgspec import Struct

from cloud_server.engine.jobs import Job

_OF_SESSION = 64
"""Questions of one session that are remembered."""
_ENTRY_BYTES = 256


class _Asked(Struct, eq=False):
    questions: deque[tuple[int, str]]
    size: int = 0


class AskedLately:
    """Remembers questions within a bound; the session that asked longest ago is forgotten first.

    Args:
        most_bytes: bound on their memory.

    Attributes:
        bytes: approximate memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._of: OrderedDict[str, _Asked] = OrderedDict()
        self.bytes = 0

    def note(self, job: Job) -> None:
        """Remember a job's question."""
        if not job.question:
            return
        asked = self._of.get(job.session)
        if asked is None:
            asked = self._of[job.session] = _Asked(deque())
        else:
            self._of.move_to_end(job.session)
        asked.questions.append((job.frame_number, job.question))
        self._grow(asked, _cost(job.question))
        if len(asked.questions) > _OF_SESSION:
            self._grow(asked, -_cost(asked.questions.popleft()[1]))
        while self.bytes > self._most and self._of:
            _, gone = self._of.popitem(last=False)
            self.bytes -= gone.size

    def about(self, session: str, frame_number: int, most: int) -> list[str]:
        """Questions to ask about a frame: its own, then the newest others of its session.

        Args:
            session: the frame's, hex.
            frame_number: the frame's.
            most: most questions.
        """
        asked = self._of.get(session)
        if asked is None:
            return []
        newest = list(reversed(asked.questions))
        own = [question for number, question in newest if number == frame_number]
        others = [question for number, question in newest if number != frame_number]
        return list(dict.fromkeys(own + others))[:most]

    def _grow(self, asked: _Asked, size: int) -> None:
        asked.size += size
        self.bytes += size


def _cost(question: str) -> int:
    return len(question) + _ENTRY_BYTES
