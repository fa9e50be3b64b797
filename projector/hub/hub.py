"""A hub on disk: written, signed, loaded with every byte verified.

| File | Holds |
|---|---|
| `hub.json` | canonical JSON; `digest` covers its other fields, which cover the other files |
| `cloud.safetensors`, `cloud.onnx` | the cloud half, the same bytes as in every member's bundle |
| `space.safetensors` | the `LatentSpace`: R, deviations, steps and entropy tables |
| `certificate.json` | what was measured when it was made |
| `service_risk.safetensors` | the service's guard, a `RiskModel`; optional |
| `signature.json` | if signed: an Ed25519 signature of `hub.json` |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from projector.bundle.describe import canonical_json, parse_object
from projector.bundle.files import (
    CERTIFICATE,
    CLOUD,
    GRAPH,
    SERVICE_RISK,
    SIGNATURE,
    files_of,
    read_at_most,
    require_whole,
    verified,
)
from projector.bundle.keys import Signature, SigningKey, TrustedKeys
from projector.bundle.refusals import refusal
from projector.bundle.sign import signed_by, write_signature
from projector.codec.risk import RiskModel
from projector.hub.space import LatentSpace, require_target
from projector.models.foreign import in_words
from projector.serving.backends import CloudFiles
from protos.errors import BridgeError, BundleFormatError, FrameMalformedError
from protos.layout import KVLayout
from protos.process.files import write_files

HUB, SPACE_FILE = "hub.json", "space.safetensors"
FORMAT = 1
_FILES = (CLOUD, GRAPH, SPACE_FILE, CERTIFICATE)
_FIELDS = {"format", "kind", "id", "version", "target_layout", "files", "members", "digest"}
_SIGNED = b"neural-bridge hub 1\n"  # prefix: a hub's signature is valid for nothing else
_MAX_ID = 256
_MAX_MEMBERS = 1024
_MAX_FILE_BYTES = 1 << 31


@dataclass(frozen=True)
class Member:
    """A bundle that a hub was made from.

    Attributes:
        id: its name.
        version: its version.
        digest: SHA-256 hex over it.
        source_fingerprint: of its edge model's layout.
    """

    id: str
    version: int
    digest: str
    source_fingerprint: str


@dataclass(frozen=True)
class HubInfo:
    """The contents of `hub.json`.

    Attributes:
        id: name of the hub.
        version: increases with every hub of the same id.
        digest: SHA-256 hex over the description, and through it over all files.
        target: the large model's layout.
        members: the bundles it was made from.
        files: size in bytes and SHA-256 hex of each file.
    """

    id: str
    version: int
    digest: str
    target: KVLayout
    members: tuple[Member, ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def cloud_half(self) -> tuple[str, str]:
        """As `BundleInfo.cloud_half`; a bundle with the same is of this hub."""
        return self.files[CLOUD][1], self.files[GRAPH][1]


@dataclass(frozen=True)
class Hub:
    """A verified hub that fits the large model at hand. Build it with `Hub.load`.

    Attributes:
        info: the description.
        space: its latent space.
        cloud: the cloud half, as weights and as graph.
        certificate: what was measured.
        path: its folder.
        signer: name of the trusted key that signed it; None if trusted keys were not required.
        service_risk: the service's guard; None without one.
    """

    info: HubInfo
    space: LatentSpace
    cloud: CloudFiles = field(repr=False)
    certificate: Mapping[str, Any] = field(repr=False)
    path: Path
    signer: str | None = None
    service_risk: RiskModel | None = None

    @classmethod
    def peek(cls, path: str | Path) -> HubInfo:
        """Read and verify only the description.

        Raises:
            BundleMissingError, BundleFormatError, BundleCorruptError: as `load`.
        """
        folder = Path(path)
        return _describe(read_at_most(files_of(folder), folder, HUB), folder)

    @classmethod
    def load(cls, path: str | Path, target: KVLayout, trusted: TrustedKeys | None = None) -> Hub:
        """Load a hub for the large model that is running, and verify every byte.

        Args:
            path: its folder.
            target: the large model's live layout.
            trusted: require a signature by one of these keys; as for bundles.

        Raises:
            BundleMissingError: the folder or one of its files is missing.
            BundleFormatError: another format, or parts that contradict each other.
            BundleCorruptError: a size or digest differs: truncated or altered.
            BundleLayoutError: it is of another large model.
            SignatureError: unsigned, signed by another key, or altered since.
        """
        folder = Path(path)
        read = files_of(folder)
        description = read_at_most(read, folder, HUB)
        _, signer = signed_by(read, folder, description, trusted, _SIGNED)
        info = _describe(description, folder)
        blobs = {name: verified(read, folder, name, *info.files[name]) for name in info.files}
        require_whole(blobs[GRAPH], folder)
        try:
            space = LatentSpace.from_bytes(blobs[SPACE_FILE])
            risk = RiskModel.from_bytes(blobs[SERVICE_RISK]) if SERVICE_RISK in blobs else None
        except BridgeError as error:
            raise BundleFormatError(f"{folder}: {error}") from error
        if space.target_fingerprint != info.target.fingerprint:
            raise BundleFormatError(f"{folder}: {SPACE_FILE} is of another large model than {HUB}")
        require_target(space, target)
        return cls(
            info=info,
            space=space,
            cloud=CloudFiles(blobs[CLOUD], blobs[GRAPH], info.digest),
            certificate=parse_object(blobs[CERTIFICATE], folder / CERTIFICATE),
            path=folder,
            signer=signer,
            service_risk=risk,
        )


def write_hub(
    path: str | Path,
    *,
    id: str,
    version: int,
    target: KVLayout,
    space: LatentSpace,
    cloud: CloudFiles,
    members: Sequence[Member],
    certificate: Mapping[str, Any],
    service_risk: RiskModel | None = None,
) -> HubInfo:
    """Write an unsigned hub, whole or not at all; files of an earlier one are replaced.

    Args:
        path: a folder, created if missing.
        id: name of the hub.
        version: increases with each hub of the same id.
        target: the large model's layout.
        space: the latent space.
        cloud: the cloud half.
        members: the bundles it was made from.
        certificate: any JSON-serialisable value.
        service_risk: the service's guard.

    Raises:
        BundleFormatError: the parts contradict each other.
        DiskFullError: there is no room.
        ConfigError: the folder cannot be written for another reason.
    """
    folder = Path(path)
    if space.target_fingerprint != target.fingerprint:
        raise BundleFormatError("the latent space is of another large model")
    require_whole(cloud.graph, folder)
    told = json.dumps(certificate, indent=2, sort_keys=True, allow_nan=False) + "\n"
    contents = {
        CLOUD: cloud.weights,
        GRAPH: cloud.graph,
        SPACE_FILE: space.to_bytes(),
        CERTIFICATE: told.encode(),
    }
    if service_risk is not None:
        contents[SERVICE_RISK] = service_risk.to_bytes()
    plain: dict[str, Any] = {
        "format": FORMAT,
        "kind": "hub",
        "id": id,
        "version": version,
        "target_layout": json.loads(target.to_json()),
        "files": {
            name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            for name, blob in contents.items()
        },
        "members": [asdict(member) for member in members],
    }
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    description = canonical_json(plain)
    info = _describe(description, folder)
    gone = (HUB, SIGNATURE, *(name for name in (SERVICE_RISK,) if name not in contents))
    write_files(folder, {**contents, HUB: description}, gone=gone)
    return info


def sign_hub(path: str | Path, key: SigningKey) -> Signature:
    """Verify a hub's bytes, then sign it; replaces an earlier signature.

    Raises:
        BundleMissingError, BundleFormatError, BundleCorruptError, DiskFullError: as for bundles.
    """
    folder = Path(path)
    read = files_of(folder)
    description = read_at_most(read, folder, HUB)
    info = _describe(description, folder)
    for name in info.files:
        verified(read, folder, name, *info.files[name])
    return write_signature(folder, _SIGNED + description, key)


def _describe(blob: bytes, folder: Path) -> HubInfo:
    """Parse the bytes of `hub.json` once they are verified and canonical."""
    file = folder / HUB
    plain = parse_object(blob, file)
    digest = plain.get("digest")
    rest = {key: value for key, value in plain.items() if key != "digest"}
    if digest != hashlib.sha256(canonical_json(rest)).hexdigest():
        raise refusal("602.5", f"{file} does not match its own digest: altered")
    if blob != canonical_json(plain):
        raise refusal("602.6", f"{file} is not in canonical form: altered")
    if set(plain) != _FIELDS or plain["format"] != FORMAT or plain["kind"] != "hub":
        raise BundleFormatError(f"{file} has the fields {sorted(plain)}")
    try:
        target = KVLayout.from_json(json.dumps(plain["target_layout"]))
        files = {
            str(name): (_integer(entry["bytes"]), str(entry["sha256"]))
            for name, entry in plain["files"].items()
        }
        members = tuple(
            Member(
                _text(one["id"]),
                _integer(one["version"]),
                _text(one["digest"]),
                _text(one["source_fingerprint"]),
            )
            for one in plain["members"][:_MAX_MEMBERS]
        )
        name, version = _text(plain["id"]), _integer(plain["version"])
        if set(files) - {SERVICE_RISK} != set(_FILES):
            raise ValueError(f"its files are {sorted(files)}")
        if any(not 0 < size <= _MAX_FILE_BYTES for size, _ in files.values()) or not members:
            raise ValueError("a file of an impossible size, or no member")
    except (FrameMalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleFormatError(f"{file}: {in_words(error)}") from error
    return HubInfo(name, version, str(digest), target, members, files)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a whole number of 0 or more")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_ID or not value.isprintable():
        raise ValueError(f"{value!r} is not a printable text of 1 to {_MAX_ID} characters")
    return value
