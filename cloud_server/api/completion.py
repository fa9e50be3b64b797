"""Turns the engine's events for one question into an HTTP answer, whole or streamed.

When the caller disconnects, the question is cancelled and its place in the engine is free.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cloud_server.api import chat_response as say
from cloud_server.api.failures import JSON, body_of
from cloud_server.api.fidelity import Fidelity, Timings, of_picture, of_scene
from cloud_server.api.stops import Stops
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.ask import Asker
from cloud_server.frontend.scenes import HeldScene
from cloud_server.frontend.tell import Stream
from cloud_server.frontend.under_way import UnderWay
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2 as pb

_EVENTS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


@dataclass(eq=False)
class Question:
    """A question that was sent to the engine.

    Attributes:
        made: its computation.
        scene: the scene that it is about; None for a picture in the request.
        risk: the answer's risk; None if unknown.
        model: the model's name in the request.
        limit: longest answer in tokens.
        stop: stop sequences.
        ignored: fields of the request without effect.
        created: when it arrived, seconds since 1970.
    """

    made: Computation
    scene: HeldScene | None
    risk: float | None
    model: str
    limit: int
    stop: tuple[str, ...]
    ignored: list[str]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """Id of the completion."""
        return f"chatcmpl-{self.made.request_id.hex()}"

    def fidelity(self, answer: pb.Answer | None) -> Fidelity:
        """Where the answer comes from and how far it can be trusted.

        Args:
            answer: None if a stop sequence ended it.
        """
        timings = None if answer is None else Timings.of(answer.timings)
        if self.scene is None:
            return of_picture(self.made.warnings, timings, self.ignored)
        return of_scene(self.scene, self.risk, self.made.warnings, timings, self.ignored)


class Completion(Response):
    """The HTTP response with the answer to a question.

    Args:
        question: the question.
        asker: source of the engine's events.
        under_way: cancels the question if the caller disconnects.
        undone: called if there will be no answer.
    """

    def __init__(
        self, question: Question, asker: Asker, under_way: UnderWay, undone: Callable[[], None]
    ) -> None:
        super().__init__()
        self._question, self._asker, self._under_way = question, asker, under_way
        self._undone = undone
        self._outboxes = asker.outboxes
        self._stream = Stream(self._outboxes.make(question.made.owner[0]))
        self._left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; cancel the question if the caller disconnects or does not read.

        Raises:
            BridgeError: the question was refused before the answer began.
            OverloadedError: the caller does not read, and nothing was sent. Once the response has
                begun no error can be sent, so the connection is closed.
        """
        outbox, begun = self._stream.outbox, False

        async def written(message: Message) -> None:
            nonlocal begun
            begun = True
            outbox.writing_since = time.monotonic()
            await send(message)
            outbox.writing_since = 0.0

        leaving = asyncio.create_task(self._watch(receive))
        how = "cancelled"
        try:
            stops = Stops(self._question.stop)
            await self._outboxes.write(outbox, self._answer(stops, written))
            how = "stopped" if stops.found else how
        except BridgeError as error:
            if error is outbox.unread:
                self._asker.unread(error, self._question.made)
            if not self._left:
                self._undone()
                if not begun:
                    raise
        finally:
            leaving.cancel()
            if dropped := self._stream.abandon():
                if how == "cancelled":
                    self._undone()
                self._under_way.drop(dropped, how)

    async def _watch(self, receive: Receive) -> None:
        """Wait until the caller disconnects."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._stream.outbox.put(None)

    async def _answer(self, stops: Stops, send: Send) -> None:
        """Send the answer whole."""
        question, pieces, answer, tokens = self._question, [], None, 0
        async with aclosing(self._asker.events(question.made, self._stream)) as events:
            async for event in events:
                if event.HasField("token"):
                    tokens += 1
                    pieces.append(stops.feed(event.token.text))
                elif event.HasField("answer"):
                    answer = event.answer
                if stops.found:
                    break
        text = "".join(pieces)
        if answer is not None:
            tokens = answer.tokens
            again = Stops(question.stop)
            text = again.feed(answer.text) + again.rest()  # the whole text is authoritative
        body = say.ChatCompletion(
            id=question.id,
            created=question.created,
            model=question.model,
            choices=[
                say.Choice(
                    message=say.AnswerMessage(content=text),
                    finish_reason=self._reason(answer, stops),
                )
            ],
            usage=self._usage(tokens),
            bridge=question.fidelity(answer),
        )
        raw = body.model_dump_json().encode()
        await send(_start({"content-type": JSON, "content-length": str(len(raw))}))
        await send({"type": "http.response.body", "body": raw})

    def _reason(self, answer: pb.Answer | None, stops: Stops) -> say.FinishReason:
        ended = stops.found or answer is None or answer.tokens < self._question.limit
        return "stop" if ended else "length"

    def _usage(self, tokens: int) -> say.Usage:
        before = self._question.made.prompt_tokens
        return say.Usage(
            prompt_tokens=before, completion_tokens=tokens, total_tokens=before + tokens
        )


class StreamedCompletion(Completion):
    """The answer token by token, as server-sent events.

    Args:
        wants_usage: whether to send `usage` before the end.
    """

    def __init__(
        self,
        question: Question,
        asker: Asker,
        under_way: UnderWay,
        undone: Callable[[], None],
        wants_usage: bool,
    ) -> None:
        super().__init__(question, asker, under_way, undone)
        self._wants_usage, self._begun = wants_usage, False

    async def _answer(self, stops: Stops, send: Send) -> None:
        """Send the answer in pieces."""
        try:
            await self._pieces(stops, send)
        except BridgeError as error:
            if self._left or not self._begun:
                raise
            self._undone()
            await send(_piece(say.event(body_of(error).model_dump()), more=False))

    async def _pieces(self, stops: Stops, send: Send) -> None:
        question, answer, tokens, told = self._question, None, 0, 0
        head: dict[str, Any] = {
            "id": question.id,
            "object": "chat.completion.chunk",
            "created": question.created,
            "model": question.model,
        }
        if self._wants_usage:
            head["usage"] = None
        async with aclosing(self._asker.events(question.made, self._stream)) as events:
            async for event in events:
                piece = ""
                if event.HasField("token"):
                    tokens += 1
                    told += len(event.token.text)
                    piece = stops.feed(event.token.text)
                elif event.HasField("answer"):
                    answer, tokens = event.answer, event.answer.tokens
                    piece = stops.feed(answer.text[told:]) + stops.rest()
                else:
                    continue
                if not self._begun:
                    await self._begin(head, send)
                if piece:
                    await send(_piece(say.chunk(head, {"content": piece})))
                if stops.found:
                    break
        bridge = question.fidelity(answer).model_dump()
        last = say.chunk(head | {"bridge": bridge}, {}, self._reason(answer, stops))
        if self._wants_usage:
            usage = self._usage(tokens).model_dump()
            last += say.event(head | {"choices": [], "usage": usage})
        await send(_piece(last + say.DONE, more=False))

    async def _begin(self, head: dict[str, Any], send: Send) -> None:
        self._begun = True
        await send(_start(_EVENTS))
        await send(_piece(say.chunk(head, {"role": "assistant", "content": ""})))


def picture_session(tenant: str, name: str) -> bytes:
    """The session id for questions about pictures that a caller sends."""
    return hashlib.sha256(f"pictures\0{tenant}\0{name}".encode()).digest()[:16]


def _start(headers: dict[str, str]) -> Message:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
