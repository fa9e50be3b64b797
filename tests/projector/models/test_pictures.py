"""One picture, whatever file it comes in, is the same picture to every part of the bridge."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from cloud_server.engine.picture import open_picture
from edge_agent.picture import PictureCodec
from edge_agent.sources.folder import Folder
from projector.models import pictures
from projector.models.blankness import degenerate
from projector.training.dataset import Dataset, open_folder
from protos.errors import PictureError

Pixels = npt.NDArray[Any]


def scene() -> Pixels:
    """A colour picture with smooth parts and edges, 40 x 56."""
    y, x = np.mgrid[0:40, 0:56]
    made = np.stack([x * 4, y * 6, 120 + 100 * np.sin(x / 9)], -1)
    made[8:20, 10:24] = (230, 40, 20)
    return np.clip(made, 0, 255).astype(np.uint8)


RGB = scene()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
ALPHA = np.clip(np.mgrid[0:40, 0:56][1] * 5, 0, 255).astype(np.uint8)
ALPHA[:, 40:48] = 0


def over_white(colours: Pixels, alpha: Pixels = ALPHA) -> Pixels:
    share = alpha[..., None] / 255
    return np.asarray(colours * share + 255 * (1 - share))


def rgb(grey: Pixels) -> Pixels:
    return np.repeat(np.asarray(grey)[..., None], 3, -1)


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: Pixels, colour_type: int, depth: int, *chunks: bytes) -> bytes:
    """A PNG file as the standard says, without Pillow; samples of less than 8 bits are packed."""
    height, width = samples.shape[:2]
    if depth < 8:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def sbit(*bits: int) -> bytes:
    return chunk(b"sBIT", bytes(bits))


def tiff16(
    samples: Pixels,
    order: str = "<",
    alpha: int | None = None,
    white: int = 0,
    deflate: bool = False,
) -> bytes:
    """A TIFF of interleaved samples of 16 bits, without Pillow."""
    height, width, channels = samples.shape
    data = samples.astype(order + "u2").tobytes()
    data = zlib.compress(data) if deflate else data
    packing = [8 if deflate else 1]
    tags = [
        *((256, 4, [width]), (257, 4, [height]), (258, 3, [16] * channels), (259, 3, packing)),
        *((262, 3, [1 if channels == 1 else 2]), (273, 4, [8]), (277, 3, [channels])),
        *((278, 4, [height]), (279, 4, [len(data)])),
        *([(281, 3, [white] * channels)] if white else []),
        *([(338, 3, [alpha])] if alpha is not None else []),
    ]
    start = 8 + len(data)
    more_at, more, directory = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, values in tags:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place, more = struct.pack(order + "I", more_at + len(more)), more + packed
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(order + "H", len(tags))
    return mark + struct.pack(order + "I", start) + data + count + directory + bytes(4) + more


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def p3() -> bytes:
    """A profile with other primaries than sRGB's: red and green exchanged."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = made.index(b"rXYZ"), made.index(b"gXYZ")
    made[red : red + 4], made[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(made)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOUR, CLEAR = Image.fromarray(RGB), Image.fromarray(np.dstack([RGB, ALPHA]))
MUTED = RGB // 2 + 64
DEEP = RGB.astype(np.uint32) * 257
DEEP_GREY = GREY.astype(np.uint32) * 257
TWELVE = np.rint(GREY / 255 * 4095).astype(np.uint16)
PALETTE = COLOUR.quantize(64)
OPAQUE = np.array([0 if i % 3 == 0 else 255 for i in range(64)], np.uint8)
BITS = np.asarray(Image.fromarray(GREY).convert("1"))
HIDDEN = np.where(ALPHA[..., None] > 0, DEEP * 4095 // 65535, 65535)
CLEAR_WHITE = chunk(b"tRNS", b"\xff\xff")


def hidden(colour: int) -> Image.Image:
    """The scene cut out, with another colour under what is fully transparent."""
    pixels = np.dstack([RGB, ALPHA])
    pixels[ALPHA == 0, :3] = colour
    return Image.fromarray(pixels)


def tiff(pixels: Pixels, **tags: int) -> bytes:
    names = {"white": 281, "orientation": 274, "inverted": 262}
    how = {names[name]: value for name, value in tags.items()}
    return saved(Image.fromarray(pixels), "TIFF", tiffinfo=how)


CASES: dict[str, tuple[Callable[[], bytes], Pixels, int]] = {
    # What a file is, its bytes, how it should look, and by how much that may differ.
    "png": (lambda: saved(COLOUR, "PNG"), RGB, 0),
    "bmp": (lambda: saved(COLOUR, "BMP"), RGB, 0),
    "tiff": (lambda: saved(COLOUR, "TIFF"), RGB, 0),
    "tiff lzw": (lambda: saved(COLOUR, "TIFF", compression="tiff_lzw"), RGB, 0),
    "webp": (lambda: saved(COLOUR, "WEBP", lossless=True), RGB, 0),
    "png grey": (lambda: saved(Image.fromarray(GREY), "PNG"), rgb(GREY), 0),
    "bmp grey": (lambda: saved(Image.fromarray(GREY), "BMP"), rgb(GREY), 0),
    "tiff grey": (lambda: saved(Image.fromarray(GREY), "TIFF"), rgb(GREY), 0),
    "jpeg grey": (lambda: saved(Image.fromarray(GREY), "JPEG", quality=100), rgb(GREY), 3),
    "png 1 bit": (lambda: png(BITS, 0, 1), rgb(BITS * 255), 0),
    "png 2 bits": (lambda: png(GREY >> 6, 0, 2), rgb((GREY >> 6) * 85), 0),
    "tiff 1 bit": (lambda: saved(Image.fromarray(BITS), "TIFF"), rgb(BITS * 255), 0),
    "bmp 1 bit": (lambda: saved(Image.fromarray(BITS), "BMP"), rgb(BITS * 255), 0),
    "png palette": (lambda: saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), 0),
    "tiff palette": (lambda: saved(PALETTE, "TIFF"), np.asarray(PALETTE.convert("RGB")), 0),
    "png palette, clear colours": (
        lambda: saved(PALETTE, "PNG", transparency=OPAQUE.tobytes()),
        over_white(np.asarray(PALETTE.convert("RGB")), OPAQUE[np.asarray(PALETTE)]),
        1,
    ),
    "png palette, one clear colour": (
        lambda: saved(PALETTE, "PNG", transparency=5),
        over_white(np.asarray(PALETTE.convert("RGB")), np.where(np.asarray(PALETTE) == 5, 0, 255)),
        0,
    ),
    "png alpha": (lambda: saved(CLEAR, "PNG"), over_white(RGB), 1),
    "webp alpha": (lambda: saved(CLEAR, "WEBP", lossless=True, exact=True), over_white(RGB), 1),
    "tiff alpha": (lambda: saved(CLEAR, "TIFF"), over_white(RGB), 1),
    "png grey with alpha": (lambda: saved(CLEAR.convert("LA"), "PNG"), over_white(rgb(GREY)), 1),
    "tiff grey with alpha": (lambda: saved(CLEAR.convert("LA"), "TIFF"), over_white(rgb(GREY)), 1),
    "png black under alpha 0": (lambda: saved(hidden(0), "PNG"), over_white(RGB), 1),
    "png grey under alpha 0": (lambda: saved(hidden(119), "PNG"), over_white(RGB), 1),
    "png clear grey": (
        lambda: png(GREY, 0, 8, chunk(b"tRNS", struct.pack(">H", 60))),
        np.where(rgb(GREY) == 60, 255, rgb(GREY)),
        0,
    ),
    "png 2 bits, one clear": (
        lambda: png(GREY >> 6, 0, 2, chunk(b"tRNS", struct.pack(">H", 1))),
        np.where(rgb(GREY >> 6) == 1, 255, rgb((GREY >> 6) * 85)),
        0,
    ),
    "png 1 bit, white clear": (
        lambda: png(BITS, 0, 1, chunk(b"tRNS", struct.pack(">H", 0))),
        rgb(BITS * 0 + 255),
        0,
    ),
    "png clear colour": (
        lambda: png(RGB, 2, 8, chunk(b"tRNS", struct.pack(">HHH", 230, 40, 20))),
        np.where((RGB == (230, 40, 20)).all(-1, keepdims=True), 255, RGB),
        0,
    ),
    "png 16 bits": (lambda: png(DEEP, 2, 16), RGB, 0),
    "png 16 bits that say so": (lambda: png(DEEP // 4, 2, 16, sbit(16, 16, 16)), RGB / 4, 1),
    "png 12 bits of 16": (lambda: png(DEEP * 4095 // 65535, 2, 16, sbit(12, 12, 12)), RGB, 1),
    "png 12 bits shifted up": (lambda: png(DEEP & 0xFFF0, 2, 16, sbit(12, 12, 12)), RGB, 1),
    "png 16 bits from 8, dark": (lambda: png(DEEP // 257 // 4 * 257, 2, 16), RGB // 4, 0),
    "png 16 bits with alpha": (
        lambda: png(np.dstack([DEEP, ALPHA * np.uint32(257)]), 6, 16),
        over_white(RGB),
        1,
    ),
    "png 16 bits, clear colour": (
        lambda: png(
            DEEP, 2, 16, chunk(b"tRNS", struct.pack(">HHH", 230 * 257, 40 * 257, 20 * 257))
        ),
        np.where((RGB == (230, 40, 20)).all(-1, keepdims=True), 255, RGB),
        0,
    ),
    "png 12 bits of 16, other samples under alpha 0": (
        lambda: png(np.dstack([HIDDEN, (ALPHA > 0) * 4095]), 6, 16, sbit(12, 12, 12, 12)),
        np.where(ALPHA[..., None] > 0, RGB, 255),
        1,
    ),
    "png grey 12 bits of 16, no value is 65535": (
        lambda: png(np.where(ALPHA > 0, TWELVE, 65535), 0, 16, sbit(12), CLEAR_WHITE),
        np.where(ALPHA[..., None] > 0, rgb(GREY), 255),
        1,
    ),
    "png grey 16 bits": (lambda: png(DEEP_GREY, 0, 16), rgb(GREY), 0),
    "png grey 12 bits of 16": (lambda: png(TWELVE, 0, 16, sbit(12)), rgb(GREY), 1),
    "png grey 8 bits times 16": (
        lambda: png(GREY.astype(np.uint16) * 16, 0, 16, sbit(12)),
        rgb(GREY),
        1,
    ),
    "png grey 14 bits of 16": (lambda: png(TWELVE * 4 + 3, 0, 16, sbit(14)), rgb(GREY), 1),
    "png grey 16 bits with alpha": (
        lambda: png(np.dstack([DEEP_GREY, ALPHA * np.uint32(257)]), 4, 16),
        over_white(rgb(GREY)),
        1,
    ),
    "png grey 16 bits, one clear": (
        lambda: png(DEEP_GREY, 0, 16, chunk(b"tRNS", struct.pack(">H", 60 * 257))),
        np.where(rgb(GREY) == 60, 255, rgb(GREY)),
        0,
    ),
    "tiff 16 bits": (lambda: tiff16(DEEP), RGB, 0),
    "tiff 16 bits, big endian": (lambda: tiff16(DEEP, ">"), RGB, 0),
    "tiff 16 bits, compressed": (lambda: tiff16(DEEP, deflate=True), RGB, 0),
    "tiff 16 bits, compressed, big endian": (lambda: tiff16(DEEP, ">", deflate=True), RGB, 0),
    "tiff 16 bits with alpha, compressed": (
        lambda: tiff16(np.dstack([DEEP, ALPHA * np.uint32(257)]), alpha=2, deflate=True),
        over_white(RGB),
        1,
    ),
    "tiff 12 bits of 16": (lambda: tiff16(DEEP * 4095 // 65535, white=4095), RGB, 1),
    "tiff 16 bits with alpha": (
        lambda: tiff16(np.dstack([DEEP, ALPHA * np.uint32(257)]), alpha=2),
        over_white(RGB),
        1,
    ),
    "tiff 16 bits, colours times alpha": (
        lambda: tiff16(
            np.dstack([np.rint(RGB * (ALPHA[..., None] / 255) * 257), ALPHA * 257.0]), alpha=1
        ),
        over_white(RGB),
        1,
    ),
    "tiff grey 16 bits": (lambda: tiff(DEEP_GREY.astype(np.uint16)), rgb(GREY), 0),
    "tiff grey 12 bits of 16": (lambda: tiff(TWELVE, white=4095), rgb(GREY), 1),
    "tiff grey 16 bits, black is full": (
        lambda: tiff(65535 - DEEP_GREY.astype(np.uint16), inverted=0),
        rgb(GREY),
        0,
    ),
    "tiff 32 bits": (lambda: tiff(TWELVE.astype(np.int32), white=4095), rgb(GREY), 1),
    "tiff floating point": (
        lambda: saved(Image.fromarray(GREY / np.float32(255)), "TIFF", tiffinfo={341: 1.0}),
        rgb(GREY),
        0,
    ),
    "jpeg": (lambda: saved(COLOUR, "JPEG", quality=100, subsampling=0), RGB, 4),
    "jpeg progressive": (
        lambda: saved(COLOUR, "JPEG", quality=100, subsampling=0, progressive=True),
        RGB,
        4,
    ),
    "jpeg cmyk": (lambda: saved(COLOUR.convert("CMYK"), "JPEG", quality=100), RGB, 4),
    "tiff cmyk": (lambda: saved(COLOUR.convert("CMYK"), "TIFF"), RGB, 2),
    "tiff ycbcr": (lambda: saved(COLOUR.convert("YCbCr"), "TIFF"), RGB, 3),
    "tiff lab": (lambda: saved(Image.fromarray(MUTED).convert("LAB"), "TIFF"), MUTED, 8),
    "apng": (
        lambda: saved(COLOUR, "PNG", save_all=True, append_images=[Image.new("RGB", (56, 40))]),
        RGB,
        0,
    ),
    "webp animated": (
        lambda: saved(
            COLOUR,
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.new("RGB", (56, 40), "red")],
        ),
        RGB,
        0,
    ),
    "tiff of two pages": (
        lambda: saved(COLOUR, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
        RGB,
        0,
    ),
    "png in sRGB": (lambda: saved(COLOUR, "PNG", icc_profile=SRGB), RGB, 0),
    "png in a broken profile": (lambda: saved(COLOUR, "PNG", icc_profile=b"not one"), RGB, 0),
    "png in half a profile": (lambda: saved(COLOUR, "PNG", icc_profile=p3()[:200]), RGB, 0),
    "grey png in a colour profile": (
        lambda: saved(Image.fromarray(GREY), "PNG", icc_profile=p3()),
        rgb(GREY),
        0,
    ),
    "jpeg with broken exif": (
        lambda: saved(COLOUR, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff"),
        RGB,
        4,
    ),
}
ON_THE_WIRE = ("png", "jpeg", "webp", "apng", "grey png")


def agent(file: bytes, folder: Path) -> Image.Image:
    (capture,) = Folder.from_path(_stored(file, folder))
    if capture.picture is None:
        raise capture.error or AssertionError
    return capture.picture


def toolkit(file: bytes, folder: Path) -> Image.Image:
    return Dataset(_stored(file, folder).parent).picture(0)


def service(file: bytes, folder: Path) -> Image.Image:
    return open_picture(file, 4096)


def _stored(file: bytes, folder: Path) -> Path:
    path = folder / "one" / "picture.png"  # what it holds counts, not its name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file)
    return path


DOORS = {"agent": agent, "toolkit": toolkit, "service": service}
EVERYWHERE = [
    (door, case)
    for case in CASES
    for door in DOORS
    if door != "service" or case.startswith(ON_THE_WIRE)
]


@pytest.mark.quick(45)
@pytest.mark.parametrize(("door", "case"), EVERYWHERE)
def test_a_scene_is_the_same_picture_whatever_file_it_comes_in(
    door: str, case: str, tmp_path: Path
) -> None:
    make, expected, most = CASES[case]
    found = DOORS[door](make(), tmp_path)
    assert (found.mode, found.size, found.info) == ("RGB", (56, 40), {})
    away = np.abs(np.asarray(found).astype(float) - expected)
    assert away.max() <= most + 0.5, f"{case} at the {door}"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_every_door_turns_pictures_upright(
    door: str, orientation: int, kind: str, tmp_path: Path
) -> None:
    if door == "service" and kind == "TIFF":
        return
    back: dict[int, Callable[[Image.Image], Image.Image]] = {
        6: lambda p: p.rotate(90, expand=True),
        8: lambda p: p.rotate(270, expand=True),
        3: lambda p: p.rotate(180),
        2: lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        4: lambda p: p.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda p: p.transpose(Image.Transpose.TRANSPOSE),
        7: lambda p: p.transpose(Image.Transpose.TRANSVERSE),
        1: lambda p: p,
    }
    stored = back[orientation](COLOUR)
    how = {"lossless": True} if kind == "WEBP" else {}
    file = saved(stored, kind, exif=turned(orientation), **how)
    found = DOORS[door](file, tmp_path)
    assert (np.asarray(found) == RGB).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_turned_tiff_files_of_any_kind_are_read_whole(
    mode: str, orientation: int, compression: str | None, tmp_path: Path
) -> None:
    if mode == "I;16":
        upright = Image.fromarray(DEEP_GREY.astype(np.uint16))
    else:
        upright = (CLEAR if mode.endswith("A") else COLOUR).convert(mode)
    back = Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_90
    stored = saved(
        upright.transpose(back), "TIFF", exif=turned(orientation), compression=compression
    )
    for door in (agent, toolkit):
        assert door(stored, tmp_path).tobytes() == pictures.read(saved(upright, "TIFF")).tobytes()


@pytest.mark.parametrize("door", DOORS)
def test_a_colour_profile_is_applied_once(door: str, tmp_path: Path) -> None:
    file = saved(COLOUR, "PNG", icc_profile=p3())
    found = np.asarray(DOORS[door](file, tmp_path)).astype(int)
    assert abs(found[12, 15, 1] - 230) < 40 and found[12, 15, 0] < 120, "red was green"
    again = io.BytesIO()
    DOORS[door](file, tmp_path).save(again, "PNG")  # as the agent's picture point does
    assert (np.asarray(open_picture(again.getvalue(), 4096)) == found).all()


UNTOLD = {
    "png grey 12 bits of 16": lambda: png(TWELVE, 0, 16),
    "png 12 bits of 16": lambda: png(DEEP >> 4, 2, 16),
    "png 14 bits, at either end": lambda: png(GREY.astype(np.uint16) // 2 * 4, 0, 16, sbit(14)),
    "tiff grey 12 bits of 16": lambda: tiff(TWELVE),
    "tiff 12 bits of 16": lambda: tiff16(DEEP >> 4),
    "tiff whose largest sample was measured": lambda: tiff(TWELVE, white=3803),
    "tiff above what it declares": lambda: tiff(TWELVE, white=1023),
    "tiff 32 bits": lambda: tiff(GREY.astype(np.int32)),
    "tiff below zero": lambda: tiff(GREY.astype(np.int32) - 99, white=255),
    "tiff floating point": lambda: tiff(GREY.astype(np.float32)),
    "tiff floating point in 0..1": lambda: tiff(GREY / np.float32(300)),
    "tiff not a number": lambda: tiff(GREY / np.float32(255) * np.float32("nan"), white=1),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_a_depth_that_cannot_be_told_is_refused_with_what_to_do(case: str, tmp_path: Path) -> None:
    file = UNTOLD[case]()
    for door in (agent, toolkit, *([service] if case.startswith("png") else [])):
        with pytest.raises(PictureError, match="save it in 8 bits|declare 2\\^bits"):
            door(file, tmp_path)


def test_two_frames_of_a_deep_camera_keep_their_brightness() -> None:
    """Scaled by what the file declares: a dark frame stays darker than a bright one."""
    bright, dark = (pictures.read(png(TWELVE // n, 0, 16, sbit(12))) for n in (1, 4))
    assert np.abs(np.asarray(bright) / 4.0 - np.asarray(dark)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_a_picture_in_memory_is_what_its_file_would_be(mode: str) -> None:
    """Of a source of one's own, or a program that hands the model pictures."""
    picture = CLEAR.convert(mode) if mode in ("LA", "RGBA") else COLOUR.convert(mode)
    file = saved(picture, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert pictures.as_rgb(picture).tobytes() == pictures.read(file).tobytes()
    assert pictures.as_rgb(COLOUR) is COLOUR


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_deep_picture_in_memory_is_refused_not_made_white(mode: str) -> None:
    with pytest.raises(PictureError, match="scale it to 8 bits"):
        pictures.as_rgb(Image.fromarray(TWELVE.astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode])))


def test_the_picture_point_passes_no_metadata_on() -> None:
    picture = COLOUR.copy()
    picture.info = {"icc_profile": p3(), "exif": turned(3).tobytes()}
    for codec in ("png", "webp", "jpeg"):
        file = PictureCodec(codec, 100).encode(picture)
        away = np.asarray(open_picture(file, 64)).astype(int) - RGB
        assert np.abs(away).mean() < 9, "red and green are where they were"
        assert not {"icc_profile", "exif"} & set(Image.open(io.BytesIO(file)).info)


def test_what_lies_under_full_transparency_does_not_matter() -> None:
    for kind, how in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        files = [saved(hidden(colour), kind, **how) for colour in (0, 128, 255)]
        looks = {pictures.read(file).tobytes() for file in files}
        assert len(set(files)) == 3 and len(looks) == 1


def test_ordinary_pictures_are_decoded_as_pillow_does() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        file = saved(COLOUR, kind)
        plain = Image.open(io.BytesIO(file)).convert("RGB")
        assert pictures.read(file).tobytes() == plain.tobytes()


def noise_jpeg(width: int, height: int, **how: Any) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return saved(Image.fromarray(levels).resize((width, height)), "JPEG", **how)


def test_a_large_jpeg_is_decoded_smaller_and_anything_else_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jpeg = noise_jpeg(640, 480)
    decoded: list[int] = []
    load = Image.Image.convert
    monkeypatch.setattr(
        Image.Image,
        "convert",
        lambda self, *args, **kw: (
            decoded.append(self.width * self.height) or load(self, *args, **kw)
        ),
    )
    for most, size in ((640 * 480, (640, 480)), (640 * 480 - 1, (320, 240)), (9000, (80, 60))):
        decoded.clear()
        assert pictures.read(jpeg, max_pixels=most).size == size
        assert max(decoded) == size[0] * size[1] <= most
    decoded.clear()
    large = saved(Image.new("RGB", (640, 480)), "PNG")
    for file, most in ((jpeg, 4000), (large, 640 * 480 - 1), (large[:60], 1000)):
        with pytest.raises(PictureError, match="640 x 480.*max_picture_pixels"):
            pictures.read(file, max_pixels=most)
    progressive = noise_jpeg(640, 480, progressive=True)
    with pytest.raises(PictureError, match="640 x 480"):
        pictures.read(progressive, max_pixels=9000)
    assert not decoded, "a size is refused before a pixel is decoded"


def test_the_service_refuses_a_side_that_is_too_long_before_decoding() -> None:
    for file in (noise_jpeg(640, 480), saved(Image.new("RGB", (640, 480)), "PNG")[:60]):
        with pytest.raises(PictureError, match="640 x 480.*512 a side"):
            open_picture(file, 512)
    assert open_picture(noise_jpeg(640, 480), 640).size == (640, 480)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_half_a_file_and_noise_are_named(kind: str, tmp_path: Path) -> None:
    file = saved(COLOUR, kind)
    for door in (agent, toolkit):
        for bad in (file[: len(file) // 2], b"no picture", file[:16]):
            with pytest.raises(PictureError, match=r"picture\.png"):
                door(bad, tmp_path)


def test_an_empty_file_is_said_to_be_empty_and_another_format_what_to_save_it_as(
    tmp_path: Path,
) -> None:
    for door in DOORS.values():
        with pytest.raises(PictureError, match="is empty"):
            door(b"", tmp_path)
        with pytest.raises(PictureError, match="save it as an ordinary PNG or JPEG"):
            door(saved(COLOUR, "GIF"), tmp_path)


@pytest.mark.quick(17)
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_of_any_kind_is_a_picture_or_a_typed_error(case: str) -> None:
    file, rng = CASES[case][0](), np.random.default_rng(len(case))
    for _ in range(40):
        copy = bytearray(file)
        for place in rng.integers(0, min(len(copy), 600), 3):
            copy[place] = rng.integers(0, 256)
        try:
            assert pictures.read(bytes(copy), max_pixels=1 << 20).mode == "RGB"
        except PictureError as error:
            assert error.message


def bad_profile(**wrong: Any) -> bytes:
    """A PNG file whose profile's chunk is not as it should be."""
    data = wrong.get("data", b"p\0\0" + zlib.compress(p3()))
    made = bytearray(chunk(b"iCCP", data))
    made[-1] ^= wrong.get("crc", 0)
    return png(RGB, 2, 8, bytes(made))


def test_no_fault_of_a_profile_costs_the_picture(tmp_path: Path) -> None:
    whole = b"p\0\0" + zlib.compress(bytes(3 << 20))
    files = [bad_profile(crc=1), bad_profile(data=whole), bad_profile(data=b"p\0\7not zlib")]
    files += [bad_profile(data=b"p\0\0not zlib"), bad_profile(data=b"")]
    files += [saved(COLOUR, kind, icc_profile=b"not one") for kind in ("PNG", "TIFF")]
    files.append(saved(COLOUR, "WEBP", lossless=True, icc_profile=b"not one"))
    for file in files:
        for door in (agent, toolkit, *([service] if file[:2] not in (b"II", b"MM") else [])):
            assert (np.asarray(door(file, tmp_path)) == RGB).all()


def spoilt(kind: bytes, data: bytes) -> bytes:
    made = bytearray(chunk(kind, data))
    made[-1] ^= 1
    return bytes(made)


METADATA = {
    "text too large": chunk(b"zTXt", b"XML\0\0" + zlib.compress(b"x" * (2 << 20))),
    "text": spoilt(b"tEXt", b"a\0b"),
    "gamma": spoilt(b"gAMA", struct.pack(">I", 45455)),
    "short gamma": chunk(b"gAMA", b"\0"),
    "date": spoilt(b"tIME", bytes(7)),
    "depth": spoilt(b"sBIT", b"\5\5\5"),
    "exif": spoilt(b"eXIf", turned(6).tobytes()[6:]),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", METADATA)
def test_no_fault_of_other_metadata_costs_the_picture(
    door: str, fault: str, tmp_path: Path
) -> None:
    assert (np.asarray(DOORS[door](png(RGB, 2, 8, METADATA[fault]), tmp_path)) == RGB).all()


def test_a_fault_of_a_text_costs_neither_profile_nor_orientation() -> None:
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(p3()))
    file = (RGB, 2, 8, profile, chunk(b"eXIf", turned(6).tobytes()[6:]))
    damaged = pictures.read(png(*file, METADATA["text"]))
    assert damaged.size == (40, 56)
    assert damaged.tobytes() == pictures.read(png(*file)).tobytes()


def test_a_fault_of_a_text_leaves_a_damaged_picture_refused() -> None:
    file = png(RGB, 2, 8, METADATA["text"])
    with pytest.raises(PictureError, match="payload of"):
        pictures.read(file[:-200])


@pytest.mark.parametrize(
    ("size", "said"),
    [((1, 1), "flat"), ((40, 40), "flat"), ((1, 4000), "4000"), ((4000, 1), "4000")],
)
def test_a_picture_that_shows_nothing_is_told_from_one_that_may(
    size: tuple[int, int], said: str
) -> None:
    assert said in degenerate(Image.new("RGB", size, (3, 200, 9)))
    strip = Image.fromarray(RGB).resize(size)
    assert bool(degenerate(strip)) == (1 in size)


def test_a_picture_of_nothing_but_transparency_shows_nothing() -> None:
    for clear in (hidden(7), CLEAR):
        clear.putalpha(0)
        assert degenerate(pictures.read(saved(clear, "PNG"))) == "one flat colour"
    assert not degenerate(COLOUR)


def test_agent_and_toolkit_look_for_the_same_files(tmp_path: Path) -> None:
    for suffix, kind in pictures.SUFFIXES.items():
        (tmp_path / f"a{suffix}").write_bytes(saved(COLOUR, kind))
        (tmp_path / f"b{suffix.upper()}").write_bytes(saved(COLOUR, kind))
    found = {capture.name for capture in Folder.from_path(tmp_path) if capture.picture}
    assert found == {path.name for path in Dataset(tmp_path).files}
    assert len(found) == 2 * len(pictures.SUFFIXES)


def test_the_digest_of_a_data_set_is_of_its_files_not_of_how_they_look(tmp_path: Path) -> None:
    """Corpora made before pictures were turned or laid over white stay of their data set."""
    files = {
        "a.png": saved(CLEAR, "PNG"),
        "b.jpg": saved(COLOUR, "JPEG", exif=turned(6)),
        "c.png": png(TWELVE, 0, 16),
    }
    whole = hashlib.sha256()
    for name, file in files.items():
        (tmp_path / name).write_bytes(file)
        whole.update(f"{name}\0{len(file)}\0".encode() + file)
    assert Dataset(tmp_path).digest == whole.hexdigest()


def test_a_data_set_names_the_file_that_is_larger_than_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(COLOUR, "PNG"))
    assert Dataset(tmp_path, max_pixels=40 * 56).picture(0).size == (56, 40)
    with pytest.raises(PictureError, match=r"a\.png.*56 x 40"):
        open_folder(tmp_path, 40 * 56 - 1).picture(0)
