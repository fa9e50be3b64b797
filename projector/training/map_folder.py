"""The folder that `projector train` writes: the map, how it was trained, what it has seen."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.errors import FitError

if TYPE_CHECKING:
    from projector.maps import Map
    from projector.models.lm import LM
    from projector.models.vlm import VLM
    from projector.training.dataset import Dataset

MAP_FILE = "map.safetensors"
DESCRIPTION = "training.json"
SEEN = "seen.txt"
"""SHA-256 of a map, then digests of all inputs that it was trained on or chosen by, one a line."""


def read_map(path: Path, source: VLM | LM, target: VLM | LM) -> Map:
    """The map in a folder or file, for these two models.

    Raises:
        FitError: there is none.
        BundleFormatError, BundleLayoutError: as `load`.
    """
    from projector.maps import load

    return load(map_bytes(path), source.layout, target.layout)


def map_bytes(path: Path) -> bytes:
    """A map's file, whole.

    Raises:
        FitError: there is none.
    """
    file = path / MAP_FILE if path.is_dir() else path
    try:
        return file.read_bytes()
    except OSError as error:
        raise FitError(f"no map at {file}: {error.strerror}") from error


def seen_of(path: Path, data: Dataset, count: int) -> int | None:
    """How many of the first inputs a map was trained on or chosen by; None if not recorded."""
    folder = path if path.is_dir() else path.parent
    try:
        of, *known = (folder / SEEN).read_text().split()
    except (OSError, ValueError):
        return None
    if of != hashlib.sha256(map_bytes(path)).hexdigest():
        return None
    seen = set(known)
    return sum(content in seen for content in data.contents[:count])


def identity_of(path: Path, made: Map) -> dict[str, Any]:
    """Fields of a report that identify the map that it judges."""
    return {
        "family": made.family.name,
        "config": asdict(made.family),
        "sha256": hashlib.sha256(map_bytes(path)).hexdigest(),
        "source": made.source.fingerprint,
        "target": made.target.fingerprint,
    }


def same_map(judged: dict[str, Any], now: dict[str, Any], made: Map) -> bool:
    """Whether a report judges this map; fingerprints of earlier versions count too."""
    fits = all(
        judged.get(side) in layout.fingerprints
        for side, layout in (("source", made.source), ("target", made.target))
    )
    return fits and judged | {side: now[side] for side in ("source", "target")} == now
