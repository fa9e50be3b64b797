"""One rule from a picture file to RGB, wherever a picture is read; and which pictures show nothing.

The agent's sources, the toolkit's data sets and the service's picture point all read files here, so
a file looks the same to each. For clients in other languages bridge.proto has the rule in words
(PICTURE FILES). Needs Pillow, NumPy and pydantic, no torch.
"""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError
from pydantic import Field

from protos.errors import BridgeError, PictureError

SUFFIXES: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""The files that folders are searched for, each with its format. What is read is what a file holds,
whatever its name says."""
FORMATS: Final = tuple(dict.fromkeys(SUFFIXES.values()))
WIRE_FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""What may travel at the picture point."""
MAX_PIXELS: Final = 1 << 25
"""Pixels that are decoded at most, unless a setting says otherwise."""
MOST_PIXELS: Final = 1 << 27
"""The most that a setting may allow; Pillow itself refuses files of 179 million."""
MaxPicturePixels = Annotated[
    int,
    Field(
        ge=1,
        le=MOST_PIXELS,
        description="largest picture that is decoded, in pixels: a larger JPEG file is decoded at "
        "a half, a quarter or an eighth of its size, any other file is refused",
    ),
]
"""The setting `max_picture_pixels`, for whichever program has it; its default is `MAX_PIXELS`."""
BACKGROUND: Final = 255
"""Grey level of what shows through transparent pixels: white."""
DEGENERATE: Final = "degenerate"

_MPO = "MPO"  # what Pillow calls a JPEG file with further pictures behind the first
_ORIENTATION = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
_MAX_SAMPLE = 341, 281  # SMaxSampleValue, MaxSampleValue
_SIGNED, _FLOATING = 2, 3
_PACKED = 12  # bits of a sample of TIFF that leave none unused
_FULL = (1 << 16) - 1
_ROWS = 256  # of samples of more than 8 bits at a time
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"
_LOOK_CHUNKS = b"iCCP", b"sBIT", b"eXIf"
_SAME_LEVELS = 2
_LONGEST_SHAPE = 64

Samples = npt.NDArray[Any]
Result = TypeVar("Result")


# ------------------------------------------------------------------------------- file to RGB


