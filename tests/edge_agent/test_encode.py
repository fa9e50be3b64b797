"""Encode: latents of the kept tokens, delta frames, and the picture itself."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge_agent.encode import encode_picture, encode_state
from edge_agent.picture import PictureCodec
from edge_agent.plan import Plan
from edge_agent.select import keep_tokens
from edge_agent.uplink.session import Base
from protos.errors import NonFiniteError
from protos.limits import Limits
from tests.fakes.fake_edge import make_encoder, make_session, state_of


def test_a_frame_holds_what_its_encoder_made_of_the_selected_tokens() -> None:
    encoder, state = make_encoder(), state_of(Image.new("RGB", (8, 8)))
    point, plan = encoder.points[1], Plan()
    now = iter((1.0, 1.5, 4.0))
    frame = encode_state(state, encoder, point, plan, clock=lambda: next(now))
    kept = keep_tokens(state, encoder, point, plan)
    made = encoder.encode(state, point, kept)
    assert (frame.payload, frame.distortion) == (made.payload, made.distortion)
    assert frame.kept.tolist() == kept.tolist() and frame.kept_tokens == 4 and frame.tokens == 9
    assert (frame.select_ms, frame.encode_ms) == (500.0, 2500.0)
    assert frame.base is None and not frame.differences


def test_a_picture_that_did_not_change_is_a_small_delta_and_another_one_a_key_frame() -> None:
    encoder, point = make_encoder(), make_encoder().points[1]
    still, other = (state_of(Image.new("RGB", (8, 8), c)) for c in ((1, 2, 3), (90, 9, 9)))
    plan = Plan(token_threshold=1.0)
    first = encode_state(still, encoder, point, plan)
    assert first.held is not None
    base = Base(7, first.held)
    again = encode_state(still, encoder, point, plan, base=base)
    assert again.base == 7 and again.kept_tokens < first.kept_tokens
    fresh = encode_state(other, encoder, point, plan, base=base)
    key = encode_state(other, encoder, point, plan)
    assert fresh.base is None and fresh.payload == key.payload


def test_a_state_with_nan_is_refused() -> None:
    encoder, state = make_encoder(), state_of(Image.new("RGB", (8, 8)))
    broken = replace(state, keys=np.full_like(state.keys, np.nan))
    with pytest.raises(NonFiniteError):
        encode_state(broken, encoder, encoder.points[0], Plan())


def test_a_picture_is_sent_no_larger_than_the_plan_and_the_server_allow() -> None:
    picture, point = Image.new("RGB", (64, 32)), make_session().points["picture"]

    def size(longest_px: int, limit_px: int) -> tuple[int, int]:
        plan = Plan(picture=PictureCodec("png", longest_px=longest_px))
        frame = encode_picture(picture, point, plan, Limits(max_picture_px=limit_px))
        assert frame.distortion is None and frame.tokens == frame.kept_tokens == 0
        with Image.open(io.BytesIO(frame.payload)) as read:
            return read.size

    assert size(0, 1024) == (64, 32)
    assert size(32, 1024) == (32, 16)
    assert size(0, 16) == size(32, 16) == (16, 8)
