"""What `metadata.json` says: the thought, its models and its shape.

Knows the fields and what they may hold. Does not know the tensors, nor whom a package is derived
from.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from projector.package.form import (
    CODECS,
    FORMAT,
    MAX_NUMBERS,
    METADATA,
    Blob,
    parse,
    require,
    require_fields,
    require_number,
    require_same,
    require_sha256,
    require_text,
    require_time,
    require_whole,
)
from protos.errors import PackageFormatError

TIERS = ("platinum", "gold", "silver", "bronze")


@dataclass(frozen=True)
class Model:
    """A model that a package is from or for.

    Attributes:
        model_id: name, for people.
        fingerprint: SHA-256 hex of its cache layout.
    """

    model_id: str
    fingerprint: str

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_text(self.model_id, 256, "model_id")
        require_sha256(self.fingerprint, "a model's fingerprint")


@dataclass(frozen=True)
class Certification:
    """What was certified of the map that serves the package.

    Attributes:
        tier: one of `TIERS`.
        epsilon: relative error of the transformation, 0 or more: a bound, or what was measured on
            held-out pairs, as the report says.
        retention: share of the large model's own accuracy that is kept, 0..2.
        verified_at: UTC, `2026-01-31T12:00:00Z`.
        report: the report or the digest that says so.
    """

    tier: str
    epsilon: float
    retention: float
    verified_at: str
    report: str

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require(self.tier in TIERS, f"tier {self.tier!r} is none of {', '.join(TIERS)}")
        require_number(self.epsilon, 0, 1e9, "epsilon")
        require_number(self.retention, 0, 2, "retention")
        require_time(self.verified_at, "verified_at")
        require_text(self.report, 1024, "report")

    @classmethod
    def from_plain(cls, plain: Any) -> Certification:
        """From a JSON object with exactly these fields.

        Raises:
            PackageFormatError: it is none.
        """
        require_fields(plain, [entry.name for entry in dataclasses.fields(cls)], "certification")
        return cls(**plain)


@dataclass(frozen=True)
class Metadata:
    """What `metadata.json` says.

    Attributes:
        id: name of the package: letters, digits, `.`, `_` and `-`.
        version: counts up, from 1.
        created: UTC, `2026-01-31T12:00:00Z`.
        description: what the thought is about, for people.
        source: the model whose cache it is.
        target: the model that its bundle projects to.
        layers: of the source's cache.
        kv_heads: likewise.
        head_dim: likewise.
        grid: image tokens as (rows, columns), kept or not.
        tokens: those that are kept.
        codec: how keys and values are written, one of `CODECS`.
        transformation_quality: share of right answers through the bundle, 0..1, if known.
        certification: if the map was certified.
    """

    id: str
    version: int
    created: str
    description: str
    source: Model
    target: Model
    layers: int
    kv_heads: int
    head_dim: int
    grid: tuple[int, int]
    tokens: int
    codec: str
    transformation_quality: float | None = None
    certification: Certification | None = None

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require(
            isinstance(self.id, str) and bool(re.fullmatch(r"[\w.-]{1,128}", self.id, re.ASCII)),
            f"a package's id has 1..128 letters, digits, '.', '_' or '-', not {self.id!r}",
        )
        require_whole(self.version, 1, 1 << 31, "version")
        require_time(self.created, "created")
        require_text(self.description, 4096, "description")
        for name, most in (("layers", 1024), ("kv_heads", 1024), ("head_dim", 4096)):
            require_whole(getattr(self, name), 1, most, name)
        for side in self.grid:
            require_whole(side, 1, 1024, "a side of the grid")
        require_whole(self.tokens, 1, self.grid_tokens, "tokens")
        require(self.codec in CODECS, f"codec {self.codec!r} is none of {', '.join(CODECS)}")
        numbers = self.layers * self.kv_heads * self.head_dim * self.grid_tokens
        require(numbers <= MAX_NUMBERS, f"{numbers} keys, at most {MAX_NUMBERS} are read")
        if self.transformation_quality is not None:
            require_number(self.transformation_quality, 0, 1, "transformation_quality")

    @property
    def grid_tokens(self) -> int:
        """Image tokens of the picture, kept or not."""
        return self.grid[0] * self.grid[1]

    @property
    def compression_ratio(self) -> float:
        """Kept tokens / all tokens, as the literature counts it."""
        return self.tokens / self.grid_tokens

    def to_plain(self) -> dict[str, Any]:
        """What `metadata.json` holds."""
        plain = dataclasses.asdict(self)
        shape = {name: plain.pop(name) for name in ("layers", "kv_heads", "head_dim", "codec")}
        shape["grid"] = list(plain.pop("grid"))
        return {
            **plain,
            "format": FORMAT,
            "kv_cache": shape,
            "compression_ratio": self.compression_ratio,
        }

    @classmethod
    def from_bytes(cls, blob: Blob) -> Metadata:
        """Read `metadata.json`, trusting nothing.

        Raises:
            PackageFormatError: another format version, or fields that are unusable.
            PackageCorruptError: not in canonical form.
        """
        plain = parse(blob, METADATA)
        if plain.get("format") != FORMAT:
            raise PackageFormatError(
                f"the package is of format {plain.get('format')!r}, this version reads {FORMAT}"
            )
        names = [entry.name for entry in dataclasses.fields(cls)]
        nested = ["layers", "kv_heads", "head_dim", "codec", "grid"]
        top = [name for name in names if name not in nested]
        require_fields(plain, [*top, "format", "kv_cache", "compression_ratio"], METADATA)
        shape, certified = plain["kv_cache"], plain["certification"]
        require_fields(shape, nested, "kv_cache")
        grid = shape["grid"]
        require(isinstance(grid, list) and len(grid) == 2, "a grid is [rows, columns]")
        for side in ("source", "target"):
            require_fields(plain[side], ["model_id", "fingerprint"], side)
        made = cls(
            **{name: plain[name] for name in top}
            | {name: shape[name] for name in nested}
            | {
                "grid": tuple(grid),
                "source": Model(**plain["source"]),
                "target": Model(**plain["target"]),
                "certification": None if certified is None else Certification.from_plain(certified),
            }
        )
        require_same(blob, made.to_plain(), METADATA)
        return made
