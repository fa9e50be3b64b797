"""Picture files: damage is refused, files built to take long too, or they are charged for it."""

from __future__ import annotations

import io
import struct
import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloud_server.engine import reader
from cloud_server.engine.jobs import Failed
from cloud_server.engine.picture import charge_of, open_picture
from protos.errors import (
    PictureError,
)
from tests.cloud_server import stage
from tests.cloud_server.engine_bench import Bench, picture


def test_any_damage_to_a_picture_file_is_a_picture_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    outcomes: dict[str, int] = defaultdict(int)
    for kind in ("PNG", "JPEG", "WEBP"):
        file = stage.picture_file(3, kind)
        for _ in range(60):
            copy = bytearray(file)
            for position in rng.integers(0, len(copy), 4):
                copy[position] = rng.integers(0, 256)
            cut = int(rng.integers(1, len(copy) + 1))
            for damaged in (bytes(copy), file[:cut]):
                try:
                    assert open_picture(damaged, 256).mode == "RGB"
                    outcomes["picture"] += 1
                except PictureError:
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 20


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(chunks: bytes) -> bytes:
    file = stage.picture_file()
    return file[:33] + chunks + file[33:]


def with_scans(scans: int, side: int) -> bytes:
    """A grey JPEG file that passes over its pixels so often; each pass says that all are zero."""
    blocks = (side // 8) ** 2
    nothing = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32767)))  # runs of empty blocks
    nothing += "1" * (-len(nothing) % 8)
    scan = int(nothing, 2).to_bytes(len(nothing) // 8, "big").replace(b"\xff", b"\xff\0")
    table = struct.pack(">H", 20), b"\x01" + bytes(15)
    return b"".join(
        (
            b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + b"\x01" * 64,
            b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0),
            b"\xff\xc4" + table[0] + b"\x10" + table[1] + b"\xe0",
            b"\xff\xc4" + table[0] + b"\x00" + table[1] + b"\x00",
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + bytes(-(-blocks // 8)),
            (b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + scan) * (scans - 1),
            b"\xff\xd9",
        )
    )


def slow_files() -> dict[str, bytes]:
    plain = io.BytesIO()
    Image.new("RGB", (48, 48)).save(plain, "JPEG")
    jpeg, profile = plain.getvalue(), b"a\0\0" + zlib.compress(bytes((1 << 20) - 1), 9)
    return {
        "many profiles": with_chunks(2 * chunk(b"iCCP", profile)),
        "many texts": with_chunks(10_000 * chunk(b"tEXt", b"a\0")),
        "many unknown chunks": with_chunks(10_000 * chunk(b"aaAa", b"")),
        "many empty pixel chunks": with_chunks(20_000 * chunk(b"IDAT", b"")),
        "many segments": jpeg[:2] + 10_000 * b"\xff\xe5\0\2" + jpeg[2:],
        "many starts": b"\xff\xd8" * 10_000 + jpeg,
        "many bytes of nothing": jpeg[:2] + b"\xff" * 10_000 + jpeg[2:],
        "no picture": b"\xff\xd8\xff" + bytes(10_000),
        "many scans": with_scans(101, 64),
    }


@pytest.mark.parametrize(("what", "file"), slow_files().items(), ids=slow_files())
def test_a_file_built_to_take_long_is_refused_by_its_structure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str, file: bytes
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("projector.models.pictures.size", lambda *_, **__: opened.append(what))
    monkeypatch.setattr(reader, "open_picture", lambda *_: opened.append(what))
    bench.engine.submit(picture(bench, 1, file))
    (said,) = bench.said
    assert isinstance(said, Failed) and isinstance(said.error, PictureError)
    assert not opened


def test_passes_over_the_pixels_and_what_is_inflated_beside_them_are_charged() -> None:
    assert charge_of(with_scans(10, 64)) == (64 * 64, 64 * 64)
    assert charge_of(with_scans(95, 64)) == (64 * 64, 10 * 64 * 64)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    assert charge_of(with_chunks(3 * text)) == (48 * 48, 48 * 48 + (3 << 20))
    made = reader.open_picture(with_scans(95, 64), 64)
    assert made.size == (64, 64), "the file is a good one"


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("PNG", {}),
        ("PNG", {"interlace": 1}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": bytes(200_000), "exif": b"Exif\0\0" + b"\xff\xda" * 9000}),
        ("JPEG", {"restart_marker_blocks": 1, "comment": b"x"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_ordinary_files_are_charged_for_their_pixels(kind: str, how: dict[str, Any]) -> None:
    noise, file = Image.effect_noise((320, 240), 80).convert("RGB"), io.BytesIO()
    noise.save(file, kind, **how)
    assert charge_of(file.getvalue()) == (320 * 240, 320 * 240)
