"""What a stranger can send: any bytes at all are read, or refused with a typed error.

The first byte chooses the way in, so that a fuzzer need not forge a digest to get to the codecs.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
from google.protobuf.message import Message

from cloud_server.engine.picture import open_picture
from projector.codec.deltas import Held
from projector.codec.encoder import Encoder
from protos.digest import DIGEST_BYTES
from protos.errors import BridgeError
from protos.feedback import parse_feedback_request
from protos.header import pack_header, unpack_header
from protos.layout import KVLayout
from protos.limits import Limits
from protos.parcel import Course, is_parcel, pack, take_apart
from protos.points import PICTURE_POINT, OperatingPoint
from protos.requests import parse_ask_request, parse_infer_request
from tests.fakes.fake_edge import LAYOUT, RANK, make_encoder

LIMITS = Limits(max_payload_bytes=4096, max_tokens=256, max_picture_bytes=4096)
INFER, ASK, FRAME, FEEDBACK, LAYOUT_JSON, PICTURE_FILE, WIDE = range(7)
WIDE_TOKENS = 8192 // RANK
"""Of a grid whose latents go through many coder states side by side (`protos/entropy/lanes.py`)."""


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """An encoder with a point for every quantizer."""
    made = make_encoder()
    points = (
        *made.points,
        OperatingPoint(2, "int8", "latent", "int8", 0, RANK, "fp8"),
        OperatingPoint(3, "int4", "latent", "int4", 0, RANK, "low"),
        OperatingPoint(4, "none", "latent", "none", 0, RANK),
        OperatingPoint(5, "few", "latent", "uniform", 0, 2, "low"),
        OperatingPoint(6, "token", "latent", "fp8_e4m3_token", 0, RANK, "fp8"),
    )
    return replace(made, points=points)


@lru_cache(maxsize=1)
def base() -> Held:
    """What the service holds of every frame that a delta names: half of its tokens."""
    kept = np.arange(LAYOUT.tokens) % 2 == 0
    return encoder().hold(np.full((int(kept.sum()), RANK), 0.5, np.float32), kept)


def decode(header: bytes, payload: bytes) -> None:
    """A header and a payload as the service takes them, down to latents."""
    read, body = unpack_header(header, payload, LIMITS)
    if pack_header(read, body) != (header, payload):
        raise AssertionError("two headers say the same")
    if read.operating_point == PICTURE_POINT:
        return
    point = encoder().point(read.operating_point)
    held = base() if read.base is not None else None
    z = encoder().decode(body, read.kept, point, held, read.differences)
    if z.shape != (read.kept_tokens, RANK) or not np.isfinite(z).all():
        raise AssertionError(f"decoded {z.shape}, or numbers that are none")
    encoder().hold(z, read.kept, held)


def wide(payload: bytes) -> None:
    """A payload of so many latents that the lanes decode it."""
    point = encoder().point(1)
    steps = encoder().steps_of(point)
    z = encoder().quantizer(point).decode(payload, WIDE_TOKENS, RANK, steps)
    if z.shape != (WIDE_TOKENS, RANK) or not np.isfinite(z).all():
        raise AssertionError(f"decoded {z.shape}, or numbers that are none")


def same(request: Message, raw: bytes) -> None:
    """Protobuf's own reader takes the bytes for the same request."""
    if type(request).FromString(raw) != request:
        raise AssertionError("a protobuf library reads another request")


def parcel(raw: bytes) -> None:
    """A parcel, whose digest is not checked; what it holds is packed to the same again."""
    _, requests, _ = take_apart(raw, Course(), LIMITS.max_in_flight, LIMITS)
    if len(requests) > LIMITS.max_in_flight:
        raise AssertionError("more requests than agreed")
    good = []
    for request in requests:
        request.frame.digest = bytes(DIGEST_BYTES)
        with contextlib.suppress(BridgeError):
            one = parse_infer_request(request.SerializeToString(), LIMITS)
            decode(one.request.frame.header, one.request.frame.payload)
            good.append(one.request)
    if good:
        packed = pack(bytes(32), good, Course()).SerializeToString()
        _, again, _ = take_apart(packed, Course(), len(good), LIMITS)
        for one, other in zip(good, again, strict=True):
            other.frame.digest = one.frame.digest
            if other != one:
                raise AssertionError("a request comes out of a parcel as another one")


def check(data: bytes) -> bool:
    """Read some bytes; True if they were accepted.

    Raises:
        Exception: whatever is not a `BridgeError`; then there is a fault.
    """
    way, rest = data[0] % 7 if data else INFER, data[1:]
    try:
        if way == INFER and is_parcel(rest):
            parcel(rest)
        elif way == INFER:
            request = parse_infer_request(rest, LIMITS).request
            same(request, rest)
            decode(request.frame.header, request.frame.payload)
        elif way == ASK:
            same(parse_ask_request(rest, LIMITS), rest)
        elif way == FEEDBACK:
            same(parse_feedback_request(rest), rest)
        elif way == LAYOUT_JSON:
            KVLayout.from_json(rest.decode(errors="replace"))
        elif way == PICTURE_FILE:
            open_picture(rest, LIMITS.max_picture_px)
        elif way == WIDE:
            wide(rest)
        else:
            size = rest[0] if rest else 0
            decode(rest[1 : 1 + size], rest[1 + size :])
    except BridgeError:
        return False
    return True
