"""One request, one answer: requests that are being computed, and answers that are remembered.

A repeated request id joins its running computation, or is answered from memory: nothing known is
computed twice.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cloud_server.crowd import Crowd
from cloud_server.engine.jobs import Accepted
from cloud_server.frontend.admission.admission import Request
from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.admission.turns import NORMAL
from cloud_server.identity.caller import ANYONE
from protos.errors import FrameMalformedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.trace import Trace

_ENTRY_BYTES = 1024
Id: TypeAlias = bytes
Owner: TypeAlias = tuple[str, str]
"""Who asked: a tenant, and its device, or `key:` and a key's name."""
NOBODY: Owner = (ANYONE.tenant, ANYONE.name)
Key = tuple[Owner, bytes, bytes]
"""Who asked, session id and request id."""
Listener = Callable[[pb.InferEvent, str], None]
"""Gets an event and its kind: accepted, token, answer, refused or crop_wanted."""
Told: TypeAlias = pb.Accepted | pb.Token | pb.Answer | pb.Refused | pb.CropWanted


@dataclass(eq=False)
class Crop:
    """A crop that a computation waits for.

    Attributes:
        risk: of the answer from the frame alone.
        picture: gets the file; empty if none comes.
        frame_answer: the answer from the frame alone, once it is made.
        ended: whether nothing more is waited for.
        answer: text, tokens and risk of the answer from frame and crop; None if there is none.
    """

    risk: float
    picture: asyncio.Future[bytes]
    frame_answer: pb.Answer | None = None
    ended: bool = False
    answer: tuple[str, int, float] | None = None
    finish: Callable[[pb.Answer], None] = field(default=lambda answer: None, repr=False)


