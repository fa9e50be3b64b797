"""Samples of more than 8 bits, scaled by the depth that the file declares."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.models.picture_file import open_picture, png_chunks, stream_of
from protos.errors import PictureError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
_MAX_SAMPLE = 341, 281  # SMaxSampleValue, MaxSampleValue
SIGNED, _FLOATING = 2, 3
_PACKED = 12  # bits of a sample of TIFF that leave none unused
_FULL = (1 << 16) - 1
_ROWS = 256  # of samples of more than 8 bits at a time

Samples = npt.NDArray[Any]


def _raw_mode(opened: Image.Image) -> str:
    """How Pillow unpacks a file's samples, such as `RGB;16B`."""
    tile: Any = getattr(opened, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def scale_key(opened: Image.Image) -> None:
    """Give the transparent grey of a PNG file of 2 or 4 bits as the level that its pixels have."""
    step = {"L;2": 85, "L;4": 17}.get(_raw_mode(opened))
    if step and "transparency" in opened.info:
        opened.info["transparency"] *= step


def is_deep(opened: Image.Image) -> bool:
    """Whether the file's samples have more than 8 bits."""
    return opened.mode.startswith(("I", "F")) or (
        ";16" in _raw_mode(opened) and opened.mode in ("RGB", "RGBA")
    )


def deep_planes(
    opened: Image.Image, file: Path | bytes, formats: Sequence[str], name: str
) -> tuple[Image.Image, Image.Image | None]:
    """Samples scaled to 8 bits by the depth that the file declares: colours, and opacity."""
    raw, key = _raw_mode(opened), opened.info.get("transparency")
    tags: Mapping[int, Any] = getattr(opened, "tag_v2", {})
    bits = 16 if opened.format == "PNG" else _bits(tags)
    if opened.mode.startswith(("I", "F")):
        opened.load()  # NumPy would hide what is wrong with it
        samples = np.asarray(opened)[..., None]
        samples = samples.view(np.uint32) if bits == 32 else samples
    elif tags.get(_PLANAR) == 2:
        raise PictureError(
            f"{name} keeps its colours of 16 bits in separate planes, which are not read: save it "
            "interleaved, or in 8 bits"
        )
    else:
        samples = _samples(opened, file, formats, raw)
    channels = samples.shape[-1]
    colours = samples[..., : 3 if channels > 2 else 1]
    alpha = samples[..., -1] if channels in (2, 4) else None
    if alpha is None and key is not None:
        alpha = np.where((samples == np.asarray(key)).all(-1), 0, _FULL)
    seen = (
        colours if alpha is None else np.where(alpha[..., None] > 0, colours, colours.dtype.type(0))
    )
    _require_levels(seen, name)
    full: float
    if opened.format == "PNG":
        full = _png_white(seen, _significant_bits(file), name)
    else:
        full = _tiff_white(seen, tags, bits, name)
    made = np.empty(colours.shape, np.uint8)
    mask = None if alpha is None else np.empty(alpha.shape, np.uint8)
    for top in range(0, len(samples), _ROWS):
        rows = slice(top, top + _ROWS)
        scaled = colours[rows] / np.float64(full)
        if alpha is not None and mask is not None:
            opaque = np.clip(alpha[rows] / np.float64(full), 0, 1)
            mask[rows] = np.rint(255 * opaque)
            if raw.startswith("RGBa"):  # colours were multiplied by it
                scaled /= np.where(opaque > 0, opaque, 1)[..., None]
        if tags.get(_PHOTOMETRIC) == 0:
            scaled = 1 - scaled
        made[rows] = np.rint(255 * np.clip(scaled, 0, 1))
    picture = Image.fromarray(made if channels > 2 else made[..., 0])
    return picture, None if mask is None else Image.fromarray(mask)


def _samples(opened: Image.Image, file: Path | bytes, formats: Sequence[str], raw: str) -> Samples:
    """Colours of 16 bits, `[height, width, channels]`.

    Pillow makes 8 bits of them, the upper ones. Told that their bytes are in the other order, it
    makes the lower ones.
    """
    if raw == "LA;16B":
        return _unpacked(opened, "RGBA").view(">u2")  # two bytes of grey, two of opacity
    stem, order = raw.replace("RGBa", "RGBA").split(";16")
    if order not in ("L", "B"):  # of this machine
        order = "L" if sys.byteorder == "little" else "B"
    made = _unpacked(opened, f"{stem};16{order}").astype(np.uint16)
    made <<= 8
    with open_picture(file, formats) as again:
        made |= _unpacked(again, f"{stem};16{'L' if order == 'B' else 'B'}")
    return made


def _unpacked(opened: Image.Image, raw: str) -> npt.NDArray[np.uint8]:
    """Decode with another unpacker than the file's own."""
    file: Any = opened
    file.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in file.tile
    ]
    file.load()  # NumPy would hide what is wrong with it
    return np.asarray(file)


