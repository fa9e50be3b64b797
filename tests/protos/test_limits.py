"""Limits are held to the byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protos.errors import BridgeError, FrameMalformedError, FrameTooLargeError, QuestionTooLongError
from protos.header import Header, pack_header, unpack_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.points import PICTURE_POINT
from protos.requests import parse_infer_request, seal
from tests.protos.frames import CONSTANTS, REQUEST, accept, mask, real_request


def test_each_limit_is_held_exactly() -> None:
    limits = Limits(100, 64, 20, 24, 200, 8, 1, 5)
    header, payload = pack_header(Header(1, 1, mask(24)), b"x" * 100)
    request = seal(CONSTANTS, REQUEST, header, payload, "q" * 20, 5)
    accept(request.SerializeToString(), limits)

    def refused(error: type[BridgeError], smaller: Limits) -> None:
        with pytest.raises(error):
            accept(request.SerializeToString(), smaller)

    refused(FrameTooLargeError, replace(limits, max_payload_bytes=99))
    refused(FrameTooLargeError, replace(limits, max_header_bytes=11))
    refused(FrameTooLargeError, replace(limits, max_tokens=23))
    refused(QuestionTooLongError, replace(limits, max_question_bytes=19))
    refused(FrameMalformedError, replace(limits, max_new_tokens=4))


def test_a_picture_has_a_limit_of_its_own() -> None:
    limits = Limits(max_payload_bytes=10, max_picture_bytes=100)
    header, payload = pack_header(Header(PICTURE_POINT, 1, np.zeros(0, bool)), b"x" * 100)
    accept(seal(CONSTANTS, REQUEST, header, payload).SerializeToString(), limits)
    with pytest.raises(FrameTooLargeError):
        unpack_header(header, payload + b"x", limits)


def test_question_limit_counts_bytes_not_letters() -> None:
    limits = Limits(max_question_bytes=10)
    accept(real_request("ü" * 5), limits)
    with pytest.raises(QuestionTooLongError, match="12 bytes"):
        accept(real_request("ü" * 6), limits)


def test_a_message_beyond_all_limits_is_refused_before_it_is_parsed() -> None:
    raw = b"\xff" * (DEFAULT_LIMITS.max_request_bytes + 1)
    with pytest.raises(FrameTooLargeError):
        parse_infer_request(raw)


def test_the_largest_request_within_the_limits_passes() -> None:
    most = DEFAULT_LIMITS
    header, payload = pack_header(
        Header(PICTURE_POINT, 2**32 - 1, np.zeros(0, bool)), b"x" * most.max_picture_bytes
    )
    question = "q" * most.max_question_bytes
    request = seal(CONSTANTS, b"r" * 16, header, payload, question, most.max_new_tokens)
    accept(request.SerializeToString())
