"""A frame: what is refused before it is sent."""

from __future__ import annotations

import pytest
from PIL import Image

from edge_agent.encode import encode_state
from edge_agent.frame import check_size
from edge_agent.plan import Plan
from protos.errors import FrameTooLargeError
from protos.limits import Limits
from tests.fakes.fake_edge import make_encoder, state_of


def test_a_frame_over_the_servers_limit_says_what_to_change() -> None:
    encoder, state = make_encoder(), state_of(Image.new("RGB", (8, 8)))
    coded = encode_state(state, encoder, encoder.points[0], Plan())
    with pytest.raises(FrameTooLargeError, match="choose a point of fewer bytes"):
        check_size(coded, Limits(max_payload_bytes=10))
    with pytest.raises(FrameTooLargeError, match="9 tokens"):
        check_size(coded, Limits(max_tokens=8))