def read(
    file: Path | bytes,
    *,
    formats: Sequence[str] = FORMATS,
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode a picture file to RGB, upright, in sRGB, over white.

    The first frame or page of several. Sizes are checked before anything is decoded. JPEG files of
    more than `max_pixels` are decoded at a half, a quarter or an eighth of their size.

    Args:
        file: where it is, or all of its bytes.
        formats: of Pillow's; other files are refused.
        max_side: longest width and height; no JPEG file is made smaller to fit. None: any.
        max_pixels: width times height, as decoded.

    Returns:
        A picture of mode RGB without metadata.

    Raises:
        PictureError: not such a file, damaged, too large, or with samples whose depth cannot be
            told; what was wrong and what to do.
    """

    def decode(whole: Path | bytes, name: str) -> Image.Image:
        return _read(whole, name, formats, max_side, max_pixels)

    return _guarded(file, formats, decode)


def size(file: Path | bytes, *, formats: Sequence[str] = FORMATS) -> tuple[int, int]:
    """Width and height of a picture file as its header has them; nothing is decoded.

    Raises:
        PictureError: as `read`, of what the header can tell.
    """

    def look(whole: Path | bytes, _: str) -> tuple[int, int]:
        with _open(whole, formats) as opened:
            return opened.size

    return _guarded(file, formats, look)


def _guarded(
    file: Path | bytes, formats: Sequence[str], work: Callable[[Path | bytes, str], Result]
) -> Result:
    """Do something with a file, given its name for messages; whatever fails is a PictureError."""
    name = f"the payload of {len(file)} bytes" if isinstance(file, bytes) else Path(file).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata, large sizes: decided here
            return _patiently(file, lambda whole: work(whole, name))
    except BridgeError:
        raise
    except UnidentifiedImageError as error:
        if not (file if isinstance(file, bytes) else file.stat().st_size):
            raise PictureError(f"{name} is empty: no picture was written to it") from error
        raise PictureError(
            f"{name} is not a picture that can be read: no {', '.join(formats)} file, or of a kind "
            "that is not supported: save it as an ordinary PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large to be decoded: {error}") from error
    except Exception as error:  # a decoder that trips over untrusted bytes may raise anything
        said = str(error) or type(error).__name__
        raise PictureError(f"{name} cannot be read as a picture: {said}") from error


def _patiently(file: Path | bytes, work: Callable[[Path | bytes], Result]) -> Result:
    """No fault of a PNG file's metadata costs the picture, though Pillow refuses the whole file."""
    try:
        return work(file)
    except (UnidentifiedImageError, ValueError):
        for kinds in (_LOOK_CHUNKS, _LOOK_CHUNKS[1:]):
            bare = _less_metadata(file, kinds)
            if bare is not None:
                with suppress(UnidentifiedImageError, ValueError):
                    return work(bare)
        raise


def _read(
    file: Path | bytes, name: str, formats: Sequence[str], max_side: int | None, max_pixels: int
) -> Image.Image:
    with _open(file, formats) as opened:
        _fit(opened, name, max_side, max_pixels)
        icc = opened.info.get("icc_profile")
        if opened.format == "PNG":
            _scale_key(opened)
        if _deep(opened):
            colour, mask = _deep_planes(opened, file, formats, name)
        else:
            colour, mask = _planes(opened, name)
        turn = None if opened.format == "TIFF" else _UPRIGHT.get(_orientation(opened))
    picture = _over_white(_in_srgb(colour, icc), mask)
    if turn is not None:  # Pillow turns TIFF files itself
        picture = picture.transpose(turn)
    picture.info = {}  # or a copy that is saved would bring profile and orientation a second time
    return picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in memory that did not come from `read`, as RGB over white; itself if it is that.

    Raises:
        PictureError: it cannot be decoded, or its samples have more than 8 bits: nothing says which
            one is white.
    """
    try:
        picture.load()
        if picture.mode == "RGB" and "transparency" not in picture.info:
            return picture
        if picture.mode.startswith(("I", "F")):
            raise PictureError(
                f"a picture of mode {picture.mode} does not say which sample is white: scale it to "
                "8 bits"
            )
        colour, mask = _planes(picture, "a picture")
        return _over_white(_in_srgb(colour, None), mask)
    except BridgeError:
        raise
    except Exception as error:
        raise PictureError(f"not a readable picture: {error}") from error


def _over_white(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    if mask is None:
        return picture
    white = Image.new("RGB", picture.size, (BACKGROUND,) * 3)
    white.paste(picture, mask=mask)
    return white


@contextmanager
def _open(file: Path | bytes, formats: Sequence[str]) -> Iterator[Image.Image]:
    """From a stream: a file that Pillow knows by name it maps, and skews turned TIFF files."""
    with _stream(file) as stream, Image.open(stream, formats=tuple(formats)) as opened:
        yield opened


def _stream(file: Path | bytes) -> BinaryIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _less_metadata(file: Path | bytes, kinds: Sequence[bytes]) -> bytes | None:
    """A PNG file's pixels, and its intact chunks of these kinds; None for other files."""
    with _stream(file) as stream:
        if stream.read(len(_PNG)) != _PNG:
            return None
        whole = _PNG + stream.read()
    parts = [_PNG]
    for kind, place, length in _chunks(io.BytesIO(whole)):
        part = whole[place - 8 : place + length + 4]
        intact = zlib.crc32(part[4:-4]) == int.from_bytes(part[-4:], "big")
        if kind in _PIXEL_CHUNKS or (kind in kinds and intact):
            parts.append(part)
    return b"".join(parts)


def _chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of the chunks of a PNG file; none of other files."""
    if stream.read(len(_PNG)) != _PNG:
        return
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        place = stream.tell()
        yield kind, place, length
        stream.seek(place + length + 4)


def _fit(opened: Image.Image, name: str, max_side: int | None, max_pixels: int) -> None:
    """Refuse what is too large; have large JPEG files decoded smaller."""
    width, height = opened.size
    if max_side is not None:
        if max(width, height) > max_side:
            raise PictureError(
                f"{name} is a picture of {width} x {height} pixels; at most {max_side} a side are "
                "accepted"
            )
        return
    most = max_pixels
    if opened.format in ("JPEG", _MPO):
        shrink = next((s for s in (1, 2, 4) if width * height <= max_pixels * s * s), 8)
        if shrink > 1:
            opened.draft(None, (max(1, width // shrink), max(1, height // shrink)))
        # All coefficients of a progressive one are held at once, whatever size it is decoded at.
        most *= 4 if "progressive" in opened.info else 64
    if width * height > most:
        raise PictureError(
            f"{name} is a picture of {width} x {height} pixels; at most {most:,} are decoded "
            "(max_picture_pixels): make it smaller, or allow more"
        )


def _orientation(opened: Image.Image) -> Any:
    try:
        return opened.getexif().get(_ORIENTATION)
    except Exception:  # what EXIF says is damaged: the picture is as it is stored
        return None


def _planes(opened: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits (L, RGB or CMYK), and how opaque they are."""
    opened.load()
    tags: Mapping[int, Any] = getattr(opened, "tag_v2", {})
    if _first(tags.get(_SAMPLE_FORMAT, 1)) == _SIGNED:
        raise PictureError(f"{name} holds signed samples of 8 bits: save it in unsigned ones")
    mode, key = opened.mode, opened.info.get("transparency")
    if mode == "La":
        opened, mode = opened.convert("LA"), "LA"
    if mode == "LA":
        return opened.getchannel("L"), opened.getchannel("A")
    if mode in ("RGBA", "RGBa", "PA") or key is not None:
        clear = opened.convert("RGBA")
        return clear.convert("RGB"), clear.getchannel("A")
    return (opened.copy() if mode in ("L", "CMYK") else opened.convert("RGB")), None


def _in_srgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """Through the file's colour profile; left as it is where that is broken or does not fit."""
    plain = picture if picture.mode == "RGB" else None
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            to_srgb = ImageCms.buildTransform(
                profile, ImageCms.createProfile("sRGB"), picture.mode, "RGB"
            )
            if not _changes_nothing(to_srgb, picture.mode):
                return to_srgb.apply(picture)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            pass  # the rule: such a profile counts as none
    return plain if plain is not None else picture.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile is sRGB under another name: no pixel is to change by mere rounding."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    elif mode == "RGB":
        cube = np.stack(np.meshgrid(levels, levels, levels), -1)
        probe = Image.fromarray(cube.reshape(1, -1, 3))
    else:
        return False
    before = np.asarray(probe.convert("RGB"), np.int16)
    after = np.asarray(transform.apply(probe), np.int16)
    return bool(np.abs(before - after).max() <= _SAME_LEVELS)


# ---------------------------------------------------------------- samples of more than 8 bits


def _raw_mode(opened: Image.Image) -> str:
    """How Pillow unpacks a file's samples, such as `RGB;16B`."""
    tile: Any = getattr(opened, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _scale_key(opened: Image.Image) -> None:
    """Give the transparent grey of a PNG file of 2 or 4 bits as the level that its pixels have."""
    step = {"L;2": 85, "L;4": 17}.get(_raw_mode(opened))
    if step and "transparency" in opened.info:
        opened.info["transparency"] *= step


def _deep(opened: Image.Image) -> bool:
    return opened.mode.startswith(("I", "F")) or (
        ";16" in _raw_mode(opened) and opened.mode in ("RGB", "RGBA")
    )


def _deep_planes(
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
    with _open(file, formats) as again:
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
    with _stream(file) as stream:
        for kind, _, length in _chunks(stream):
            if kind == b"IDAT":
                break
            if kind == b"sBIT":
                depths = stream.read(min(length, 4))
                found = int(max(depths[: 3 if length > 2 else 1], default=0))
                return found if 0 < found <= 16 else None
    return None


def _bits(tags: Mapping[int, Any]) -> int:
    """Bits of a TIFF file's samples that hold a level of light; 0 for floating point."""
    kind = _first(tags.get(_SAMPLE_FORMAT, 1))
    if kind == _FLOATING:
        return 0
    return int(_first(tags.get(_BITS_PER_SAMPLE, 1))) - int(kind == _SIGNED)


def _tiff_white(colours: Samples, tags: Mapping[int, Any], bits: int, name: str) -> float:
    """Which sample of a TIFF file is white.

    A largest value that is no 2^n - 1 was measured of this very picture and says nothing.
    """
    most, full = float(colours.max()), (1 << bits) - 1
    named = (_first(tags[tag]) for tag in _MAX_SAMPLE if tag in tags)
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


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


# --------------------------------------------------------------------- pictures without content


def degenerate(picture: Image.Image) -> str:
    """Why a picture shows nothing that a question could be answered from; empty where it may."""
    width, height = picture.size
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        return f"{width} x {height} pixels, one side is over {_LONGEST_SHAPE} times the other"
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    few = rgb.resize((16, 16), Image.Resampling.NEAREST)
    if _flat(few) and _flat(rgb):
        return "one flat colour"
    return ""


def _flat(picture: Image.Image) -> bool:
    levels: Any = picture.getextrema()
    return all(high - low <= _SAME_LEVELS for low, high in levels)
