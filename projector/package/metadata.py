"""`metadata.json`: a package's description, models and shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from projector.package.form import (
    CODECS,
    FORMAT,
    MAX_NUMBERS,
    METADATA,
    Blob,
    Sha256,
    Time,
    parse,
    require,
    require_fields,
    require_same,
    require_types,
)
from protos.errors import PackageFormatError

TIERS = ("platinum", "gold", "silver", "bronze")
Side = Annotated[int, Field(ge=1, le=1024)]
"""Most rows or columns of a grid."""


@dataclass(frozen=True)
class Model:
    """The source or target model of a package.

    Attributes:
        model_id: name, for people.
        fingerprint: SHA-256 hex of its cache layout.
    """

    model_id: Annotated[str, Field(max_length=256)]
    fingerprint: Sha256

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_types(self)


@dataclass(frozen=True)
class Certification:
    """The certified quality of the package's map.

    Attributes:
        tier: one of `TIERS`.
        epsilon: relative error of the projection, 0 or more: a bound, or a figure measured on
            held-out pairs, as the report says.
        retention: share of the large model's own accuracy that the map keeps, 0..2.
        verified_at: UTC, `2026-01-31T12:00:00Z`.
        report: the report with these figures, or its digest.
    """

    tier: str
    epsilon: Annotated[float, Field(ge=0, le=1e9)]
    retention: Annotated[float, Field(ge=0, le=2)]
    verified_at: Time
    report: Annotated[str, Field(max_length=1024)]

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_types(self)
        require(self.tier in TIERS, f"tier {self.tier!r} is none of {', '.join(TIERS)}")

    @classmethod
    def from_plain(cls, plain: Any) -> Certification:
        """Read a JSON object with exactly these fields.

        Raises:
            PackageFormatError: it is not such an object.
        """
        require_fields(plain, [entry.name for entry in dataclasses.fields(cls)], "certification")
        return cls(**plain)


@dataclass(frozen=True)
class Metadata:
    """The contents of `metadata.json`.

    Attributes:
        id: name of the package: letters, digits, `.`, `_` and `-`.
        version: increases with each package of the same id, from 1.
        created: UTC, `2026-01-31T12:00:00Z`.
        description: what the picture shows, for people.
        source: the model that made the cache.
        target: the model that its bundle projects to.
        layers: of the source's cache.
        kv_heads: of the source's cache.
        head_dim: of the source's cache.
        grid: rows and columns of all image tokens, kept or not.
        tokens: number of kept tokens.
        codec: format of keys and values, one of `CODECS`.
        transformation_quality: share of right answers through the bundle, 0..1, if known.
        certification: of the map; None if it was not certified.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    version: Annotated[int, Field(ge=1, le=1 << 31)]
    created: Time
    description: Annotated[str, Field(max_length=4096)]
    source: Model
    target: Model
    layers: Annotated[int, Field(ge=1, le=1024)]
    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    head_dim: Annotated[int, Field(ge=1, le=4096)]
    grid: tuple[Side, Side]
    tokens: Annotated[int, Field(ge=1)]
    codec: str
    transformation_quality: Annotated[float, Field(ge=0, le=1)] | None = None
    certification: Certification | None = None

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_types(self)
        most = self.grid_tokens
        require(self.tokens <= most, f"{self.tokens} tokens of a grid of {most}")
        require(self.codec in CODECS, f"codec {self.codec!r} is none of {', '.join(CODECS)}")
        numbers = self.layers * self.kv_heads * self.head_dim * self.grid_tokens
        require(numbers <= MAX_NUMBERS, f"{numbers} keys, at most {MAX_NUMBERS} are read")

    @property
    def grid_tokens(self) -> int:
        """Image tokens of the picture, kept or not."""
        return self.grid[0] * self.grid[1]

    @property
    def compression_ratio(self) -> float:
        """Kept tokens / all tokens, as the literature counts it."""
        return self.tokens / self.grid_tokens

    def to_plain(self) -> dict[str, Any]:
        """The object in `metadata.json`."""
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
        """Read an untrusted `metadata.json`.

        Raises:
            PackageFormatError: another format version, or an unusable field.
            PackageCorruptError: it is not in canonical form.
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
        require(isinstance(grid, list) and len(grid) == 2, "a grid must be [rows, columns]")
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
