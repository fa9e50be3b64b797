"""The form of a package: its members, its limits, and the one way in which it writes JSON.

Knows names, orders and sizes, and how a field of JSON is checked. Does not know what the fields
mean, nor the archive around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.bundle.files import DESCRIPTION, FEEDBACK_FILES, FILES
from protos.errors import FrameMalformedError, PackageCorruptError, PackageFormatError
from protos.quantize.fp8_e4m3 import MAX as FP8_MAX
from protos.strict_json import read_json

Blob = bytes | memoryview

FORMAT = 1
SUFFIX = ".neural-bridge"
METADATA, PROVENANCE, CONFIG = "metadata.json", "provenance.json", "w_matrix/config.json"
KEYS, VALUES = "kv_cache/keys.safetensors", "kv_cache/values.safetensors"
MASK = "kv_cache/attention_mask.safetensors"
MAX_BYTES = (1 << 32) - 1
"""Largest package: what an archive can say without extensions."""
MAX_NUMBERS = 1 << 29
"""Most keys (or values) of a package, dropped tokens counted."""

ARRAYS = (KEYS, VALUES)
BUNDLE = tuple(f"w_matrix/{name}" for name in (DESCRIPTION, *FILES))
"""Members of an embedded bundle."""
FEEDBACK = tuple(f"w_matrix/{name}" for name in FEEDBACK_FILES)
"""Members behind them where its map goes both ways."""
BEFORE = (METADATA, KEYS, VALUES, MASK, CONFIG)
"""Members before them."""
ORDERS = {(*BEFORE, *bundle, PROVENANCE) for bundle in ((), BUNDLE, (*BUNDLE, *FEEDBACK))}
MAX_JSON_BYTES = {METADATA: 1 << 16, CONFIG: 1 << 16, PROVENANCE: 1 << 16, BUNDLE[0]: 1 << 20}
CODEC_FORMS: dict[str, tuple[str, npt.DTypeLike, float]] = {
    "fp8_e4m3": ("F8_E4M3", np.uint8, FP8_MAX),
    "float16": ("F16", np.dtype("<f2"), 32768.0),
    "float32": ("F32", np.dtype("<f4"), 0.0),
}
"""Safetensors' name, NumPy's, and the code of a channel's largest number (0: unscaled)."""
CODECS = tuple(CODEC_FORMS)


def canonical(plain: Mapping[str, Any]) -> bytes:
    """JSON as the writer writes it; PackageFormatError: a number is not finite."""
    try:
        return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except ValueError as error:  # 1e999 is read as infinity
        raise PackageFormatError(f"a number that is not finite ({error})") from error


def parse(blob: Blob, name: str) -> dict[str, Any]:
    """The JSON object that the member `name` holds, trusting nothing.

    Raises:
        PackageCorruptError: no JSON, or too long.
        PackageFormatError: no object.
    """
    try:
        plain = read_json(bytes(blob), MAX_JSON_BYTES[name], name)
    except FrameMalformedError as error:
        raise PackageCorruptError(error.message) from error
    if not isinstance(plain, dict):
        raise PackageFormatError(f"{name} must hold a JSON object")
    return plain


def require_same(blob: Blob, plain: Mapping[str, Any], name: str) -> None:
    """PackageCorruptError unless a member is what the writer makes of what it says."""
    if blob != canonical(plain):
        raise PackageCorruptError(f"{name} is not as the writer would have written it: altered")


def require(condition: bool, message: str) -> None:
    """PackageFormatError unless the condition holds; so do those below."""
    if not condition:
        raise PackageFormatError(message)


def require_fields(plain: Any, names: Sequence[str], what: str) -> None:
    """An object with these fields and no others."""
    require(isinstance(plain, dict), f"{what} must be an object")
    missing, extra = sorted(set(names) - set(plain)), sorted(set(plain) - set(names))
    require(not missing and not extra, f"{what}: missing {missing}, unexpected {extra}")


def require_text(value: Any, most: int, what: str, least: int = 0) -> None:
    """A text of `least` to `most` characters."""
    fits = isinstance(value, str) and least <= len(value) <= most
    require(fits, f"{what} is a text of {least}..{most} characters")


def require_whole(value: Any, least: int, most: int, what: str) -> None:
    """A whole number in a range, bounds included."""
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    require(fits, f"{what} is a whole number in {least}..{most}, not {str(value)[:40]}")


def require_number(value: Any, least: float, most: float, what: str) -> None:
    """A number in a range, bounds included."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    require(fits, f"{what} is a number in {least:g}..{most:g}, not {str(value)[:40]}")


def require_sha256(value: Any, what: str) -> None:
    """A SHA-256 in hex."""
    fits = isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value, re.ASCII))
    require(fits, f"{what} is a SHA-256 in 64 hex digits")


def require_time(value: Any, what: str) -> None:
    """A time in UTC, `2026-01-31T12:00:00Z`."""
    try:
        same = datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").strftime("%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError):
        same = None
    require(same == value and same is not None, f"{what} is a time like 2026-01-31T12:00:00Z")
