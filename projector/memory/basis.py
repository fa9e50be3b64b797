"""What is fitted offline for a memory: how a key is made, and when the gate opens.

A key is the small model's cache of a text, averaged over its tokens, in the directions in which
texts about different things differ most (`fit.py`: linear discriminant analysis).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from projector.codec.arrays import Floats, check_arrays
from projector.models.foreign import in_words
from protos.errors import (
    BundleFormatError,
    FactError,
    FrameMalformedError,
    MemoryForeignError,
)
from protos.layout import KVLayout
from protos.state import KVState
from protos.strict_json import read_json

FORMAT = 1
MAX_BYTES = 16 << 20
_METADATA = "neural_bridge_memory"
_ARRAYS = ("mean", "scale", "projection")
_TEXT_BYTES = 1 << 16
_MOST_PARTS = 4


def text_features(state: KVState, layers: Sequence[int]) -> Floats:
    """A text's features: un-rotated keys and values, averaged over its tokens, float32 [F].

    Args:
        state: the small model's cache of the text's own tokens.
        layers: whose keys and values are taken, from 0; F is `2 * kv_heads * head_dim` for each.

    Raises:
        FactError: the model has no such layer.
    """
    if not layers or min(layers) < 0 or max(layers) >= len(state.keys):
        raise FactError(
            f"the basis reads the layers {list(layers)}, the model has {len(state.keys)}"
        )
    chosen = list(layers)
    parts = np.stack([state.keys[chosen].mean(axis=2), state.values[chosen].mean(axis=2)], axis=1)
    made: Floats = parts.reshape(-1).astype(np.float32)
    return made


@dataclass(frozen=True)
class ReadSettings:
    """How a memory is read and written; chosen on validation prompts.

    Attributes:
        threshold: The gate opens at this similarity, 0 to 1.
        sharpness: The softmax's factor on similarities, above 0 (`beta`).
        gain: The direction's length as a share of the large model's last state (`alpha`).
        same: From this similarity on two facts are about the same thing, 0 to 1.
    """

    threshold: float = 0.75
    sharpness: float = 20.0
    gain: float = 0.15
    same: float = 0.6

    def check(self, what: str) -> None:
        """Require usable numbers.

        Raises:
            BundleFormatError: which is not.
        """
        for name, value in asdict(self).items():
            top = 1.0 if name in ("threshold", "same") else 1e4
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 < value <= top:
                raise BundleFormatError(f"{what}: {name} is {value!r}, expected 0 to {top:g}")


@dataclass(frozen=True, eq=False)
class MemoryBasis:
    """A memory's half that never changes; both the device and the service hold it.

    Attributes:
        source_fingerprint: Of the small model, whose states become keys.
        target_fingerprint: Of the large model, which reads.
        layers: The small model's layers that features are taken from.
        mean: Of the features, float32 [F].
        scale: Their deviations, above 0, float32 [F].
        projection: From features to keys, float32 [F, r].
        parts: Entries of a key that belong together, such as whom a text is about and what it asks;
            they add up to r. Two keys are as similar as their least similar parts.
        reading: Gate, softmax, gain.
    """

    source_fingerprint: str
    target_fingerprint: str
    layers: tuple[int, ...]
    mean: Floats
    scale: Floats
    projection: Floats
    parts: tuple[int, ...]
    reading: ReadSettings = ReadSettings()

    @property
    def rank(self) -> int:
        """Entries of a key, r."""
        return int(self.projection.shape[1])

    @property
    def features(self) -> int:
        """Entries of a text's features, F."""
        return int(self.projection.shape[0])

    def require(self, source: str, target: str) -> None:
        """Require that it was fitted for the two models that are running.

        Args:
            source: the small model's fingerprint.
            target: the large model's.

        Raises:
            MemoryForeignError: it was not.
        """
        if (source, target) != (self.source_fingerprint, self.target_fingerprint):
            raise MemoryForeignError(
                f"the basis of memories is for {self.source_fingerprint[:12]}… and "
                f"{self.target_fingerprint[:12]}…, the models are {source[:12]}… and {target[:12]}…"
            )

    def require_layers(self, source: KVLayout) -> None:
        """Require that it reads layers that the small model has, as wide as they are.

        Raises:
            MemoryForeignError: it does not.
        """
        width = 2 * source.kv_heads * source.head_dim
        if max(self.layers) >= source.layers or self.features != width * len(self.layers):
            raise MemoryForeignError(
                f"the basis reads {self.features} features of the layers {list(self.layers)}; "
                f"the small model has {source.layers} layers of {width}"
            )

    def key(self, features: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """The key of one text, int8 [r], or of many, int8 [n, r].

        Args:
            features: From `text_features`, [F] or [n, F].

        Raises:
            FactError: another size, NaN or infinity, or features that point nowhere.
        """
        if features.shape[-1:] != (self.features,):
            raise FactError(
                f"the text has {features.shape[-1:]} features, this basis reads {self.features}: "
                "it was made for another small model"
            )
        turned = (features.astype(np.float32) - self.mean) / self.scale @ self.projection
        made = np.empty(turned.shape, np.int8)
        for part in self.slices:
            largest = np.abs(turned[..., part]).max(axis=-1, keepdims=True)
            if not np.isfinite(largest).all() or not (largest > 0).all():
                raise FactError("the small model's state of this text is not usable as a key")
            made[..., part] = np.rint(turned[..., part] * (127 / largest))
        return made

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each part of a key is."""
        ends = np.cumsum(self.parts).tolist()
        return tuple(slice(end - size, end) for size, end in zip(self.parts, ends, strict=True))

    def unit(self, keys: npt.NDArray[np.int8]) -> Floats:
        """Keys, int8 [n, r], as float32 rows whose parts have length 1."""
        rows = np.asarray(keys, np.float32)
        for part in self.slices:
            rows[:, part] /= np.linalg.norm(rows[:, part], axis=1, keepdims=True)
        return rows

    def similarity(self, rows: Floats, others: Floats) -> Floats:
        """How similar keys are, -1 to 1: the least cosine of their parts, [n, m].

        Args:
            rows: from `unit`, [n, r].
            others: from `unit`, [m, r].
        """
        first, *rest = self.slices
        made: Floats = rows[:, first] @ others[:, first].T
        for part in rest:
            np.minimum(made, rows[:, part] @ others[:, part].T, out=made)
        return made

    def usable(self, keys: npt.NDArray[np.int8]) -> bool:
        """Whether every part of every key, [n, r], points somewhere."""
        return all(bool(keys[:, part].any(axis=1).all()) for part in self.slices)

    @property
    def digest(self) -> bytes:
        """SHA-256 of `to_bytes`, 32 bytes; a memory's state names it."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """The basis as a safetensors blob; an equal basis gives equal bytes."""
        plain = {
            "format": FORMAT,
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
            "layers": list(self.layers),
            "parts": list(self.parts),
            "reading": asdict(self.reading),
        }
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        blob: bytes = save_tensors(arrays, metadata={_METADATA: text})
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> MemoryBasis:
        """Read untrusted bytes of `to_bytes`.

        Raises:
            BundleFormatError: not such bytes, or arrays that do not fit each other.
        """
        what = "memory basis"
        if not 8 <= len(blob) <= MAX_BYTES:
            raise BundleFormatError(f"{what}: {len(blob)} bytes, at most {MAX_BYTES} are read")
        length = int.from_bytes(blob[:8], "little")
        if length > min(_TEXT_BYTES, len(blob) - 8):
            raise BundleFormatError(f"{what}: its header claims {length} bytes")
        try:
            header = read_json(blob[8 : 8 + length], _TEXT_BYTES, what)
            plain = read_json(header["__metadata__"][_METADATA], _TEXT_BYTES, what)
            arrays = load_tensors(blob)
        except (FrameMalformedError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BundleFormatError(f"not a valid {what}: {in_words(error)}") from error
        return cls._of(what, plain, arrays)

    @classmethod
    def _of(cls, what: str, plain: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> MemoryBasis:
        names = {"format", "source_fingerprint", "target_fingerprint", "layers", "parts", "reading"}
        if not isinstance(plain, dict) or set(plain) != names or set(arrays) != set(_ARRAYS):
            raise BundleFormatError(f"{what}: it must hold exactly {', '.join(sorted(names))}")
        if plain["format"] != FORMAT:
            raise BundleFormatError(
                f"{what}: format {plain['format']!r}, this version reads {FORMAT}"
            )
        for name in ("source_fingerprint", "target_fingerprint"):
            if not isinstance(plain[name], str) or not plain[name]:
                raise BundleFormatError(f"{what}: {name} is {plain[name]!r}, expected a text")
        layers = plain["layers"]
        if not isinstance(layers, list) or not layers or not all(_layer(n) for n in layers):
            raise BundleFormatError(f"{what}: layers are {layers!r}, expected a list of numbers")
        given = plain["reading"]
        if not isinstance(given, dict) or set(given) != {one.name for one in fields(ReadSettings)}:
            raise BundleFormatError(f"{what}: reading is {given!r}")
        reading = ReadSettings(**given)
        reading.check(what)
        projection = arrays["projection"]
        if projection.ndim != 2 or not all(projection.shape) or projection.shape[1] > 1024:
            raise BundleFormatError(f"{what}: projection is {list(projection.shape)}")
        wanted = {"mean": projection.shape[:1], "scale": projection.shape[:1]}
        parts = plain["parts"]
        good = isinstance(parts, list) and all(type(n) is int and n > 0 for n in parts)
        if not good or not 1 <= len(parts) <= _MOST_PARTS or sum(parts) != projection.shape[1]:
            raise BundleFormatError(
                f"{what}: its parts are {parts!r}, expected numbers that add up to "
                f"{projection.shape[1]}"
            )
        check_arrays(what, arrays, {**wanted, "projection": projection.shape}, positive=("scale",))
        return cls(
            plain["source_fingerprint"],
            plain["target_fingerprint"],
            tuple(layers),
            **{name: arrays[name] for name in _ARRAYS},
            parts=tuple(parts),
            reading=reading,
        )


def _layer(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 16
