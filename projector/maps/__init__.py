"""The families of maps between two cache spaces, by name, and `load` for all of them."""

from __future__ import annotations

from projector.maps.base import FAMILIES, METADATA, Family, Map, family, read
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
from projector.maps.rounded import RoundedMap
from projector.maps.served import ServedMap
from projector.maps.shared import Shared
from protos.layout import KVLayout

for _member in (
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
):
    FAMILIES[_member.name] = _member

__all__ = [
    "FAMILIES",
    "Family",
    "Map",
    "RoundedMap",
    "ServedMap",
    "family",
    "is_cloud_half",
    "is_map",
    "load",
]


def is_map(blob: bytes) -> bool:
    """Whether a blob claims to come from `Map.to_bytes`."""
    return _claims(blob, METADATA)


def is_cloud_half(blob: bytes) -> bool:
    """Whether a blob claims to be an earlier form, a cloud half alone."""
    return _claims(blob, CLOUD_HALF)


def _claims(blob: bytes, name: str) -> bool:
    length = int.from_bytes(blob[:8], "little")
    return name.encode() in blob[8 : 8 + min(length, len(blob))]


def load(blob: bytes, source: KVLayout | None, target: KVLayout) -> Map:
    """Read a blob from `Map.to_bytes`, or an earlier cloud half, for the running layouts.

    Without a source, the map's own source counts: for the cloud half of a bundle, it was checked
    before. An earlier cloud half needs a source, since it names none.

    Raises:
        BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        BundleLayoutError: it was made for other layouts.
    """
    if source is not None and is_cloud_half(blob):
        return read_cloud_half(blob, source, target)
    return read(blob, source, target, FAMILIES)
