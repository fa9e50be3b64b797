"""What the front end and the engine say to each other comes out as it went in."""

from __future__ import annotations

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
    unpack_all,
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
    assert unpack(pack(message)) == message


def test_messages_that_travel_together_come_out_in_order() -> None:
    assert unpack_all([part for message in MESSAGES for part in pack(message)]) == MESSAGES


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"not json"],
        [b"[]"],
        [b'{"kind":"Nonsense"}'],
        [b'{"kind":"Ready","model":1,"load_s":1.0}'],
        [b'{"kind":"Ready","model":"m"}'],
        [b'{"kind":"Ready","model":"m","load_s":1.0,"more":1}'],
        [b'{"kind":"Ready","model":"m","load_s":1.0}', b"more"],
        [*pack(MESSAGES[0])[:-1]],
        [*pack(MESSAGES[0])[:-1], b"short"],
    ],
)
def test_a_garbled_link_message_is_a_typed_error(frames: list[bytes]) -> None:
    with pytest.raises(FrameMalformedError):
        unpack(frames)
