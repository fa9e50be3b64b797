"""A package's form: member names and their order, limits, and canonical JSON.

JSON fields are checked strictly, by pydantic.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import compress, product
from typing import Annotated, Any, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from projector.bundle.files import DESCRIPTION, FEEDBACK_FILES, FILES, OPTIONAL
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
"""Largest package: the most that ZIP holds without extensions."""
MAX_NUMBERS = 1 << 29
"""Most keys (or values) in a package, dropped tokens included."""

ARRAYS = (KEYS, VALUES)
BUNDLE = tuple(f"w_matrix/{name}" for name in (DESCRIPTION, *FILES))
"""Members of every embedded bundle."""
_OPTIONAL = tuple(
    tuple(f"w_matrix/{name}" for name in group)
    for group in (FEEDBACK_FILES, *((name,) for name in OPTIONAL))
)
MORE = tuple(name for group in _OPTIONAL for name in group)
"""Members that an embedded bundle may have besides."""
BEFORE = (METADATA, KEYS, VALUES, MASK, CONFIG)
"""Members before the bundle's."""
_EMBEDDED = (
    (*BUNDLE, *(name for group in compress(_OPTIONAL, there) for name in group))
    for there in product((False, True), repeat=len(_OPTIONAL))
)
ORDERS = {(*BEFORE, *bundle, PROVENANCE) for bundle in ((), *_EMBEDDED)}
MAX_JSON_BYTES = {METADATA: 1 << 16, CONFIG: 1 << 16, PROVENANCE: 1 << 16, BUNDLE[0]: 1 << 20}
CODEC_FORMS: dict[str, tuple[str, npt.DTypeLike, float]] = {
    "fp8_e4m3": ("F8_E4M3", np.uint8, FP8_MAX),
    "float16": ("F16", np.dtype("<f2"), 32768.0),
    "float32": ("F32", np.dtype("<f4"), 0.0),
}
"""Per codec: dtype in safetensors, in NumPy, code of a channel's largest number (0: unscaled)."""
CODECS = tuple(CODEC_FORMS)


def canonical(plain: Mapping[str, Any]) -> bytes:
    """JSON in the writer's form; PackageFormatError: a number is not finite."""
    try:
        return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except ValueError as error:  # Python reads 1e999 as infinity
        raise PackageFormatError(f"a number that is not finite ({error})") from error


def parse(blob: Blob, name: str) -> dict[str, Any]:
    """Read the JSON object in the untrusted member `name`.

    Raises:
        PackageCorruptError: it is not JSON, or is too long.
        PackageFormatError: it is not an object.
    """
    try:
        plain = read_json(bytes(blob), MAX_JSON_BYTES[name], name)
    except FrameMalformedError as error:
        raise PackageCorruptError(error.message) from error
    if not isinstance(plain, dict):
        raise PackageFormatError(f"{name} must hold a JSON object")
    return plain


def require_same(blob: Blob, plain: Mapping[str, Any], name: str) -> None:
    """PackageCorruptError unless the writer would write `plain` as exactly these bytes."""
    if blob != canonical(plain):
        raise PackageCorruptError(f"{name} is not as the writer would have written it: altered")


def require(condition: bool, message: str) -> None:
    """PackageFormatError unless the condition holds."""
    if not condition:
        raise PackageFormatError(message)


def require_fields(plain: Any, names: Sequence[str], what: str) -> None:
    """PackageFormatError unless a value is an object with these fields and no others."""
    require(isinstance(plain, dict), f"{what} must be an object")
    missing, extra = sorted(set(names) - set(plain)), sorted(set(plain) - set(names))
    require(not missing and not extra, f"{what}: missing {missing}, unexpected {extra}")


def require_types(record: Any) -> None:
    """PackageFormatError unless each field of a dataclass strictly has its annotated type."""
    try:
        _model_of(record.__class__).model_validate(vars(record))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise PackageFormatError(
            f"{place}: {first['msg']}, not {str(first['input'])[:40]}"
        ) from error


@functools.cache
def _model_of(kind: Any) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {one.name: (hints[one.name], ...) for one in dataclasses.fields(kind)}
    strict = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(kind.__name__, __config__=strict, **fields)


def _in_utc(value: str) -> str:
    form = "%Y-%m-%dT%H:%M:%SZ"
    try:
        same = datetime.strptime(value, form).strftime(form) == value
    except ValueError:
        same = False
    if not same:
        raise ValueError("a time must be written like 2026-01-31T12:00:00Z")
    return value


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""In hex."""
Time = Annotated[str, AfterValidator(_in_utc)]
"""In UTC, `2026-01-31T12:00:00Z`."""
