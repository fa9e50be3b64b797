"""One rule from a picture file to RGB, wherever a picture is read.

The agent's sources, the toolkit's data sets and the service's picture point all read files here, so
a file looks the same to each. For clients in other languages bridge.proto has the rule in words
(PICTURE FILES). Needs Pillow, NumPy and pydantic, no torch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from pydantic import Field

from projector.models.picture_depth import (
    SAMPLE_FORMAT,
    SIGNED,
    deep_planes,
    first_of,
    is_deep,
    scale_key,
)
from projector.models.picture_file import less_metadata, open_picture
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
"""Grey level behind transparent pixels: white."""

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
_LOOK_CHUNKS = b"iCCP", b"sBIT", b"eXIf"
_SAME_LEVELS = 2
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
        with open_picture(whole, formats) as opened:
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
            bare = less_metadata(file, kinds)
            if bare is not None:
                with suppress(UnidentifiedImageError, ValueError):
                    return work(bare)
        raise


def _read(
    file: Path | bytes, name: str, formats: Sequence[str], max_side: int | None, max_pixels: int
) -> Image.Image:
    with open_picture(file, formats) as opened:
        _fit(opened, name, max_side, max_pixels)
        icc = opened.info.get("icc_profile")
        if opened.format == "PNG":
            scale_key(opened)
        if is_deep(opened):
            colour, mask = deep_planes(opened, file, formats, name)
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
    if first_of(tags.get(SAMPLE_FORMAT, 1)) == SIGNED:
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
