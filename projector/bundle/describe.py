"""Reads, checks and writes `bundle.json`, the description of a bundle, in its one canonical form.

`digest` covers the description's other fields, and they cover the other files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projector.bundle.files import (
    CLOUD,
    DESCRIPTION,
    EVERY,
    FEEDBACK_FILES,
    FILES,
    GRAPH,
    OPTIONAL,
)
from projector.bundle.refusals import refusal
from projector.models.foreign import in_words
from protos.errors import (
    FrameMalformedError,
)
from protos.layout import KVLayout
from protos.points import OperatingPoint, points_from_json
from protos.strict_json import read_json

FORMAT = 1
_MAX_ID = 256
_MAX_FILE_BYTES = 1 << 31
_FIELDS = {
    "format",
    "id",
    "version",
    "source_layout",
    "target_layout",
    "rank",
    "files",
    "operating_points",
    "default_point",
    "ladder",
    "digest",
}


@dataclass(frozen=True)
class BundleInfo:
    """The contents of `bundle.json`.

    Attributes:
        id: name of the bundle.
        version: increases with every training of the same id.
        digest: SHA-256 hex over the description, and through it over all files.
        source: the edge model's layout.
        target: the cloud model's layout.
        rank: numbers per latent.
        points: the operating points.
        default_point: index of the point to start with.
        ladder: indices, from the cheapest to the most faithful.
        files: size in bytes and SHA-256 hex of each file.
    """

    id: str
    version: int
    digest: str
    source: KVLayout
    target: KVLayout
    rank: int
    points: tuple[OperatingPoint, ...]
    default_point: int
    ladder: tuple[int, ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its files in their order, without the description."""
        return tuple(name for name in EVERY if name in self.files)

    @property
    def cloud_half(self) -> tuple[str, str]:
        """SHA-256 hex of the cloud half's weights and graph; the same for all edges of a hub."""
        return self.files[CLOUD][1], self.files[GRAPH][1]

    @property
    def without_canary(self) -> str:
        """What it means that the bundle has no canary set, and what to do."""
        if self.source.of_text:
            return "it has no canary set, which no bundle between models that read texts can have"
        return "it has no canary set (projector canary adds one)"


def canonical_json(plain: Mapping[str, Any]) -> bytes:
    """The only form in which `bundle.json` and `signature.json` are accepted."""
    return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_object(blob: bytes, file: Path) -> dict[str, Any]:
    """Read a JSON object from a file's bytes.

    Raises:
        BundleCorruptError: it is not JSON, repeats a key or holds NaN.
        BundleFormatError: it is not an object.
    """
    try:
        plain = read_json(blob, len(blob), file.name)
    except FrameMalformedError as error:
        raise refusal("602.4", f"{file}: {error}") from error
    if not isinstance(plain, dict):
        raise refusal("604.2", f"{file} must hold a JSON object")
    try:
        json.dumps(plain, allow_nan=False)
    except ValueError as error:  # such as 1e999, which JSON reads as infinity
        raise refusal("602.4", f"{file}: {error}") from error
    return plain


def describe(blob: bytes, folder: Path) -> BundleInfo:
    """Parse the bytes of `bundle.json` once they are verified and canonical.

    Raises:
        BundleCorruptError: it was altered.
        BundleFormatError: another format, or a field with an impossible value.
    """
    file = folder / DESCRIPTION
    plain = parse_object(blob, file)
    if plain.get("format") != FORMAT and type(plain.get("format")) is int:
        raise refusal(
            "604.1", f"{file} is of format {plain['format']}, this version reads {FORMAT}"
        )
    digest = plain.get("digest")
    rest = {key: value for key, value in plain.items() if key != "digest"}
    try:
        sealed, canonical = hashlib.sha256(canonical_json(rest)).hexdigest(), canonical_json(plain)
    except ValueError as error:  # such as 1e999, which JSON reads as infinity
        raise refusal("602.4", f"{file}: {error}") from error
    if digest != sealed:
        raise refusal("602.5", f"{file} does not match its own digest: altered")
    if blob != canonical:
        raise refusal("602.6", f"{file} is not in canonical form: altered")
    if set(plain) != _FIELDS:
        raise refusal("604.3", f"{file} has the fields {sorted(plain)}")
    try:
        source = KVLayout.from_json(json.dumps(plain["source_layout"]))
        target = KVLayout.from_json(json.dumps(plain["target_layout"]))
        points = points_from_json(json.dumps(plain["operating_points"]))
        files = {
            str(name): (_integer(entry["bytes"]), str(entry["sha256"]))
            for name, entry in plain["files"].items()
        }
        version, rank = _integer(plain["version"]), _integer(plain["rank"])
        name = plain["id"]
        if _integer(plain["format"]) != FORMAT or version < 0:
            raise ValueError("an impossible format or version")
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_ID or not name.isprintable():
            raise ValueError(f"an id must be a printable text of 1 to {_MAX_ID} characters")
        default = _integer(plain["default_point"])
        ladder = tuple(_integer(index) for index in plain["ladder"])
    except (FrameMalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise refusal("604.4", f"{file}: {in_words(error)}") from error
    known = {point.index for point in points}
    sound = ladder and len(set(ladder)) == len(ladder) and set(ladder) <= known
    if default not in known or not sound:
        raise refusal(
            "604.5",
            f"{file}: its default point or ladder names an unknown point, one twice, or none",
        )
    complete = set(files) - {*OPTIONAL} in ({*FILES}, {*FILES, *FEEDBACK_FILES})
    if not complete or any(not 0 < s <= _MAX_FILE_BYTES for s, _ in files.values()):
        raise refusal(
            "604.6",
            f"{file} must list {', '.join(FILES)} with their sizes, and either both or none of "
            f"{', '.join(FEEDBACK_FILES)}, and perhaps {', '.join(OPTIONAL)}",
        )
    return BundleInfo(
        id=name,
        version=version,
        digest=str(digest),
        source=source,
        target=target,
        rank=rank,
        points=points,
        default_point=default,
        ladder=ladder,
        files=files,
    )


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an integer")
    return value
