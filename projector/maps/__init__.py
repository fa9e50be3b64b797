"""The families of maps between two cache spaces, by name.

Knows the members. Does not know how they are trained beyond their closed forms.
"""

from __future__ import annotations

import difflib

from projector.maps.base import METADATA, Family, Map, ServedMap, read
from projector.maps.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.maps.bidirectional import Bidirectional
from projector.maps.linear import Linear
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.procrustes import Procrustes
from projector.maps.ridge import Ridge
from projector.maps.shared import Shared
from protos.errors import FitError
from protos.layout import KVLayout

FAMILIES: dict[str, type[Family]] = {
    cls.name: cls
    for cls in (
        Linear,
        MLP,
        LowRank,
        Ridge,
        Procrustes,
        Shared,
        Bidirectional,
        Mix,
        Truncate,
        ZeroPad,
        Interpolate,
        Autoencoder,
    )
}

__all__ = ["FAMILIES", "Family", "Map", "ServedMap", "family", "is_map", "load"]


def family(name: str) -> type[Family]:
    """The family of that name.

    Raises:
        FitError: there is none (the message names the nearest).
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise FitError(f"there is no family '{name}' (there are {', '.join(FAMILIES)}){hint}")
    return FAMILIES[name]


def is_map(blob: bytes) -> bool:
    """Whether a blob claims to be what `Map.to_bytes` wrote."""
    length = int.from_bytes(blob[:8], "little")
    return METADATA.encode() in blob[8 : 8 + min(length, len(blob))]


def load(blob: bytes, source: KVLayout | None, target: KVLayout) -> Map:
    """Read what `Map.to_bytes` wrote, for the layouts that are running.

    Without a source the map's own is taken: the cloud half of a bundle, whose source was checked.

    Raises:
        BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        BundleLayoutError: it was made for other layouts.
    """
    return read(blob, source, target, FAMILIES)
