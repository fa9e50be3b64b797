"""The file format of halves: `edge.safetensors` and the two `reverse_*.safetensors`.

Each is one safetensors blob. Its metadata holds a JSON object with the plain fields. Its tensors
are the arrays, `steps/NAME`, `entropy/NAME/PART` and, in an encoder, `risk/PART`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from projector.codec.arrays import Floats
from projector.models.foreign import in_words
from protos.entropy.tables import EntropyTables
from protos.errors import BundleFormatError, FrameMalformedError
from protos.points import OperatingPoint, points_from_json, points_to_json
from protos.strict_json import read_json

MAX_BYTES = 64 << 20
_HEADER_BYTES = 1 << 20

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Parts:
    """A file's contents, read but not yet checked against each other.

    Attributes:
        fields: the plain fields, without format and points.
        points: the operating points.
        arrays: arrays by name.
        steps: arrays per steps name.
        entropy: tables per steps name.
        risk: arrays of the risk model; may be empty.
    """

    fields: Mapping[str, Any]
    points: tuple[OperatingPoint, ...]
    arrays: Arrays
    steps: Mapping[str, Floats]
    entropy: Mapping[str, EntropyTables]
    risk: Arrays


@dataclass(frozen=True)
class HalfFile:
    """The file format of one kind of half.

    Attributes:
        what: its name in messages.
        key: name of the JSON object in the blob's metadata.
        version: the format that is written and read.
        fields: plain fields besides `format` and `operating_points`.
        arrays: required arrays.
        more_fields: optional fields.
        more_arrays: optional arrays.
        risk: whether arrays of a risk model are allowed.
    """

    what: str
    key: str
    version: int
    fields: tuple[str, ...]
    arrays: tuple[str, ...]
    more_fields: tuple[str, ...] = ()
    more_arrays: tuple[str, ...] = ()
    risk: bool = False

    def write(self, parts: Parts) -> bytes:
        """The blob; equal parts give equal bytes."""
        tensors = {**parts.arrays, **{f"risk/{part}": a for part, a in parts.risk.items()}}
        tensors |= {f"steps/{name}": array for name, array in parts.steps.items()}
        for name, tables in parts.entropy.items():
            tensors |= {f"entropy/{name}/{part}": a for part, a in tables.to_arrays().items()}
        plain = {
            **parts.fields,
            "format": self.version,
            "operating_points": json.loads(points_to_json(parts.points)),
        }
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        blob: bytes = save_tensors(tensors, metadata={self.key: text})
        return blob

    def read(self, blob: bytes) -> Parts:
        """Read untrusted bytes in the form that `write` writes.

        Raises:
            BundleFormatError: too large, not safetensors, or other fields or arrays.
        """
        plain, tensors = self._load(blob)
        try:
            points = points_from_json(json.dumps(plain.pop("operating_points")))
        except FrameMalformedError as error:
            raise BundleFormatError(f"{self.what}: {error}") from error
        arrays: Arrays = {}
        steps: dict[str, Floats] = {}
        risk: Arrays = {}
        tables: dict[str, Arrays] = {}
        for name, array in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "steps" and rest:
                steps[rest] = array
            elif kind == "entropy" and "/" in rest:
                point, _, part = rest.rpartition("/")
                tables.setdefault(point, {})[part] = array
            elif kind == "risk" and rest and self.risk:
                risk[rest] = array
            else:
                arrays[name] = array
        missing = set(self.arrays) - set(arrays)
        unexpected = set(arrays) - set(self.arrays) - set(self.more_arrays)
        if missing or unexpected:
            raise BundleFormatError(
                f"{self.what}: missing {sorted(missing)}, unexpected {sorted(unexpected)}"
            )
        entropy = {name: EntropyTables.from_arrays(part) for name, part in tables.items()}
        return Parts(plain, points, arrays, steps, entropy, risk)

    def _load(self, blob: bytes) -> tuple[dict[str, Any], Arrays]:
        """The JSON object without its format field, and the tensors."""
        what = self.what
        if not 8 <= len(blob) <= MAX_BYTES:
            raise BundleFormatError(f"{what}: {len(blob)} bytes, at most {MAX_BYTES} are read")
        length = int.from_bytes(blob[:8], "little")
        if length > min(_HEADER_BYTES, len(blob) - 8):
            raise BundleFormatError(f"{what}: its header claims {length} bytes")
        try:
            header = read_json(blob[8 : 8 + length], _HEADER_BYTES, what)
            plain = read_json(header["__metadata__"][self.key], _HEADER_BYTES, what)
            tensors: Arrays = load_tensors(blob)
        except (FrameMalformedError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BundleFormatError(f"not a valid {what}: {in_words(error)}") from error
        names = ("format", "operating_points", *self.fields)
        if not isinstance(plain, dict) or set(plain) - set(self.more_fields) != set(names):
            raise BundleFormatError(f"{what}: its metadata must hold exactly {', '.join(names)}")
        found = plain.pop("format")
        if found != self.version:
            raise BundleFormatError(f"{what}: format {found!r}, this version reads {self.version}")
        return plain, tensors


ENCODER = HalfFile(
    what="encoder",
    key="neural_bridge_encoder",
    version=4,
    fields=("source_fingerprint", "selector"),
    arrays=(
        *("x_mean", "x_scale", "projection", "reconstruction"),
        *("centre", "latent_mean", "latent_inv_cov", "raw_scale"),
    ),
    more_fields=("text", "grid"),  # text only if it is true, grid only with regrid
    more_arrays=("task_weights", "regrid"),
    risk=True,
)
FEEDBACK_DECODER = HalfFile(
    what="feedback decoder",
    key="neural_bridge_reverse_decoder",
    version=1,
    fields=("source_fingerprint", "target_fingerprint"),
    arrays=("centre", "up", "mean", "scale"),
    more_arrays=("regrid",),
)
