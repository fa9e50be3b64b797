"""A chat completion, whole or in pieces, as OpenAI's clients read it."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from cloud_server.api.fidelity import Fidelity

FinishReason = Literal["stop", "length"]
DONE = b"data: [DONE]\n\n"


class Usage(BaseModel):
    """Tokens of the large model."""

    prompt_tokens: int = Field(description="of the scene, the question and the prompt template")
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer of a completion."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    bridge: Fidelity


class Delta(BaseModel):
    """The text that a piece adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A piece of the one answer."""

    index: Literal[0] = 0
    delta: Delta
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A piece of an answer. The last one with a choice has `finish_reason` and `bridge`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    bridge: Fidelity | None = None


def chunk(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    """A `ChatChunk` as a server-sent event.

    Args:
        head: fields that all chunks of the answer share, and further fields of this chunk.
        delta: the text that it adds.
        finish_reason: set on the last chunk.
    """
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event(head | {"choices": [choice]})


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
