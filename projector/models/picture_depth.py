"""Scales picture samples of more than 8 bits by the depth that the file declares."""

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

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF tags
_MAX_SAMPLE = 341, 281  # SMaxSampleValue, MaxSampleValue
SIGNED, _FLOATING = 2, 3
_PACKED = 12  # TIFF sample size, in bits, that is packed without unused bits
_FULL = (1 << 16) - 1
_ROWS = 256  # rows of deep samples scaled at a time

Samples = npt.NDArray[Any]


def _raw_mode(opened: Image.Image) -> str:
    """How Pillow unpacks a file's samples, such as `RGB;16B`."""
    tile: Any = getattr(opened, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def scale_key(opened: Image.Image) -> None:
    """Rescale the transparent grey of a 2 or 4 bit PNG file to the level of its pixels."""
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
    """Colour and opacity samples, scaled to 8 bits by the depth that the file declares."""
    raw, key = _raw_mode(opened), opened.info.get("transparency")
    tags: Mapping[int, Any] = getattr(opened, "tag_v2", {})
    bits = 16 if opened.format == "PNG" else _bits(tags)
    if opened.mode.startswith(("I", "F")):
        opened.load()  # raises what NumPy would hide
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
            if raw.startswith("RGBa"):  # colours are premultiplied
                scaled /= np.where(opaque > 0, opaque, 1)[..., None]
        if tags.get(_PHOTOMETRIC) == 0:
            scaled = 1 - scaled
        made[rows] = np.rint(255 * np.clip(scaled, 0, 1))
    picture = Image.fromarray(made if channels > 2 else made[..., 0])
    return picture, None if mask is None else Image.fromarray(mask)


def _samples(opened: Image.Image, file: Path | bytes, formats: Sequence[str], raw: str) -> Samples:
    """Colours of 16 bits, `[height, width, channels]`.

    Pillow keeps the upper 8 bits. Told that the byte order is the other one, it keeps the lower 8,
    so two reads give all 16.
    """
    if raw == "LA;16B":
        return _unpacked(opened, "RGBA").view(">u2")  # two bytes of grey, two of opacity
    stem, order = raw.replace("RGBa", "RGBA").split(";16")
    if order not in ("L", "B"):  # native byte order
        order = "L" if sys.byteorder == "little" else "B"
    made = _unpacked(opened, f"{stem};16{order}").astype(np.uint16)
    made <<= 8
    with open_picture(file, formats) as again:
        made |= _unpacked(again, f"{stem};16{'L' if order == 'B' else 'B'}")
    return made


def _unpacked(opened: Image.Image, raw: str) -> npt.NDArray[np.uint8]:
    """Decode with another raw mode than the file's own."""
    file: Any = opened
    file.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in file.tile
    ]
    file.load()  # raises what NumPy would hide
    return np.asarray(file)


def _require_levels(colours: Samples, name: str) -> None:
    least, most = colours.min(), colours.max()
    if not (least >= 0 and np.isfinite(most)):
        raise PictureError(
            f"{name} holds samples from {least:g} to {most:g}; levels of light are finite and not "
            "negative: save it in 8 bits"
        )


def _png_white(colours: Samples, bits: int | None, name: str) -> int:
    """The 16-bit sample that is white, by the sBIT chunk: `bits` of the sample are significant.

    The standard shifts samples of fewer bits up to fill 16; cameras leave them unshifted. Only
    unshifted samples all stay below 2^bits.
    """
    most = int(colours.max())
    if bits is None:
        if most >> 15 or not most or (colours >> 8 == colours & 255).all():  # or widened from 8
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
    """Significant bits of a PNG file's colours, from its sBIT chunk."""
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
    """Bits of light level per sample in a TIFF file; 0 for floating point."""
    kind = first_of(tags.get(SAMPLE_FORMAT, 1))
    if kind == _FLOATING:
        return 0
    return int(first_of(tags.get(_BITS_PER_SAMPLE, 1))) - int(kind == SIGNED)


def _tiff_white(colours: Samples, tags: Mapping[int, Any], bits: int, name: str) -> float:
    """The sample that is white in a TIFF file.

    A declared maximum other than 2^n - 1 was measured on this picture, so it does not count.
    """
    most, full = float(colours.max()), (1 << bits) - 1
    named = (first_of(tags[tag]) for tag in _MAX_SAMPLE if tag in tags)
    declared = next((float(v) for v in named if v > 0 and float(np.log2(v + 1)).is_integer()), 0.0)
    if declared and most > declared:
        raise PictureError(
            f"{name} declares {declared:g} as its largest sample, but holds {most:g}: declare "
            "2^bits - 1 for the bits that its samples have"
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
    """A TIFF tag's value, or its first value if it has several."""
    return value[0] if isinstance(value, tuple) else value
