"""A session: its frames' numbers, the base of delta frames, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.uplink.session import Base
from projector.codec.deltas import Held
from protos.errors import FrameTooLargeError, IncompatibleLayoutError
from tests.fakes.fake_edge import LAYOUT, make_session

HELD = Held(np.zeros((9, 4), np.float32), np.zeros(9, np.bool_))


def test_frames_are_numbered_with_the_time_since_the_one_before() -> None:
    session = make_session()
    assert session.next_frame(10.0) == (0, 0)
    assert session.next_frame(10.25) == (1, 250)
    assert session.next_frame(9.0) == (2, 0), "a clock set back is no negative time"
    assert session.next_frame(1e9) == (3, (1 << 32) - 1)


def test_the_base_is_the_newest_accepted_frame_that_a_header_can_still_name() -> None:
    session = make_session()
    assert session.base is None
    for _ in range(3):
        session.next_frame(0.0)
    session.accepted(Base(1, HELD))
    session.accepted(Base(0, HELD))
    assert session.base is not None and session.base.frame_number == 1
    session.lost(0)
    assert session.base is not None, "another frame's loss is not this one's"
    for _ in range((1 << 16) - 1024):
        session.next_frame(0.0)
    assert session.base is None
    session.accepted(Base(5, HELD))
    session.lost(5)
    assert session.base is None


def test_advice_is_forgotten() -> None:
    session = make_session()
    session.advised, session.max_in_flight = "low", 1
    session.forget_advice()
    assert (session.advised, session.max_in_flight) == ("fp8", session.limits.max_in_flight)


def test_a_proxys_cap_is_learnt_and_then_held_to() -> None:
    session = make_session()
    session.check_message(50_001)
    said = "Received message larger than max (60000 vs. 50000)"
    session.learn_cap(FrameTooLargeError(said))
    session.learn_cap(FrameTooLargeError("no cap is named here"))
    session.check_message(50_000)
    with pytest.raises(FrameTooLargeError, match="50001 bytes.*takes 50000"):
        session.check_message(50_001)


def test_texts_of_another_tokenizer_are_refused() -> None:
    session = make_session(target_layout_json=LAYOUT.to_json())
    session.require_tokenizer(LAYOUT.tokenizer_digest)
    with pytest.raises(IncompatibleLayoutError, match="--target-tokenizer"):
        session.require_tokenizer("5" * 64)
