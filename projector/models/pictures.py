"""Reads any picture file to RGB by one rule.

The agent's sources, the toolkit's data sets and the service's picture point all read files here, so
a file looks the same to each. bridge.proto states the rule for clients in other languages (PICTURE
FILES). Needs Pillow, NumPy and pydantic, not torch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, features
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
    **({".avif": "AVIF"} if "avif" in features.get_supported_modules() else {}),
}
"""File endings searched for in folders, with their formats. A file is read by its content,
whatever its name says."""
FORMATS: Final = tuple(dict.fromkeys(SUFFIXES.values()))
WIRE_FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""Formats that may travel at the picture point."""
MAX_PIXELS: Final = 1 << 25
"""Most pixels decoded, unless a setting says otherwise."""
MOST_PIXELS: Final = 1 << 27
"""The most that the setting allows; Pillow itself refuses files of 179 million."""
MaxPicturePixels = Annotated[
    int,
    Field(
        ge=1,
        le=MOST_PIXELS,
        description="largest picture that is decoded, in pixels: a larger JPEG file is decoded at "
        "a half, a quarter or an eighth of its size, any other file is refused",
    ),
]
"""The setting `max_picture_pixels`, for every program that has it; default `MAX_PIXELS`."""
BACKGROUND: Final = 255
"""Grey level behind transparent pixels: white."""

_MPO = "MPO"  # Pillow's name for a JPEG file with more pictures after the first
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

    Of several frames or pages, the first. Sizes are checked before anything is decoded. JPEG files
    of more than `max_pixels` are decoded at a half, a quarter or an eighth of their size.

    Args:
        file: path, or all bytes of the file.
        formats: Pillow's names of the formats accepted.
        max_side: longest width and height; JPEG files are not shrunk to fit. None: any.
        max_pixels: width times height, as decoded.

    Returns:
        A picture of mode RGB without metadata.

    Raises:
        PictureError: not such a file, damaged, too large, or its sample depth is unknown; the
            message says what was wrong and what to do.
    """

    def decode(whole: Path | bytes, name: str) -> Image.Image:
        return _read(whole, name, formats, max_side, max_pixels)

    return _guarded(file, formats, decode)


def size(file: Path | bytes, *, formats: Sequence[str] = FORMATS) -> tuple[int, int]:
    """Width and height from a picture file's header; nothing is decoded.

    Raises:
        PictureError: as `read`, as far as the header tells.
    """

    def look(whole: Path | bytes, _: str) -> tuple[int, int]:
        with open_picture(whole, formats) as opened:
            return opened.size

    return _guarded(file, formats, look)


def _guarded(
    file: Path | bytes, formats: Sequence[str], work: Callable[[Path | bytes, str], Result]
) -> Result:
    """Run `work` on a file with its name for messages; turn every failure into a PictureError."""
    name = f"the payload of {len(file)} bytes" if isinstance(file, bytes) else Path(file).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata and large sizes are handled here
            return _patiently(file, lambda whole: work(whole, name))
    except BridgeError:
        raise
    except UnidentifiedImageError as error:
        if not (file if isinstance(file, bytes) else file.stat().st_size):
            raise PictureError(f"{name} is empty: no picture was written to it") from error
        raise PictureError(
            f"{name} cannot be read as a picture: it is not a {', '.join(formats)} file, or its "
            "variant is not supported: save it as an ordinary PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large to be decoded: {error}") from error
    except Exception as error:  # a decoder may raise anything on untrusted bytes
        said = str(error) or type(error).__name__
        raise PictureError(f"{name} cannot be read as a picture: {said}") from error


def _patiently(file: Path | bytes, work: Callable[[Path | bytes], Result]) -> Result:
    """Run `work`; retry a PNG file without its damaged metadata, over which Pillow refuses it."""
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
    picture.info = {}  # else a saved copy would apply profile and orientation a second time
    return picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture from memory (not from `read`) as RGB over white; unchanged if it is that already.

    Raises:
        PictureError: it cannot be decoded; or its samples have more than 8 bits, and nothing says
            which one is white.
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
    """Refuse pictures that are too large; decode large JPEG files at a smaller size."""
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
        # A progressive JPEG holds all coefficients at once, whatever size it is decoded at.
        most *= 4 if "progressive" in opened.info else 64
    if width * height > most:
        raise PictureError(
            f"{name} is a picture of {width} x {height} pixels; at most {most:,} are decoded "
            "(max_picture_pixels): make it smaller, or allow more"
        )


def _orientation(opened: Image.Image) -> Any:
    try:
        return opened.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF: the picture stays as it is stored
        return None


def _planes(opened: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits (L, RGB or CMYK), and the opacity."""
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
    """Apply the file's colour profile; skip a profile that is broken or does not fit."""
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
            pass  # the rule: ignore such a profile
    return plain if plain is not None else picture.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile is sRGB by another name: then rounding must not change any pixel."""
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
