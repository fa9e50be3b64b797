"""What the front end and the engine say to each other comes out as it went in."""

from __future__ import annotations

import msgspec
import pytest

from cloud_server.engine.jobs import (
    Answered,
    Job,
    Message,
    Offer,
    Ready,
    Shutdown,
    Status,
    pack,
    unpack,
)
from protos.errors import FrameMalformedError

MESSAGES: list[Message] = [
    Job(1, "ab", 2, "cd", "what ?", 3, 4, "e" * 64, 5, b"\x01\x00", b"\x00" * 50),
    Answered(1, "déjà vu", 2, 0.5, 0.25, 1),
    Offer("a", "1", "b", "c", "d", "{}", "{}", "[]", "p", ["p", "q"], b"\x80"),
    Ready("m", 1.5),
    Status(0.0, 1, 2, 3, 4),
    Shutdown(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_link_message_comes_out_as_it_went_in(message: Message) -> None:
    assert unpack(pack(message)) == [message]


def test_messages_that_travel_together_come_out_in_order() -> None:
    assert unpack(pack(*MESSAGES)) == MESSAGES


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {"Ready": 1},
        [[]],
        [["Nonsense"]],
        [["Ready", 1, 1.0]],
        [["Ready", "m"]],
        [["Ready", "m", 1.0, "more"]],
        [["Ready", "m", 1.0], b"more"],
        [["Job", *msgspec.structs.astuple(MESSAGES[0])[:5]]],
        [["Job", *msgspec.structs.astuple(MESSAGES[0])[:-1], 1]],
    ],
)
def test_a_garbled_link_message_is_a_typed_error(plain: object) -> None:
    with pytest.raises(FrameMalformedError):
        unpack(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    "block", [b"", b"not messages", pack(MESSAGES[0])[:-1], pack(*MESSAGES) + b"more"]
)
def test_a_link_message_that_is_cut_short_is_a_typed_error(block: bytes) -> None:
    with pytest.raises(FrameMalformedError):
        unpack(block)
