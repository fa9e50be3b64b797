"""The worked example of bridge.proto is what this code does, and what its own text says by hand.

After a change: `python -m tests.protos.test_worked_example` prints it anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np

from projector.codec.encoder import Encoder
from protos.digest import derived_id, session_constants
from protos.distortion import Distortion
from protos.generate import PROTO, ROOT
from protos.header import Header, pack_header
from protos.layout import KVLayout, RopeSpec
from protos.parcel import pack
from protos.points import OperatingPoint
from protos.requests import seal, seal_ask
from protos.rotation import rotate, unrotate

LAYOUT = KVLayout(
    model_id="example",
    layers=1,
    kv_heads=1,
    head_dim=2,
    rope=RopeSpec(10000.0, 2, False, "default", 1.0, (1.0,)),
    cache_dtype="float32",
    grid=(2, 3),
    tokenizer_digest="00" * 32,
    weights_digest="11" * 32,
)
SESSION, BUNDLE, REQUEST = bytes(range(16)), "22" * 32, b"request-"
POINT = OperatingPoint(10, "fp8", quantizer="fp8_e4m3", rank=2, steps="fp8")
QUESTION, MAX_NEW_TOKENS, FRAME_NUMBER, DELTA_MS = "what ?", 8, 300, 1000
MEAN, SCALE = [1.0, 0.0, -1.0, 2.0], [1.0, 2.0, 2.0, 4.0]
PROJECTION = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
CENTRE, STEP = [0.25, -0.25], [0.5, 0.25]
KEPT = [0, 2, 5]
STATES = [[2.0, 1.0, 3.0, -2.0], [301.0, 0.5, -1.0, 1.0], [1.0, 0.0, -0.5, 2.002]]
FIGURES = Distortion(0.25, 0.1, 0.0, 1.0)


LATER_MS, LATER_FIGURES, MOVED = 1003, Distortion(0.25, 0.1, 0.0, 1.2), 2


def encoder() -> Encoder:
    def array(values: object) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)

    return Encoder(
        source_fingerprint=LAYOUT.fingerprint,
        points=(POINT,),
        x_mean=array(MEAN),
        x_scale=array(SCALE),
        projection=array(PROJECTION),
        reconstruction=array(PROJECTION).T / 2,
        centre=np.tile(array(CENTRE), (6, 1)),
        latent_mean=array([0, 0]),
        latent_inv_cov=array([[1, 0], [0, 1]]),
        raw_scale=array([1] * 4),
        steps={"fp8": array(STEP)},
    )


def kept() -> np.ndarray:
    return np.isin(np.arange(6), KEPT)


def example() -> dict[str, str]:
    """Name to value, by the code that agents and services run."""
    made, steps = encoder(), np.asarray(STEP, dtype=np.float32)
    latents = made.project(np.asarray(STATES, dtype=np.float32))
    coded = (latents - made.centre[KEPT]) / steps
    body = made.quantizer(POINT).encode(latents - made.centre[KEPT], steps)
    header, payload = pack_header(
        Header(POINT.index, FRAME_NUMBER, kept(), DELTA_MS, FIGURES), body
    )
    constants = session_constants(SESSION, LAYOUT.fingerprint, BUNDLE)
    request = seal(constants, REQUEST, header, payload, QUESTION, MAX_NEW_TOKENS)
    ask = seal_ask(constants, SESSION, REQUEST, FRAME_NUMBER, QUESTION)
    bare = seal(constants, b"", header, payload)
    later = Header(POINT.index, FRAME_NUMBER + 1, kept(), LATER_MS, LATER_FIGURES)
    moved = Header(
        POINT.index,
        FRAME_NUMBER + 2,
        np.arange(6) == MOVED,
        DELTA_MS,
        LATER_FIGURES,
        base=FRAME_NUMBER + 1,
        differences=True,
    )
    asked = seal(constants, b"", *pack_header(later, payload), QUESTION, MAX_NEW_TOKENS)
    changed = seal(constants, b"", *pack_header(moved, payload[:2]), QUESTION, MAX_NEW_TOKENS)
    parcel = pack(constants, [bare, asked, changed], {}, {QUESTION: 5})

    def rows(array: np.ndarray) -> str:
        return "; ".join(" ".join(f"{value:.9g}" for value in row) for row in array)

    return {
        "layout": LAYOUT.to_json(),
        "fingerprint": LAYOUT.fingerprint,
        "session_id": SESSION.hex(),
        "bundle_digest": BUNDLE,
        "session_constants": constants.hex(),
        "x_mean, x_scale": f"[{rows(np.array([MEAN, SCALE]))}]",
        "projection": f"[{rows(np.array(PROJECTION))}]",
        "centre, step": f"[{rows(np.array([CENTRE, STEP]))}]",
        "kept tokens, N": f"[{' '.join(map(str, KEPT))}; 6]",
        "their states x": f"[{rows(np.array(STATES))}]",
        "their latents z": f"[{rows(latents)}]",
        "(z - centre) / step": f"[{rows(coded)}]",
        "payload, fp8_e4m3": payload.hex(),
        "point, figures": f"[{POINT.index}; 0.25 0.1 0 1]",
        "frame_number, delta": f"[{FRAME_NUMBER}; {DELTA_MS}]",
        "header": header.hex(),
        "request_id": REQUEST.hex(),
        "question": QUESTION,
        "max_new_tokens": f"[{MAX_NEW_TOKENS}]",
        "Frame.digest": request.frame.digest.hex(),
        "InferRequest": request.SerializeToString(deterministic=True).hex(),
        "AskRequest.digest": ask.digest.hex(),
        "derived request_id": derived_id(constants, FRAME_NUMBER).hex(),
        "bare Frame.digest": bare.frame.digest.hex(),
        "parcel": parcel.parcel.hex(),
    }


def text() -> str:
    lines = []
    for name, value in example().items():
        first = f"//   {name:<20} "
        if len(value) > 100 - len(first) and " " not in value:
            width = 100 - len("//     ")
            lines += [f"//   {name}", *(f"//     {w}" for w in textwrap.wrap(value, width))]
        else:
            lines.append(first + value)
    return "\n".join(lines)


def read() -> dict[str, str]:
    """Name to value, as the .proto has them: what an author of a client reads."""
    proto = (ROOT / PROTO).read_text(encoding="utf-8")
    begin = proto.index("// WORKED EXAMPLE")
    found: dict[str, str] = {}
    name = ""
    for line in proto[begin : proto.index("// end of the worked example")].splitlines():
        if match := re.fullmatch(r"//   (\S.{0,19}?)(?: {2,}| $|$|(?<=.{20}) )(.*)", line):
            name = match[1]
            found[name] = match[2]
        elif line.startswith("//     ") and name:
            found[name] += line[7:]
    return found


def test_the_worked_example_of_the_proto_is_what_the_code_does() -> None:
    assert read() == example(), "python -m tests.protos.test_worked_example prints it anew"


def test_its_digests_are_those_that_the_text_describes() -> None:
    """Worked by hand from the comments, with hashlib alone."""
    shown = read()
    constants = hashlib.sha256(
        json.dumps(
            {
                "bundle_digest": shown["bundle_digest"],
                "protocol_version": 1,
                "session_id": shown["session_id"],
                "source_fingerprint": hashlib.sha256(shown["layout"].encode()).hexdigest(),
            },
            separators=(",", ":"),
        ).encode()
    ).digest()
    assert shown["session_constants"] == constants.hex()
    request_id, header = bytes.fromhex(shown["request_id"]), bytes.fromhex(shown["header"])
    payload, question = bytes.fromhex(shown["payload, fp8_e4m3"]), shown["question"].encode()

    def digest(*parts: bytes) -> str:
        data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        return hashlib.blake2b(data, key=constants, digest_size=8).hexdigest()

    number, eight, zero = (struct.pack("<I", n) for n in (FRAME_NUMBER, 8, 0))
    assert shown["Frame.digest"] == digest(request_id, header, payload, question, eight)
    assert shown["AskRequest.digest"] == digest(request_id, number, b"", question, zero)
    assert shown["bare Frame.digest"] == digest(b"", header, payload, b"", zero)
    derived = hashlib.blake2b(b"request" + number, key=constants, digest_size=8).hexdigest()
    assert shown["derived request_id"] == derived
    inner = bytes((10, len(header))) + header + bytes((18, len(payload))) + payload
    inner += bytes((26, 8)) + bytes.fromhex(shown["Frame.digest"])
    whole = bytes((10, 8)) + request_id + bytes((18, len(inner))) + inner
    assert shown["InferRequest"] == (whole + bytes((26, 6)) + question + b"\x20\x08").hex()


def test_its_payload_and_header_are_those_that_the_text_describes() -> None:
    shown = read()
    normal = (np.array(STATES) - MEAN) / SCALE
    coded = (normal @ np.array(PROJECTION) - CENTRE) / STEP
    rounded = np.clip(coded, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert shown["payload, fp8_e4m3"] == rounded.tobytes().hex()
    figures = [round(176 + 64 * math.log10(x)) if x else 0 for x in (0.25, 0.1, 0.0, 1.0)]
    counts = bytes((6, 300 & 127 | 128, 300 >> 7, 1000 & 127 | 128, 1000 >> 7))
    bitmap = sum(1 << token for token in KEPT)
    assert shown["header"] == (bytes((3, 10, *figures)) + counts + bytes((bitmap,))).hex()


def test_its_parcel_is_what_the_text_describes() -> None:
    """Read by hand from the comments, with hashlib alone."""
    shown = read()
    raw = bytes.fromhex(shown["parcel"])
    bits = "".join(f"{byte:08b}" for byte in raw[4:])
    at = 0

    def u(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    def e(order: int) -> int:
        zeros = bits.index("1", at) - at
        return u(2 * zeros + order + 1) - 2**order

    class Field:
        def __init__(self, order: int) -> None:
            self.expected, self.total, self.seen = 0, 2**order, 1

        def first(self, value: int) -> int:
            self.expected = value
            return value

        def a(self) -> int:
            code = e(max(0, int(math.log2(max(1, self.total // self.seen)))))
            difference = code // 2 if code % 2 == 0 else -(code + 1) // 2
            value = self.expected + difference
            self.expected = (self.expected + value + 1) // 2
            self.total, self.seen = self.total + 2 * abs(difference), self.seen + 1
            return value

    figures, delta, size = [Field(1) for _ in range(4)], Field(2), Field(2)
    header, payload = bytes.fromhex(shown["header"]), bytes.fromhex(shown["payload, fp8_e4m3"])
    assert e(0) == 3 - 1
    assert (u(8), e(5), e(7), u(2), u(1), u(2)) == (POINT.index, 6, FRAME_NUMBER, 0, 0, 0)
    assert u(3) == 0
    assert bytes(field.first(u(8)) for field in figures) == header[2:6]
    assert delta.first(e(9)) == DELTA_MS
    assert u(6) == header[-1]
    sizes = [size.first(e(4))]
    assert (u(1), u(1)) == (0, 0), "another question"
    assert (u(8), e(5), e(7), u(2), u(1)) == (POINT.index, 6, FRAME_NUMBER + 1, 0, 0)
    assert (u(2), u(4)) == (3, 5)
    assert bytes(u(8) for _ in range(e(5))).decode() == QUESTION and e(3) == MAX_NEW_TOKENS
    assert u(3) == 0
    levels = [field.a() for field in figures]
    assert levels == [*header[2:5], round(176 + 64 * math.log10(1.2))]
    assert delta.a() == LATER_MS and u(6) == header[-1]
    sizes.append(size.a())
    assert (u(1), u(1)) == (0, 1), "only flags and base_distance differ"
    assert u(3) == 0b011 and e(0) == 1 - 1
    assert [field.a() for field in figures] == levels and delta.a() == DELTA_MS
    assert e(0) == 1 - 1 and e(int(math.log2(6 // 2))) == MOVED, "two zeros before the only token"
    assert sizes == [len(payload), len(payload)]
    rest = raw[4 + (at + 7) // 8 :]
    assert set(bits[at : at + -at % 8]) <= {"0"} and rest == payload + payload + payload[:2]

    constants = bytes.fromhex(shown["session_constants"])
    number = [FRAME_NUMBER + i for i in range(3)]
    counts = [
        bytes((6, n & 127 | 128, n >> 7, ms & 127 | 128, ms >> 7))
        for n, ms in zip(number, (DELTA_MS, LATER_MS, DELTA_MS), strict=True)
    ]
    headers = [
        header,
        bytes((3, 10, *levels)) + counts[1] + header[-1:],
        bytes((3 + 64 + 32, 10, *levels)) + counts[2] + bytes((1, 1 << MOVED)),
    ]
    digests = b""
    for i, (head, body) in enumerate(zip(headers, (payload, payload, payload[:2]), strict=True)):
        question, limit = (QUESTION.encode(), MAX_NEW_TOKENS) if i else (b"", 0)
        parts = (b"", head, body, question, struct.pack("<I", limit))
        data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        digests += hashlib.blake2b(data, key=constants, digest_size=8).digest()
    assert raw[:4] == hashlib.blake2b(b"parcel" + digests, key=constants, digest_size=4).digest()


def test_un_rotation_is_what_the_text_describes() -> None:
    rng = np.random.default_rng(0)
    at = np.array([3, 17])
    for interleaved in (False, True):
        rope = RopeSpec(1e4, 4, interleaved, "yarn", 1.25, (1.0, 0.01))
        truth = rng.standard_normal((1, 2, 2, 6)).astype(np.float32)
        cached = rotate(truth, rope, at)
        pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
        undone = cached.copy()
        for (i, j), frequency in zip(pairs, rope.inv_freq, strict=True):
            cos, sin = np.cos(at * frequency), np.sin(at * frequency)
            a, b = cached[..., i], cached[..., j]
            undone[..., i] = (a * cos + b * sin) / rope.attention_factor
            undone[..., j] = (b * cos - a * sin) / rope.attention_factor
        np.testing.assert_allclose(undone, truth, atol=1e-6)
        np.testing.assert_allclose(unrotate(cached, rope, at), undone, atol=1e-6)


def main() -> None:
    """Write the example anew into the .proto."""
    path = Path(ROOT / PROTO)
    proto = path.read_text(encoding="utf-8")
    opening = re.search(r"// WORKED EXAMPLE(?:.|\n)*?//\n", proto)
    assert opening is not None
    end = proto.index("//\n// end of the worked example")
    path.write_text(proto[: opening.end()] + text() + "\n" + proto[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
