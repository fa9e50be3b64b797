"""The families of maps between two cache spaces, by name.

Knows the members. Does not know how they are trained beyond their closed forms.
"""

from __future__ import annotations

import difflib

from projector.maps.base import METADATA, Family, Map, read
from projector.maps.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.maps.bidirectional import Bidirectional
from projector.maps.cloud_half import CLOUD_HALF, read_cloud_half
from projector.maps.factors import Factors
from projector.maps.linear import Linear
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.procrustes import Procrustes
from projector.maps.ridge import Ridge
from projector.maps.served import ServedMap
from projector.maps.shared import Shared
from protos.errors import FitError
from protos.layout import KVLayout

FAMILIES: dict[str, type[Family]] = {
    cls.name: cls
    for cls in (
        Linear,
        MLP,
        LowRank,
        Factors,
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

__all__ = [
    "FAMILIES",
    "Family",
    "Map",
    "ServedMap",
    "family",
    "is_cloud_half",
    "is_map",
    "load",
]


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
    return _claims(blob, METADATA)


def is_cloud_half(blob: bytes) -> bool:
    """Whether a blob claims to be of an earlier form, a cloud half alone."""
    return _claims(blob, CLOUD_HALF)


def _claims(blob: bytes, name: str) -> bool:
    length = int.from_bytes(blob[:8], "little")
    return name.encode() in blob[8 : 8 + min(length, len(blob))]


def load(blob: bytes, source: KVLayout | None, target: KVLayout) -> Map:
    """Read what `Map.to_bytes` wrote, or an earlier cloud half, for the layouts that are running.

    Without a source the map's own is taken: the cloud half of a bundle, whose source was checked.
    An earlier cloud half names none.

    Raises:
        BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        BundleLayoutError: it was made for other layouts.
    """
    if source is not None and is_cloud_half(blob):
        return read_cloud_half(blob, source, target)
    return read(blob, source, target, FAMILIES)
