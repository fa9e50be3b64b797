"""Every input that the fuzzer ever found worth keeping, again; and any bytes at all, in bounds."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protos.feedback import seal_feedback
from protos.header import Header, pack_header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.parcel import Course, pack
from protos.quantize import QUANTIZERS
from protos.requests import seal, seal_ask
from tests.fakes.fake_edge import LAYOUT
from tests.fuzz import target

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
TOKENS = len(target.encoder().centre)
POINTS = sorted(point.index for point in target.encoder().points)
MOST_BYTES = 8 << 20


def test_the_corpus_is_read_or_refused_and_reaches_both() -> None:
    accepted = [target.check(file.read_bytes()) for file in CORPUS]
    assert len(CORPUS) > 20 and 0 < sum(accepted) < len(CORPUS)


def test_every_quantizer_has_a_point() -> None:
    assert {point.quantizer for point in target.encoder().points} == set(QUANTIZERS)


@pytest.mark.parametrize("point", POINTS)
def test_what_an_edge_sends_is_accepted_by_every_way_in(point: int) -> None:
    """Else the fuzzer would fuzz a door that never opens."""
    header, payload = _frame(point)
    assert target.check(bytes((target.FRAME, len(header))) + header + payload)
    request = seal(bytes(32), b"12345678", header, payload, "what ?", 4)
    assert target.check(bytes((target.INFER,)) + request.SerializeToString())
    ask = seal_ask(bytes(32), bytes(16), b"12345678", 3, "what ?")
    assert target.check(bytes((target.ASK,)) + ask.SerializeToString())


@pytest.mark.slow
@settings(max_examples=400, deadline=None, database=None)
@given(st.binary(max_size=96), st.integers(0, 7), st.integers(0, 2**16))
def test_any_damage_to_a_parcel_is_read_or_refused(noise: bytes, way: int, at: int) -> None:
    """Its digest is not checked: what a hostile client sends has a good one."""
    header, payload = _frame(1)
    delta, changes = pack_header(Header(1, 2, np.arange(TOKENS) == 3, base=1), b"\x01" * 9)
    frames = [
        seal(bytes(32), b"", header, payload, "what ?", 4),
        seal(bytes(32), b"12345678", header, payload, "what ?", 4),
        seal(bytes(32), b"", delta, changes),
    ]
    raw = pack(bytes(32), frames, Course()).parcel
    assert target.check(bytes((target.INFER,)) + pb.InferRequest(parcel=raw).SerializeToString())
    cut = 4 + at % (len(raw) - 4)
    damaged = {
        0: raw[:cut] + noise,
        1: noise + raw[cut:],
        2: raw[:cut] + noise + raw[cut:],
        3: raw[:cut] + bytes([raw[cut] ^ 1 << at % 8]) + raw[cut + 1 :],
    }.get(way, raw[:4] + noise)
    target.check(bytes((target.INFER,)) + pb.InferRequest(parcel=damaged).SerializeToString())


def test_what_else_a_stranger_sends_is_accepted_by_its_way_in() -> None:
    back = seal_feedback(bytes(32), bytes(16), b"12345678", 3, "fp8").SerializeToString()
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    encoder = target.encoder()
    point = encoder.point(1)
    grid = np.zeros((target.WIDE_TOKENS, encoder.rank))
    many = encoder.quantizer(point).encode(grid, encoder.steps_of(point))
    for way, body in (
        (target.FEEDBACK, back),
        (target.LAYOUT_JSON, LAYOUT.to_json().encode()),
        (target.PICTURE_FILE, png.getvalue()),
        (target.WIDE, many),
    ):
        assert target.check(bytes((way,)) + body), way
        assert not target.check(bytes((way,)) + body[: len(body) // 2]), way


@settings(max_examples=400, deadline=None, database=None)
@given(st.binary(max_size=512))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    target.check(data)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, database=None)
@given(
    st.sampled_from(POINTS),
    st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS).filter(any),
    st.binary(min_size=1, max_size=96),
    st.sampled_from([None, 0, 6]),
    st.booleans(),
)
def test_any_payload_behind_a_good_header_is_read_or_refused(
    point: int, kept: list[bool], body: bytes, base: int | None, differences: bool
) -> None:
    written = Header(
        point, 7, np.array(kept), base=base, differences=differences and base is not None
    )
    header, payload = pack_header(written, body)
    target.check(bytes((target.FRAME, len(header))) + header + payload)


@pytest.mark.parametrize("claimed", [9, 144, 255, 65535])
@pytest.mark.parametrize("point", POINTS)
def test_a_small_frame_never_takes_much_memory(point: int, claimed: int) -> None:
    """Whatever it claims to hold: sizes are checked before anything is allocated."""
    kept = np.ones(claimed, dtype=np.bool_)
    header, payload = pack_header(Header(point, 1, kept), b"\x01" * 64)
    tracemalloc.start()
    try:
        target.check(bytes((target.FRAME, len(header))) + header + payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES


def _frame(point: int) -> tuple[bytes, bytes]:
    """A frame of the mean scene at a point."""
    encoder = target.encoder()
    wanted = encoder.point(point)
    width = encoder.width(wanted)
    body = encoder.quantizer(wanted).encode(np.zeros((TOKENS, width)), encoder.steps_of(wanted))
    return pack_header(Header(point, 1, np.ones(TOKENS, dtype=np.bool_)), body)
