"""A package's contents and its description, whole and in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from projector.bundle import keys
from projector.bundle.keys import Signature
from projector.package.form import (
    ARRAYS,
    CONFIG,
    MASK,
    MAX_BYTES,
    PROVENANCE,
    Blob,
    Sha256,
    canonical,
    parse,
    require,
    require_fields,
    require_same,
    require_types,
)
from projector.package.metadata import Metadata
from projector.package.tensors import Mask, decode, read_codes, read_mask
from protos.state import KVState

DERIVATIONS = {
    "annotate": "another description, certification or quality",
    "continue": "a new picture that follows an earlier one",
    "requantize": "another codec",
    "retarget": "another bundle",
    "select": "fewer tokens",
}
"""How a package may differ from its parent."""
Size = Annotated[int, Field(ge=0, le=MAX_BYTES)]
"""The bytes of a member."""
_SIGNED = b"neural-bridge memory package\n"


@dataclass(frozen=True)
class WMatrix:
    """The bundle that projects the package, as `w_matrix/config.json` names it.

    Attributes:
        bundle_id: its id.
        bundle_version: its version.
        bundle_digest: SHA-256 hex over the whole bundle.
        rank: numbers per latent.
        embedded: whether its files are in the package.
    """

    bundle_id: Annotated[str, Field(max_length=256)]
    bundle_version: Annotated[int, Field(ge=0, le=1 << 53)]
    bundle_digest: Sha256
    rank: Annotated[int, Field(ge=1, le=1 << 24)]
    embedded: bool

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_types(self)

    @classmethod
    def from_bytes(cls, blob: Blob) -> WMatrix:
        """Read `w_matrix/config.json`; raises as `Metadata.from_bytes`."""
        plain = parse(blob, CONFIG)
        require_fields(plain, [entry.name for entry in dataclasses.fields(cls)], CONFIG)
        made = cls(**plain)
        require_same(blob, dataclasses.asdict(made), CONFIG)
        return made


@dataclass(frozen=True)
class Provenance:
    """A package's origin, and the digests of its members.

    Attributes:
        creator: who made it.
        parent: digest of the package that it was derived from; `None` for a root.
        derivation: what was changed, names from `DERIVATIONS` in order; empty for a root.
        royalty_percent: what the creator asks of anyone who derives from it, 0..100.
        members: size in bytes and SHA-256 hex of every other member of the archive.
        signature: signature of `digest`; `None` if unsigned.
    """

    creator: Annotated[str, Field(min_length=1, max_length=256)]
    parent: Sha256 | None
    derivation: tuple[str, ...]
    royalty_percent: Annotated[float, Field(ge=0, le=100)]
    members: Mapping[str, tuple[Size, Sha256]] = field(repr=False)
    signature: Signature | None = None

    def __post_init__(self) -> None:
        """Raises PackageFormatError: a field is unusable."""
        require_types(self)
        require(
            list(self.derivation) == sorted(set(self.derivation) & set(DERIVATIONS)),
            f"a derivation must list some of {', '.join(DERIVATIONS)}, in order, each once",
        )
        require(
            (self.parent is None) == (not self.derivation),
            "a package must have both a parent and a derivation, or neither",
        )

    @property
    def digest(self) -> str:
        """SHA-256 hex that names the package: over everything but the signature."""
        plain = self.to_plain()
        return hashlib.sha256(
            canonical({k: v for k, v in plain.items() if k not in ("digest", "signature")})
        ).hexdigest()

    def to_plain(self, digest: str | None = None) -> dict[str, Any]:
        """The object in `provenance.json`, with `digest` added."""
        return {
            "creator": self.creator,
            "parent": self.parent,
            "derivation": list(self.derivation),
            "royalty_percent": float(self.royalty_percent),
            "members": {
                name: {"bytes": size, "sha256": sha} for name, (size, sha) in self.members.items()
            },
            "signature": None if self.signature is None else dataclasses.asdict(self.signature),
            "digest": digest,
        }

    def to_bytes(self) -> bytes:
        """The bytes of `provenance.json`."""
        return canonical(self.to_plain(self.digest))

    @classmethod
    def from_bytes(cls, blob: Blob) -> Provenance:
        """Read an untrusted `provenance.json`.

        Raises:
            PackageFormatError: a field is unusable.
            PackageCorruptError: it does not match its own digest, or is not in canonical form.
            SignatureError: its signature does not match.
        """
        plain = parse(blob, PROVENANCE)
        names = [entry.name for entry in dataclasses.fields(cls)]
        require_fields(plain, [*names, "digest"], PROVENANCE)
        members, signature = plain["members"], plain["signature"]
        require(isinstance(members, dict), "members must be an object")
        for entry in members.values():
            require_fields(entry, ["bytes", "sha256"], "a member")
        if signature is not None:
            require_fields(signature, ["key", "value"], "signature")
            parts = signature.values()
            require(all(isinstance(part, str) for part in parts), "a signature must be two texts")
        require(isinstance(plain["derivation"], list), "derivation must be a list")
        made = cls(
            **{name: plain[name] for name in names}
            | {
                "derivation": tuple(plain["derivation"]),
                "members": {n: (e["bytes"], e["sha256"]) for n, e in members.items()},
                "signature": None if signature is None else Signature(**signature),
            }
        )
        require_same(blob, made.to_plain(made.digest), PROVENANCE)
        if made.signature is not None:
            keys.check(signed_message(made.digest), made.signature)
        return made


@dataclass(frozen=True)
class PackageInfo:
    """A package's description: its three JSON members.

    Attributes:
        metadata: `metadata.json`.
        w_matrix: `w_matrix/config.json`.
        provenance: `provenance.json`.
    """

    metadata: Metadata
    w_matrix: WMatrix
    provenance: Provenance

    @property
    def digest(self) -> str:
        """SHA-256 hex that names the package."""
        return self.provenance.digest

    def to_plain(self) -> dict[str, Any]:
        """All of it, as JSON-serialisable values."""
        return {
            "digest": self.digest,
            "metadata": self.metadata.to_plain(),
            "w_matrix": dataclasses.asdict(self.w_matrix),
            "provenance": self.provenance.to_plain(self.digest),
        }


@dataclass(frozen=True)
class Package:
    """A whole package in memory. Build it with `create`, `derive` or `read`.

    Attributes:
        info: its description.
        members: the archive's members by name, in order, without `provenance.json`.
    """

    info: PackageInfo
    members: Mapping[str, Blob] = field(repr=False)

    @property
    def kept(self) -> Mask:
        """Which image tokens it carries, `[N]`."""
        return read_mask(self.members[MASK], self.info.metadata)[2]

    def state(self) -> KVState:
        """The source's un-rotated cache; keys and values of dropped tokens are 0.

        Raises:
            PackageFormatError: a number in it is NaN or infinite.
        """
        meta = self.info.metadata
        positions, attention, kept = read_mask(self.members[MASK], meta)
        shape = (meta.layers, meta.kv_heads, meta.grid_tokens, meta.head_dim)
        arrays = []
        for name in ARRAYS:
            codes, scale = read_codes(self.members[name], meta)
            whole = np.zeros(shape, dtype=np.float32)
            whole[:, :, kept] = decode(codes, scale, meta.codec, name)
            arrays.append(whole)
        return KVState(arrays[0], arrays[1], positions, meta.grid, attention)


def signed_message(digest: str) -> bytes:
    """The message that a signature of the package with this digest signs."""
    return _SIGNED + digest.encode()