def _require_levels(colours: Samples, name: str) -> None:
    least, most = colours.min(), colours.max()
    if not (least >= 0 and np.isfinite(most)):
        raise PictureError(
            f"{name} holds samples from {least:g} to {most:g}; levels of light are not negative "
            "and finite: save it in 8 bits"
        )


def _png_white(colours: Samples, bits: int | None, name: str) -> int:
    """Which sample of 16 bits is white, by sBIT: `bits` of them count.

    The standard has samples of fewer bits shifted up to fill 16; cameras leave them as they are.
    Only the second kind stays below 2^bits throughout.
    """
    most = int(colours.max())
    if bits is None:
        if most >> 15 or not most or (colours >> 8 == colours & 255).all():  # or from 8 bits
            return _FULL
        raise _undeclared(name, 16, most, "PNG's sBIT chunk")
    own = (1 << bits) - 1
    if most > own or not most:
        return _FULL
    if 12 < bits < 16 and not (colours & (1 << 16 - bits) - 1).any():
        raise PictureError(
            f"{name} declares {bits} bits of 16, and its samples could be a dark picture shifted "
            "up, or one that is not: save it in 8 bits"
        )
    return own


def _significant_bits(file: Path | bytes) -> int | None:
    """Bits of a PNG file's colours that count, by its sBIT chunk."""
    with stream_of(file) as stream:
        for kind, _, length in png_chunks(stream):
            if kind == b"IDAT":
                break
            if kind == b"sBIT":
                depths = stream.read(min(length, 4))
                found = int(max(depths[: 3 if length > 2 else 1], default=0))
                return found if 0 < found <= 16 else None
    return None


def _bits(tags: Mapping[int, Any]) -> int:
    """Bits of a TIFF file's samples that hold a level of light; 0 for floating point."""
    kind = first_of(tags.get(SAMPLE_FORMAT, 1))
    if kind == _FLOATING:
        return 0
    return int(first_of(tags.get(_BITS_PER_SAMPLE, 1))) - int(kind == SIGNED)


def _tiff_white(colours: Samples, tags: Mapping[int, Any], bits: int, name: str) -> float:
    """Which sample of a TIFF file is white.

    A largest value that is no 2^n - 1 was measured of this very picture and says nothing.
    """
    most, full = float(colours.max()), (1 << bits) - 1
    named = (first_of(tags[tag]) for tag in _MAX_SAMPLE if tag in tags)
    declared = next((float(v) for v in named if v > 0 and float(np.log2(v + 1)).is_integer()), 0.0)
    if declared and most > declared:
        raise PictureError(
            f"{name} declares {declared:g} as its largest sample, and holds {most:g}: declare "
            "2^bits - 1 of what its samples have"
        )
    if declared or not most:
        return declared or 1
    if bits == _PACKED or (bits and most > full >> 1):
        return full
    raise _undeclared(name, bits, most, "TIFF's SMaxSampleValue or MaxSampleValue, 2^bits - 1")


def _undeclared(name: str, bits: int, most: float, by: str) -> PictureError:
    kind = f"samples of {bits} bits" if bits else "samples of floating point"
    return PictureError(
        f"{name} has {kind}, the largest is {most:g}, and does not say which one is white: "
        f"declare how many bits count ({by}), or save it in 8 bits"
    )


def first_of(value: Any) -> Any:
    """The value of a TIFF tag, the first where it has several."""
    return value[0] if isinstance(value, tuple) else value
