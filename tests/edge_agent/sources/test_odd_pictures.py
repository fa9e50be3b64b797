"""Any file that a person may put into a folder: a picture as they expect it, or a typed error."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.sources import Capture
from edge_agent.sources.folder import Folder
from projector.models import pictures
from protos.errors import PictureError

MOST = 1 << 16
"""Most pixels that the tests' agent decodes."""
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "AVIF": ("RGB", "RGBA"),
}
FORMATS = [kind for kind in MODES if kind in pictures.FORMATS]
SIDES = st.one_of(st.integers(1, 48), st.sampled_from([1, 500, 3000]))
SUFFIXES = st.sampled_from([".png", ".jpg", ".JPEG", ".gif", ".heic", ".mp4", ".dat", ""])


def picture(mode: str, width: int, height: int) -> Image.Image:
    """A slope from black to white, with the bottom row black."""
    slope = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    slope[-1] = 0
    made = Image.fromarray(slope)
    if mode == "I;16":
        return Image.fromarray(slope.astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        made = made.convert(mode)
        made.putalpha(Image.fromarray(slope))
        return made
    return made.convert("RGB").convert(mode) if mode in ("CMYK", "P") else made.convert(mode)


def saved(mode: str, kind: str, width: int, height: int, turn: int = 1) -> bytes:
    made, file = picture(mode, width, height), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    more = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    made.save(file, kind, **more)
    return file.getvalue()


def read(data: bytes, name: str) -> Capture:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        (capture,) = Folder((path,), max_pixels=MOST)
        return capture


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_whole_file_is_upright_rgb_whatever_its_kind_size_and_name(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    mode = data.draw(st.sampled_from(MODES[kind]))
    width, height, turn = data.draw(SIDES), data.draw(SIDES), data.draw(st.integers(0, 9))
    file = saved(mode, kind, width, height, turn)
    capture = read(file, "a" + data.draw(SUFFIXES))
    if width * height > MOST:
        shrunk = kind == "JPEG" and capture.picture is not None
        assert shrunk or isinstance(capture.error, PictureError)
        return
    assert capture.error is None and capture.picture is not None, capture.error
    turned = turn in (5, 6, 7, 8) and kind in ("JPEG", "PNG", "WEBP")
    assert capture.picture.mode == "RGB"
    assert capture.picture.size == ((height, width) if turned else (width, height))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_file_is_a_picture_or_a_typed_error_never_a_crash(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    mode = data.draw(st.sampled_from(MODES[kind]))
    width, height = data.draw(st.integers(1, 48)), data.draw(st.integers(1, 48))
    file = bytearray(saved(mode, kind, width, height))
    for _ in range(data.draw(st.integers(0, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(file)))
    capture = read(bytes(file[:end]) + data.draw(st.binary(max_size=20)), "a.png")
    if capture.error is not None:
        assert isinstance(capture.error, PictureError) and "a.png" in capture.error.message
    else:
        assert capture.picture is not None and capture.picture.mode == "RGB"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"BM"]))
def test_noise_is_a_typed_error_or_a_picture_within_the_limit(data: bytes, start: bytes) -> None:
    capture = read(start + data, "noise.jpg")
    if capture.error is None:
        assert capture.picture is not None
        assert capture.picture.width * capture.picture.height <= MOST
    else:
        assert isinstance(capture.error, PictureError)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_a_line_of_pixels_is_read(size: tuple[int, int]) -> None:
    capture = read(saved("RGB", "PNG", *size), "line.png")
    assert capture.picture is not None and capture.picture.size == size


@pytest.mark.quick(1)
@pytest.mark.parametrize(("side", "says"), [(9_000, "max_picture_pixels"), (20_000, "bomb")])
def test_a_bomb_is_refused_before_it_is_decoded(side: int, says: str) -> None:
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    capture = read(bomb.getvalue(), "bomb.png")
    assert isinstance(capture.error, PictureError) and says in str(capture.error)


def test_a_format_of_phones_that_is_not_read_says_what_to_do() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    capture = read(heic, "photo.heic")
    assert isinstance(capture.error, PictureError) and "ordinary PNG or JPEG" in str(capture.error)
