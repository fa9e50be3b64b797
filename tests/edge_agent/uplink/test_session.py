"""A session: its frames' numbers, the base of delta frames, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.uplink.session import Base
from projector.codec.deltas import Held
from protos.distortion import Distortion
from protos.errors import FrameTooLargeError, IncompatibleLayoutError
from tests.fakes.fake_edge import LAYOUT, make_session

HELD = Held(np.zeros((9, 4), np.float32), np.zeros(9, np.bool_))


def test_frames_are_numbered_with_the_time_since_the_one_before() -> None:
    session = make_session()
    assert session.next_frame(10.0) == (0, 0)
    assert session.next_frame(10.26) == (1, 260)
    assert session.next_frame(9.0) == (2, 0), "a clock set back is no negative time"
    assert session.next_frame(1e9) == (3, (1 << 32) - 1)


def test_a_steady_cameras_times_are_all_the_same_and_do_not_drift() -> None:
    """Its clock trembles by some milliseconds, which parcels would have to tell."""
    session, rng = make_session(), np.random.default_rng(0)
    at = 10.0 + np.arange(200) + rng.uniform(-0.004, 0.004, 200)
    told = [session.next_frame(float(one))[1] for one in at]
    assert set(told[1:]) == {1000}
    drifting = make_session()
    told = [drifting.next_frame(1.003 * i)[1] for i in range(1001)]
    assert set(told[1:]) == {1000, 1020}
    assert abs(sum(told) - 1_003_000) <= 10


def test_a_delta_frame_repeats_figures_that_moved_by_a_step_at_most() -> None:
    session = make_session()
    first = session.told(Distortion(0.1, 0.0, 0.2, 1.0), False)
    step = 10 ** (1 / 64)
    near = session.told(Distortion(0.1 * step, 0.0, 0.2 / step, 1.0), True)
    assert near.to_bytes() == first.to_bytes()
    far = session.told(Distortion(0.1 * step**2, 0.5, 0.2 / step**2, 1.0), True)
    levels = np.array(list(far.to_bytes())) - np.array(list(first.to_bytes()))
    assert levels[0] == 2 and levels[1] > 0 and levels[2] == -2 and levels[3] == 0
    key = session.told(Distortion(0.1 * step, 0.5, 0.2, 1.0), False)
    assert key.to_bytes() == Distortion(0.1 * step, 0.5, 0.2, 1.0).to_bytes()


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
