"""What training leaves and serving loads: a folder in which every bit is accounted for.

Knows: the files, their digests, the two layouts, the operating points. Does not know: how the map
was trained, sockets, models. There is no plain load: both live layouts are required.

| File | Holds |
|---|---|
| `bundle.json` | canonical JSON; `digest` covers its other fields, they cover the other files |
| `edge.safetensors` | the `Encoder` |
| `cloud.safetensors` | the `CloudHalf` |
| `cloud.onnx` | the same as a graph |
| `certificate.json` | what was measured of this bundle |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from projector import backends
from projector.backends import Backend, CloudFiles
from projector.encoder import Encoder
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    FrameMalformedError,
)
from protos.frame import OperatingPoint, points_from_json, points_to_json
from protos.layout import KVLayout, read_json

FORMAT = 1
DESCRIPTION = "bundle.json"
EDGE, CLOUD, GRAPH, CERTIFICATE = (
    "edge.safetensors",
    "cloud.safetensors",
    "cloud.onnx",
    "certificate.json",
)
FILES = (EDGE, CLOUD, GRAPH, CERTIFICATE)

_MAX_DESCRIPTION_BYTES = 1 << 20
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
    """What `bundle.json` says.

    Attributes:
        id: name of the bundle.
        version: counts up with every training of the same id.
        digest: SHA-256 hex over the description, hence over everything.
        source: the edge model's layout.
        target: the cloud model's layout.
        rank: numbers per latent.
        points: the operating points.
        default_point: index of the one to start with.
        ladder: indices, from the cheapest to the most faithful.
        files: per file its size in bytes and SHA-256 hex.
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


@dataclass(frozen=True)
class Bundle:
    """A verified bundle that fits the models at hand. Build it with `Bundle.load`.

    Attributes:
        info: the description.
        encoder: the edge half.
        cloud: the cloud half, both forms.
        certificate: what was measured.
        path: where it lies.
    """

    info: BundleInfo
    encoder: Encoder
    cloud: CloudFiles = field(repr=False)
    certificate: Mapping[str, Any] = field(repr=False)
    path: Path

    @property
    def digest(self) -> str:
        """SHA-256 hex that stands for the whole bundle."""
        return self.info.digest

    @classmethod
    def peek(cls, path: str | Path) -> BundleInfo:
        """Read and verify the description only, to find out which models a bundle is for.

        Raises:
            BundleMissingError: there is no bundle.
            BundleFormatError: it is of another format version.
            BundleCorruptError: the description was altered.
        """
        folder = Path(path)
        return _describe(_read(folder, DESCRIPTION, _MAX_DESCRIPTION_BYTES), folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        source: KVLayout | str,
        target: KVLayout | str,
        version: int | None = None,
    ) -> Bundle:
        """Load a bundle for the two models that are running, verifying every byte.

        Args:
            path: the bundle's folder.
            source: the edge model's live layout, or its fingerprint as negotiated.
            target: the cloud model's live layout, or its fingerprint as the engine reports it.
            version: require this version.

        Raises:
            BundleMissingError: the folder or one of its files is missing.
            BundleFormatError: another format, or parts that contradict each other.
            BundleCorruptError: a size or digest differs: truncated or altered.
            BundleLayoutError: it was trained for another source or target model.
            BundleVersionError: it is not of the required version.
        """
        folder = Path(path)
        info = cls.peek(folder)
        _require_layout(info, "source", info.source, source)
        _require_layout(info, "target", info.target, target)
        if version is not None and info.version != version:
            raise BundleVersionError(
                f"bundle '{info.id}' in {folder} is version {info.version}, "
                f"version {version} is required"
            )
        blobs = {name: _verified(folder, name, *info.files[name]) for name in FILES}
        encoder = Encoder.from_bytes(blobs[EDGE])
        theirs = (encoder.source_fingerprint, encoder.state_dim, encoder.rank, encoder.points)
        ours = (info.source.fingerprint, info.source.state_dim, info.rank, info.points)
        if theirs != ours:
            raise BundleFormatError(
                f"{folder}: {EDGE} and {DESCRIPTION} disagree on the source, rank or points"
            )
        certificate = _parse(blobs[CERTIFICATE], folder / CERTIFICATE)
        return cls(
            info=info,
            encoder=encoder,
            cloud=CloudFiles(weights=blobs[CLOUD], graph=blobs[GRAPH]),
            certificate=certificate,
            path=folder,
        )

    def backend(self, name: str = "onnxruntime", threads: int = 1, device: str = "cpu") -> Backend:
        """Open the cloud half.

        Raises:
            ConfigError: no such backend, or what it needs is missing.
            BundleFormatError: it cannot run the cloud half.
        """
        made = backends.get(name)
        return made(self.cloud, self.info.target, self.info.rank, threads=threads, device=device)


