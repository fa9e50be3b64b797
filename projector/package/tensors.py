"""The tensors of a package: safetensors files in one canonical form.

The caller has already checked the size and header of every blob read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.package.form import CODEC_FORMS, MASK, Blob, require
from projector.package.metadata import Metadata
from protos.errors import NonFiniteError, PackageFormatError
from protos.quantize.fp8_e4m3 import VALUES as FP8_VALUES
from protos.quantize.fp8_e4m3 import to_fp8

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Spec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype, shape."""
_DTYPE_BYTES = {"F8_E4M3": 1, "F16": 2, "F32": 4, "I64": 8, "BOOL": 1}


def array_specs(meta: Metadata) -> list[Spec]:
    """Tensors in the keys' file, and in the values' file."""
    return [
        ("scale", "F32", (meta.layers, meta.kv_heads, 1, meta.head_dim)),
        (
            "codes",
            CODEC_FORMS[meta.codec][0],
            (meta.layers, meta.kv_heads, meta.tokens, meta.head_dim),
        ),
    ]


def mask_specs(meta: Metadata) -> list[Spec]:
    """Tensors in the mask's file."""
    tokens = (meta.grid_tokens,)
    return [
        ("positions", "I64", tokens),
        ("grid", "I64", (2,)),
        ("attention", "F32", tokens),
        ("kept", "BOOL", tokens),
    ]


def spec_bytes(spec: Spec) -> int:
    """Size of a tensor in bytes."""
    return math.prod(spec[2]) * _DTYPE_BYTES[spec[1]]


def tensor_header(specs: Sequence[Spec]) -> bytes:
    """Header of a safetensors file with these tensors, one after the other."""
    plain, at = {}, 0
    for spec in specs:
        name, dtype, shape = spec
        plain[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + spec_bytes(spec)]}
        at += spec_bytes(spec)
    text = json.dumps(plain, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(array: Floats, codec: str, name: str) -> tuple[npt.NDArray[Any], Floats]:
    """Codes of `[layers, heads, T, dim]`, and scales `[layers, heads, 1, dim]`."""
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}: the model's cache holds NaN or infinity")
    _, dtype, largest = CODEC_FORMS[codec]
    most = np.abs(array).max(axis=2, keepdims=True)
    scale: Floats = np.ones_like(most)
    if largest:
        scale = np.where(most > 0, np.maximum(most / np.float32(largest), 1e-30), 1).astype("<f4")
    scaled = array / scale
    codes = to_fp8(scaled) if codec == "fp8_e4m3" else scaled.astype(dtype)
    return codes, scale


def array_blob(codes: npt.NDArray[Any], scale: Floats, meta: Metadata) -> bytes:
    """The file's bytes for the output of `encode`."""
    return b"".join((tensor_header(array_specs(meta)), scale.tobytes(), codes.tobytes()))


def read_codes(blob: Blob, meta: Metadata) -> tuple[npt.NDArray[Any], Floats]:
    """Read the output of `encode` back; the blob's size and header have been checked."""
    scale_spec, codes_spec = specs = array_specs(meta)
    at = len(tensor_header(specs))
    scale = np.frombuffer(blob, "<f4", math.prod(scale_spec[2]), at).reshape(scale_spec[2])
    codes = np.frombuffer(blob, CODEC_FORMS[meta.codec][1], offset=at + spec_bytes(scale_spec))
    return codes.reshape(codes_spec[2]), scale


def decode(codes: npt.NDArray[Any], scale: Floats, codec: str, name: str) -> Floats:
    """Undo `encode`, up to the codec's loss; PackageFormatError: not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        plain = FP8_VALUES[codes] if codec == "fp8_e4m3" else codes.astype(np.float32)
        array: Floats = plain * scale
    if not np.isfinite(array).all():
        raise PackageFormatError(f"{name} holds NaN or infinity")
    return array


def mask_blob(
    positions: npt.NDArray[np.int64], attention: Floats, kept: Mask, meta: Metadata
) -> bytes:
    """The mask's file as bytes; PackageFormatError: it contradicts `meta`."""
    arrays = (
        positions.astype("<i8"),
        np.array(meta.grid, dtype="<i8"),
        attention.astype("<f4"),
        kept.astype(np.uint8),
    )
    blob = tensor_header(mask_specs(meta)) + b"".join(array.tobytes() for array in arrays)
    read_mask(blob, meta)
    return blob


def read_mask(blob: Blob, meta: Metadata) -> tuple[npt.NDArray[np.int64], Floats, Mask]:
    """Positions, received attention and the kept mask, `[N]` each."""
    specs = mask_specs(meta)
    at = len(tensor_header(specs))
    arrays: list[npt.NDArray[Any]] = []
    for spec, dtype in zip(specs, ("<i8", "<i8", "<f4", "u1"), strict=True):
        arrays.append(np.frombuffer(blob, dtype, math.prod(spec[2]), at))
        at += spec_bytes(spec)
    positions, grid, attention, kept = arrays
    require(
        tuple(grid) == meta.grid
        and bool((positions >= 0).all() and (positions < 1 << 31).all())
        and bool(np.isfinite(attention).all() and (attention >= 0).all())
        and bool((kept <= 1).all())
        and int(kept.sum()) == meta.tokens,
        f"{MASK}: {meta.tokens} tokens of a grid of {meta.grid} are kept, positions and attention "
        "are finite and not negative; it says otherwise",
    )
    return positions.astype(np.int64), attention.astype(np.float32), kept.astype(np.bool_)
