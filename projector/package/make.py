"""Makes packages: from a model's cache, or from another package.

The caller chooses the tokens, and gives the time and the ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from projector.bundle.files import DESCRIPTION
from projector.bundle.load import Bundle
from projector.package.contents import Package, PackageInfo, Provenance, WMatrix
from projector.package.form import (
    ARRAYS,
    BEFORE,
    BUNDLE,
    CONFIG,
    KEYS,
    MASK,
    METADATA,
    MORE,
    VALUES,
    Blob,
    canonical,
)
from projector.package.metadata import Certification, Metadata, Model
from projector.package.tensors import (
    Mask,
    array_blob,
    decode,
    encode,
    mask_blob,
    read_codes,
    read_mask,
)
from protos.errors import BundleCorruptError, BundleLayoutError, ConfigError, PackageFormatError
from protos.layout import KVLayout
from protos.state import KVState


def create(
    state: KVState,
    kept: Mask,
    source: KVLayout,
    bundle: Bundle,
    *,
    id: str,
    created: str,
    creator: str,
    description: str = "",
    version: int = 1,
    codec: str = "fp8_e4m3",
    embed: bool = False,
    royalty_percent: float = 0.0,
    transformation_quality: float | None = None,
    certification: Certification | None = None,
    parent: str | None = None,
) -> Package:
    """Pack one picture's cache.

    Args:
        state: keys un-rotated.
        kept: tokens to carry, `[N]`.
        source: layout of the state's model.
        bundle: the bundle that will project it.
        id: name of the package.
        created: UTC, `2026-01-31T12:00:00Z`.
        creator: who makes it.
        description: what the picture shows, for people.
        version: increases with each package of the same id.
        codec: `fp8_e4m3` (a scale per layer, head and dimension), `float16` or `float32`.
        embed: put the bundle's files into the package, so that it needs nothing else.
        royalty_percent: what the creator asks of anyone who derives from it.
        transformation_quality: share of right answers through the bundle, 0..1.
        certification: of the bundle.
        parent: digest of an earlier package that this one continues.

    Raises:
        BundleLayoutError: the bundle is for another source.
        PackageFormatError: a field is unusable, the state is not of the layout, no token is kept.
        NonFiniteError: the state holds NaN or infinity.
        BundleCorruptError: the bundle's files were altered since it was loaded.
    """
    if bundle.info.source.fingerprint not in source.fingerprints:
        raise BundleLayoutError(
            f"bundle '{bundle.info.id}' is for {bundle.info.source.model_id} (layout "
            f"{bundle.info.source.fingerprint[:12]}), the state is of {source.model_id} "
            f"({source.fingerprint[:12]})"
        )
    shape = (source.layers, source.kv_heads, source.tokens, source.head_dim)
    if state.keys.shape != shape or kept.shape != (source.tokens,) or state.grid != source.grid:
        raise PackageFormatError(
            f"a state of {source.model_id} has keys {shape} on a grid of {source.grid}, not "
            f"{state.keys.shape} on {state.grid} with a mask {kept.shape}"
        )
    metadata = Metadata(
        id=id,
        version=version,
        created=created,
        description=description,
        source=Model(source.model_id, bundle.info.source.fingerprint),
        target=_target(bundle),
        layers=source.layers,
        kv_heads=source.kv_heads,
        head_dim=source.head_dim,
        grid=source.grid,
        tokens=int(np.count_nonzero(kept)),
        codec=codec,
        transformation_quality=_float(transformation_quality),
        certification=certification,
    )
    members: dict[str, Blob] = {}
    for name, array in ((KEYS, state.keys), (VALUES, state.values)):
        codes, scale = encode(array[:, :, kept], codec, name)
        members[name] = array_blob(codes, scale, metadata)
    members[MASK] = mask_blob(state.positions, state.attention, kept, metadata)
    members |= _w_matrix(bundle, embed)
    derivation = () if parent is None else ("continue",)
    return _assembled(metadata, members, creator, parent, derivation, royalty_percent)


def derive(
    parent: Package,
    *,
    id: str,
    created: str,
    creator: str,
    royalty_percent: float = 0.0,
    version: int = 1,
    description: str | None = None,
    kept: Mask | None = None,
    codec: str | None = None,
    bundle: Bundle | None = None,
    embed: bool = False,
    transformation_quality: float | None = None,
    certification: Certification | None = None,
) -> Package:
    """Make a package from another one: fewer tokens, another codec, bundle or description.

    All else is copied from the parent bit for bit. The parent's quality and certification are
    dropped if tokens, codec or bundle change, since nobody has measured the result. The derivation
    names the changes.

    Args:
        parent: the package to derive from.
        id: name of the new package.
        created: UTC.
        creator: who makes it.
        royalty_percent: what the creator asks of anyone who derives from it.
        version: increases with each package of the same id.
        description: instead of the parent's.
        kept: tokens to carry `[N]`, all of them among the parent's.
        codec: instead of the parent's.
        bundle: instead of the parent's, for the same source.
        embed: put `bundle` into the package.
        transformation_quality: instead of the parent's.
        certification: instead of the parent's.

    Raises:
        ConfigError: nothing changes, or `kept` has tokens that the parent does not carry.
        BundleLayoutError: the bundle is for another source.
        PackageFormatError, BundleCorruptError: as `create`.
    """
    old, theirs = parent.info.metadata, parent.kept
    members = {name: blob for name, blob in parent.members.items() if name != METADATA}
    kinds = set()
    kept = theirs if kept is None else kept
    if kept.shape != theirs.shape or (kept & ~theirs).any() or not kept.any():
        raise ConfigError("a derived package must keep some of its parent's tokens and no others")
    new = dataclasses.replace(
        old,
        id=id,
        created=created,
        version=version,
        tokens=int(np.count_nonzero(kept)),
        codec=codec or old.codec,
    )
    if new.tokens < old.tokens:
        kinds.add("select")
    if new.codec != old.codec:
        kinds.add("requantize")
    if kinds:
        members |= carried(parent.members, old, new, kept)
        new = dataclasses.replace(new, transformation_quality=None, certification=None)
    if bundle is not None and bundle.digest != parent.info.w_matrix.bundle_digest:
        if bundle.info.source.fingerprint != old.source.fingerprint:
            raise BundleLayoutError(
                f"bundle '{bundle.info.id}' is for {bundle.info.source.model_id}, the package is "
                f"of {old.source.model_id} (layout {old.source.fingerprint[:12]})"
            )
        kinds.add("retarget")
        members = {n: blob for n, blob in members.items() if n not in (CONFIG, *BUNDLE, *MORE)}
        members |= _w_matrix(bundle, embed)
        new = dataclasses.replace(
            new, target=_target(bundle), transformation_quality=None, certification=None
        )
    changes: dict[str, Any] = {
        "description": description,
        "transformation_quality": _float(transformation_quality),
        "certification": certification,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    annotated = dataclasses.replace(new, **changes)
    if annotated != new:
        kinds.add("annotate")
    if not kinds:
        raise ConfigError(
            "nothing would be changed: choose fewer tokens, another codec, bundle or description"
        )
    return _assembled(
        annotated, members, creator, parent.info.digest, sorted(kinds), royalty_percent
    )


def carried(
    members: Mapping[str, Blob], old: Metadata, new: Metadata, kept: Mask
) -> dict[str, bytes]:
    """Mask, keys and values of a derived package; the parent alone determines them.

    Args:
        members: members of the parent.
        old: the parent's metadata.
        new: the derived package's metadata, which names its codec.
        kept: tokens to carry `[N]`, all of them among the parent's.

    Raises:
        PackageFormatError: the parent's members cannot be read.
    """
    positions, attention, theirs = read_mask(members[MASK], old)
    made = {MASK: mask_blob(positions, attention, kept, new)}
    for name in ARRAYS:
        codes, scale = read_codes(members[name], old)
        codes = codes[:, :, kept[theirs]]
        if new.codec != old.codec:
            codes, scale = encode(decode(codes, scale, old.codec, name), new.codec, name)
        made[name] = array_blob(codes, scale, new)
    return made


def _assembled(
    metadata: Metadata,
    members: Mapping[str, Blob],
    creator: str,
    parent: str | None,
    derivation: Sequence[str],
    royalty_percent: float,
) -> Package:
    blobs = {**members, METADATA: canonical(metadata.to_plain())}
    names = [name for name in (*BEFORE, *BUNDLE, *MORE) if name in blobs]
    ordered = {name: blobs[name] for name in names}
    table = {n: (len(b), hashlib.sha256(b).hexdigest()) for n, b in ordered.items()}
    provenance = Provenance(creator, parent, tuple(derivation), royalty_percent, table)
    info = PackageInfo(metadata, WMatrix.from_bytes(ordered[CONFIG]), provenance)
    return Package(info, ordered)


def _w_matrix(bundle: Bundle, embed: bool) -> dict[str, Blob]:
    info = bundle.info
    config = WMatrix(info.id, info.version, info.digest, info.rank, embed)
    members: dict[str, Blob] = {CONFIG: canonical(dataclasses.asdict(config))}
    if embed:
        again = Bundle.load(bundle.path, info.source, info.target)
        if again.digest != info.digest:
            raise BundleCorruptError(f"{bundle.path} was altered since it was loaded")
        for name in (DESCRIPTION, *info.names):
            members[f"w_matrix/{name}"] = (bundle.path / name).read_bytes()
    return members


def _target(bundle: Bundle) -> Model:
    return Model(bundle.info.target.model_id, bundle.info.target.fingerprint)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
