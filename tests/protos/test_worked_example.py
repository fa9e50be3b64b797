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
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from projector.codec.encoder import Encoder
from protos.digest import derived_id, session_constants
from protos.distortion import Distortion
from protos.generate import PROTO, ROOT
from protos.header import Header, pack_header
from protos.layout import KVLayout, RopeSpec
from protos.parcel import Course, pack
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
    still = [
        seal(
            constants,
            b"",
            *pack_header(
                replace(moved, frame_number=number, base=number - 1, differences=False),
                payload[:1],
            ),
            QUESTION,
            MAX_NEW_TOKENS,
        )
        for number in (FRAME_NUMBER + 3, FRAME_NUMBER + 4)
    ]
    parcel = pack(constants, [bare, asked, changed, *still], Course())

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


class Reader:
    """The range code of the text, with a number as long as the bytes; no window moves."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.shifts = raw, 0
        self.low, self.range = 0, 2**32 - 1
        self.models: dict[object, tuple[int, int]] = {}

    @property
    def value(self) -> int:
        """As many bytes as low has so far."""
        size = 4 + self.shifts
        return int.from_bytes(self.raw[:size].ljust(size, b"\0"), "big")

    def _grow(self) -> None:
        while self.range < 2**24:
            self.low, self.range, self.shifts = self.low * 256, self.range * 256, self.shifts + 1

    def bit(self, *name: object) -> int:
        zero, seen = self.models.get(name, (32768, 0))
        bound = self.range // 65536 * zero
        one = self.value >= self.low + bound
        if one:
            self.low, self.range = self.low + bound, self.range - bound
            zero -= 2 * zero // (2 * seen + 3)
        else:
            self.range = bound
            zero += 2 * (65536 - zero) // (2 * seen + 3)
        self.models[name] = zero, min(seen + 1, 62)
        self._grow()
        return int(one)

    def u(self, count: int) -> int:
        found = 0
        while count:
            group = min(8, count)
            count -= group
            self.range //= 2**group
            here = (self.value - self.low) // self.range
            self.low += here * self.range
            found = found * 2**group + here
            self._grow()
        return found

    def e(self, width: int, *name: object) -> int:
        size = 0
        while self.bit(*name, "size", min(size, width - 1)):
            size += 1
        if not size:
            return 0
        high = self.bit(*name, "high", min(size, width - 1))
        return int(2**size + high * 2 ** (size - 1) + self.u(size - 1) - 1)

    def behind(self) -> bytes:
        """What follows the code, whose last bytes are checked."""
        for count in (1, 2):
            unit = 256 ** (4 - count)
            least = -(-self.low // unit) * unit
            if least + unit <= self.low + self.range:
                break
        end = self.shifts + count
        assert self.raw[:end] == least.to_bytes(4 + self.shifts, "big")[:end]
        return self.raw[end:]


def test_its_parcel_is_what_the_text_describes() -> None:
    """Read by hand from the comments, with hashlib alone."""
    shown = read()
    raw = bytes.fromhex(shown["parcel"])
    code = Reader(raw[4:])
    header, payload = bytes.fromhex(shown["header"]), bytes.fromhex(shown["payload, fp8_e4m3"])
    level = round(176 + 64 * math.log10(1.2))
    levels = [*header[2:5], level]
    assert code.u(1) == 1, "the course begins anew"
    assert code.bit("count") == 1 and code.e(4, "count") == 5 - 1

    def figures(differences: dict[int, int]) -> None:
        for i in range(4):
            assert code.bit("figure", i) == (i in differences)
            if i in differences:
                found = code.e(4, "figures")
                assert (found // 2 if found % 2 == 0 else -(found + 1) // 2) == differences[i]

    def time(told: int | None) -> None:
        assert code.bit("time") == (told is not None)
        assert told is None or code.e(12, "time") == told

    def flags(wanted: int) -> None:
        found: tuple[int, ...] = ()
        for _ in range(3):
            found += (code.bit("flags", *found),)
        assert int("".join(map(str, found)), 2) == wanted

    def bitmap(wanted: int, *before: int) -> None:
        one = 0
        for i in range(6):
            one = code.bit("kept", one, *(earlier >> i & 1 for earlier in before))
            assert one == wanted >> i & 1

    def size(wanted: int, kept: int) -> None:
        assert code.e(12, "size", min(kept, 5)) == wanted
        first = payload[0]
        assert code.bit("zero") == 1 and code.u(3) == first.bit_length() - 1
        assert code.u(first.bit_length() - 1) == first - 2 ** (first.bit_length() - 1)

    assert code.bit("other") == 1
    fields = [code.u(count) for count in (8, 16, 32, 2, 1, 1)]
    assert fields == [POINT.index, 6, FRAME_NUMBER, 0, 0, 0]
    figures({i: figure for i, figure in enumerate(header[2:6]) if figure})
    time(DELTA_MS)
    flags(0)
    bitmap(header[-1])
    size(len(payload), 3)

    assert code.bit("other") == 1, "another question"
    fields = [code.u(count) for count in (8, 16, 32, 2, 1, 1, 1)]
    assert fields == [POINT.index, 6, FRAME_NUMBER + 1, 0, 0, 1, 0]
    assert bytes(code.u(8) for _ in range(code.u(32))).decode() == QUESTION
    assert code.u(32) == MAX_NEW_TOKENS
    figures({3: level - header[5]})
    time(LATER_MS)
    flags(0)
    bitmap(header[-1])
    size(len(payload), 3)

    assert code.bit("other") == 0
    figures({})
    time(DELTA_MS)
    flags(0b011)
    assert code.bit("far") == 0
    bitmap(1 << MOVED, 0, 0)
    size(2, 1)

    assert code.bit("other") == 0
    figures({})
    time(None)
    flags(0b010)
    assert code.bit("far") == 0
    bitmap(1 << MOVED, 1 << MOVED, 0)
    size(1, 1)

    assert code.bit("other") == 0
    figures({})
    time(None)
    assert code.bit("changed", 0) == 0
    assert code.behind() == payload[1:] + payload[1:] + payload[1:2]

    constants = bytes.fromhex(shown["session_constants"])
    times = (DELTA_MS, LATER_MS, DELTA_MS, DELTA_MS, DELTA_MS)
    number = [FRAME_NUMBER + i for i in range(5)]
    counts = [
        bytes((6, n & 127 | 128, n >> 7, ms & 127 | 128, ms >> 7))
        for n, ms in zip(number, times, strict=True)
    ]
    still = bytes((3 + 64, 10, *levels))
    headers = [
        header,
        bytes((3, 10, *levels)) + counts[1] + header[-1:],
        bytes((3 + 64 + 32, 10, *levels)) + counts[2] + bytes((1, 1 << MOVED)),
        still + counts[3] + bytes((1, 1 << MOVED)),
        still + counts[4] + bytes((1, 1 << MOVED)),
    ]
    digests = b""
    bodies = (payload, payload, payload[:2], payload[:1], payload[:1])
    for i, (head, body) in enumerate(zip(headers, bodies, strict=True)):
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