def write_bundle(
    path: str | Path,
    *,
    id: str,
    version: int,
    source: KVLayout,
    target: KVLayout,
    encoder: Encoder,
    cloud: CloudFiles,
    certificate: Mapping[str, Any],
    default_point: int,
    ladder: Sequence[int] | None = None,
) -> BundleInfo:
    """Write a bundle; the description goes last, so that a half-written bundle is refused.

    Args:
        path: a folder, made if need be; files of an earlier bundle in it are replaced.
        id: name of the bundle.
        version: counts up.
        source: the edge model's layout.
        target: the cloud model's layout.
        encoder: the edge half.
        cloud: the cloud half, as weights and as graph.
        certificate: anything JSON can hold.
        default_point: index of the operating point to start with.
        ladder: indices from the cheapest to the most faithful; by default in the encoder's order.

    Raises:
        BundleFormatError: the parts contradict each other.
    """
    if encoder.source_fingerprint != source.fingerprint or encoder.state_dim != source.state_dim:
        raise BundleFormatError("the encoder was made for another source layout")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    text = json.dumps(certificate, indent=2, sort_keys=True, allow_nan=False) + "\n"
    contents = {
        EDGE: encoder.to_bytes(),
        CLOUD: cloud.weights,
        GRAPH: cloud.graph,
        CERTIFICATE: text.encode(),
    }
    for name, blob in contents.items():
        _write(folder / name, blob)
    plain: dict[str, Any] = {
        "format": FORMAT,
        "id": id,
        "version": version,
        "source_layout": json.loads(source.to_json()),
        "target_layout": json.loads(target.to_json()),
        "rank": encoder.rank,
        "files": {
            name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            for name, blob in contents.items()
        },
        "operating_points": json.loads(points_to_json(encoder.points)),
        "default_point": default_point,
        "ladder": list(ladder) if ladder is not None else [p.index for p in encoder.points],
    }
    plain["digest"] = hashlib.sha256(_canonical(plain)).hexdigest()
    description = _canonical(plain)
    info = _describe(description, folder)
    _write(folder / DESCRIPTION, description)
    return info


def _canonical(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write(path: Path, blob: bytes) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(blob)
    os.replace(draft, path)


def _read(folder: Path, name: str, most: int) -> bytes:
    file = folder / name
    try:
        with file.open("rb") as stream:
            blob = stream.read(most + 1)
    except OSError as error:
        raise BundleMissingError(f"no bundle file {file}: {error.strerror}") from error
    if len(blob) > most:
        raise BundleCorruptError(f"{file} is larger than the {most} bytes it should have at most")
    return blob


def _verified(folder: Path, name: str, size: int, digest: str) -> bytes:
    blob = _read(folder, name, size)
    if len(blob) != size:
        raise BundleCorruptError(f"{folder / name} has {len(blob)} of {size} bytes: truncated")
    if hashlib.sha256(blob).hexdigest() != digest:
        raise BundleCorruptError(f"{folder / name} does not match its digest: altered")
    return blob


def _parse(blob: bytes, file: Path) -> dict[str, Any]:
    try:
        plain = read_json(blob, len(blob), file.name)
    except FrameMalformedError as error:
        raise BundleCorruptError(f"{file}: {error}") from error
    if not isinstance(plain, dict):
        raise BundleFormatError(f"{file} must hold a JSON object")
    return plain


def _describe(blob: bytes, folder: Path) -> BundleInfo:
    file = folder / DESCRIPTION
    plain = _parse(blob, file)
    if plain.get("format") != FORMAT and isinstance(plain.get("format"), int):
        raise BundleFormatError(
            f"{file} is of format {plain['format']}, this version reads {FORMAT}"
        )
    digest = plain.get("digest")
    rest = {key: value for key, value in plain.items() if key != "digest"}
    if digest != hashlib.sha256(_canonical(rest)).hexdigest() or blob != _canonical(plain):
        raise BundleCorruptError(f"{file} does not match its own digest: altered")
    if set(plain) != _FIELDS:
        raise BundleFormatError(f"{file} has the fields {sorted(plain)}")
    try:
        source = KVLayout.from_json(json.dumps(plain["source_layout"]))
        target = KVLayout.from_json(json.dumps(plain["target_layout"]))
        points = points_from_json(json.dumps(plain["operating_points"]))
        files = {
            str(name): (_integer(entry["bytes"]), str(entry["sha256"]))
            for name, entry in plain["files"].items()
        }
        version, rank = _integer(plain["version"]), _integer(plain["rank"])
        default = _integer(plain["default_point"])
        ladder = tuple(_integer(index) for index in plain["ladder"])
    except (FrameMalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleFormatError(f"{file}: {error}") from error
    known = {point.index for point in points}
    if default not in known or not set(ladder) <= known:
        raise BundleFormatError(f"{file}: its default point or ladder names an unknown point")
    if set(files) != set(FILES) or any(not 0 < s <= _MAX_FILE_BYTES for s, _ in files.values()):
        raise BundleFormatError(f"{file} must list {', '.join(FILES)} with their sizes")
    return BundleInfo(
        id=str(plain["id"]),
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


def _require_layout(info: BundleInfo, side: str, trained: KVLayout, live: KVLayout | str) -> None:
    fingerprint = live if isinstance(live, str) else live.fingerprint
    if fingerprint == trained.fingerprint:
        return
    detail = ""
    if isinstance(live, KVLayout):
        ours, theirs = (json.loads(layout.to_json()) for layout in (trained, live))
        differing = [name for name in ours if ours[name] != theirs[name]]
        detail = "; they differ in " + ", ".join(differing)
    raise BundleLayoutError(
        f"bundle '{info.id}' expects the {side} {trained.model_id} (layout "
        f"{trained.fingerprint[:12]}, d={trained.state_dim}), the running {side} has layout "
        f"{fingerprint[:12]}{detail}"
    )