class Computation:
    """A request on its way through the engine, and everyone who waits for it.

    Args:
        request_id: the request's id.
        frame_number: number of its frame, or of the scene it asks about.
        question: may be empty.
        received_ns: when its last byte arrived (monotonic).
        digest: digest of its frame's bytes; empty for a question about a scene that is held.
        distortion: the frame's; empty by default.

    Attributes:
        owner: who asked; nobody else gets its answer by the same ids.
        rank: its class (see `turns`).
        wait_s: time to its deadline on arrival, seconds; None without one.
        accepted: the engine's word that it has the frame; None until then, or without a frame.
        request: what admission holds for it.
        crop_bytes: longest crop that its device would send; 0 if it sends none.
        crop: the crop that it waits for (`crops.py`).
        trace: its spans; None if none are made.
    """

    def __init__(
        self,
        request_id: bytes,
        frame_number: int,
        question: str,
        received_ns: int,
        digest: bytes = b"",
        distortion: pb.DistortionReport | None = None,
    ) -> None:
        self.request_id, self.frame_number, self.question = request_id, frame_number, question
        self.received_ns, self.digest = received_ns, digest
        self.first_token_ns = 0
        self.distortion = pb.DistortionReport() if distortion is None else distortion
        self.fallback = ""
        self.accepted: Accepted | None = None
        self.warnings: list[str] = []
        self.moments_score = math.nan
        self.prompt_tokens = 0
        self.owner, self.rank = NOBODY, NORMAL
        self.wait_s: float | None = None
        self.request: Request | None = None
        self.crop_bytes = 0
        self.crop: Crop | None = None
        self.trace: Trace | None = None
        self._past: list[tuple[pb.InferEvent, str]] = []
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Add a listener; it gets every event, past ones first."""
        for past in self._past:
            listener(*past)
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    @property
    def heard(self) -> bool:
        """Whether anyone listens."""
        return bool(self._listeners)

    def emit(self, kind: str, told: Told) -> None:
        """Send one event to every listener.

        Args:
            kind: its field of an InferEvent.
            told: what it says.
        """
        event = pb.InferEvent(
            request_id=self.request_id, frame_number=self.frame_number, **{kind: told}
        )
        self._past.append((event, kind))
        for listener in tuple(self._listeners):
            listener(event, kind)

    def left(self, event: pb.InferEvent, kind: str) -> None:
        """An answer is about to leave, or a token has left: take the times."""
        now = time.monotonic_ns()
        if not self.first_token_ns:
            self.first_token_ns = now
        if kind == "answer":
            timings = event.answer.timings
            if not timings.total_ms:
                timings.ttft_ms = (self.first_token_ns - self.received_ns) / 1e6
                timings.total_ms = (now - self.received_ns) / 1e6


class _Remembered(NamedTuple):
    """An answer that is remembered.

    Attributes:
        bytes: about how many it takes, with its keys and Python's own overhead.
    """

    frame_number: int
    question: str
    digest: Id
    answer: pb.Answer
    bytes: int


class Answers:
    """The computations under way and a bounded memory of answers.

    When it is full, the largest session of the largest device of the largest tenant loses its
    least recently used answer.

    Args:
        most: answers remembered.
        most_bytes: bound for all of them together.
        memory: counts their bytes.
    """

    def __init__(self, most: int, most_bytes: int, memory: Room | None = None) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._memory = Room() if memory is None else memory
        self._running: dict[Key, Computation] = {}
        self._answers: dict[Key, _Remembered] = {}
        self._order: Crowd[Key] = Crowd()

    @property
    def bytes(self) -> int:
        """Memory of all answers."""
        return self._memory.total

    @property
    def running(self) -> int:
        """Computations under way."""
        return len(self._running)

    def find(
        self,
        session: Id,
        request_id: Id,
        frame_number: int,
        question: str,
        digest: Id = b"",
        owner: Owner = NOBODY,
    ) -> Computation | pb.Answer | None:
        """A request's computation, its answer (marked as from memory), or nothing.

        Raises:
            FrameMalformedError: the id belongs to another question or frame of this session.
        """
        key = (owner, session, request_id)
        running = self._running.get(key)
        known = running or self._answers.get(key)
        if known is None:
            return None
        if (known.frame_number, known.question) != (frame_number, question):
            raise FrameMalformedError(
                f"request id {request_id.hex()} was used before, for frame {known.frame_number} or "
                "another question: every request needs an id of its own"
            )
        if known.digest != digest:
            raise FrameMalformedError(
                f"request id {request_id.hex()} was used before, for frame {frame_number} with "
                "other bytes: resend a frame unchanged, give another one a number and id of its own"
            )
        if isinstance(known, Computation):
            return known
        self._order.touch(key)
        answer = pb.Answer()
        answer.CopyFrom(known.answer)
        answer.from_memory = True
        answer.ClearField("timings")
        return answer

    def under_way(self, owner: Owner, session: Id, request_id: Id) -> Computation | None:
        """The running computation of a request; None if there is none."""
        return self._running.get((owner, session, request_id))

    def begin(self, session: Id, computation: Computation) -> None:
        """Note that a computation is under way."""
        self._running[computation.owner, session, computation.request_id] = computation

    def end(self, session: Id, computation: Computation, answer: pb.Answer | None) -> None:
        """Note that a computation is over; an answer, if there is one, is remembered."""
        key = (computation.owner, session, computation.request_id)
        self._running.pop(key, None)
        if answer is None:
            return
        self._drop(key)
        size = int(answer.ByteSize()) + len(computation.question) + _ENTRY_BYTES
        kept = _Remembered(
            computation.frame_number, computation.question, computation.digest, answer, size
        )
        self._answers[key] = kept
        self._order.add((*computation.owner, session.hex()), key, size)
        self._memory.add(computation.owner[0], size)
        while self._answers and (len(self._answers) > self._most or self.bytes > self._most_bytes):
            self._drop(self._order.next_to_go())

    def forget(self, session: Id, owner: Owner = NOBODY) -> None:
        """Forget the answers of a session that is over."""
        for key in self._order.of(*owner, session.hex()):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        dropped = self._answers.pop(key, None)
        if dropped is not None:
            self._order.remove(key)
            self._memory.add(key[0][0], -dropped.bytes)
