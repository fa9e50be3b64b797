"""The file of a half: a safetensors blob, with steps and entropy tables under fixed names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from projector.codec.arrays import Floats
from projector.models.foreign import in_words
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BundleFormatError,
    FrameMalformedError,
)
from protos.strict_json import read_json

MAX_BYTES = 64 << 20
_HEADER_BYTES = 1 << 20


def coding_tensors(
    steps: Mapping[str, Floats], entropy: Mapping[str, EntropyTables]
) -> dict[str, npt.NDArray[Any]]:
    """Steps and entropy tables under the names that they have in a file."""
    tensors = {f"steps/{name}": np.ascontiguousarray(array) for name, array in steps.items()}
    for name, tables in entropy.items():
        for part, array in tables.to_arrays().items():
            tensors[f"entropy/{name}/{part}"] = np.ascontiguousarray(array)
    return tensors


def split_tensors(
    tensors: Mapping[str, npt.NDArray[Any]],
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, EntropyTables]]:
    """A file's plain arrays, its steps and its entropy tables."""
    arrays: dict[str, Floats] = {}
    steps: dict[str, Floats] = {}
    parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, array in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "steps" and rest:
            steps[rest] = array
        elif kind == "entropy" and "/" in rest:
            point, _, part = rest.rpartition("/")
            parts.setdefault(point, {})[part] = array
        else:
            arrays[name] = array
    return arrays, steps, {name: EntropyTables.from_arrays(part) for name, part in parts.items()}


def read_tensors(
    what: str,
    blob: bytes,
    metadata_key: str,
    names: Collection[str],
    version: int,
    optional: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """A safetensors blob and the JSON in its metadata, trusting nothing.

    Args:
        what: what it should be, for the message.
        blob: the bytes.
        metadata_key: under which its JSON object is.
        names: the fields of that object, `format` among them.
        version: the `format` that this side reads.
        optional: fields that it may have besides.

    Raises:
        BundleFormatError: too large, not safetensors, or another object.
    """
    if not 8 <= len(blob) <= MAX_BYTES:
        raise BundleFormatError(f"{what}: {len(blob)} bytes, at most {MAX_BYTES} are read")
    length = int.from_bytes(blob[:8], "little")
    if length > min(_HEADER_BYTES, len(blob) - 8):
        raise BundleFormatError(f"{what}: its header claims {length} bytes")
    try:
        header = read_json(blob[8 : 8 + length], _HEADER_BYTES, what)
        text = header["__metadata__"][metadata_key]
        plain = read_json(text, _HEADER_BYTES, what)
        tensors: dict[str, npt.NDArray[Any]] = load_tensors(blob)
    except (FrameMalformedError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleFormatError(f"no {what}: {in_words(error)}") from error
    if not isinstance(plain, dict) or set(plain) - set(optional) != set(names):
        raise BundleFormatError(f"{what}: its metadata must hold exactly {', '.join(names)}")
    if plain["format"] != version:
        raise BundleFormatError(f"{what}: format {plain['format']!r}, this version reads {version}")
    return plain, tensors
