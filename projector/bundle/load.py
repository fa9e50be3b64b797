"""Loads a bundle for the two models that are running, and verifies every byte.

Both live layouts are required; there is no load without them.

| File | Holds |
|---|---|
| `bundle.json` | canonical JSON; `digest` covers its other fields, which cover the other files |
| `edge.safetensors` | the `Encoder` |
| `cloud.safetensors` | the map, both halves |
| `cloud.onnx` | the map's cloud half as a graph |
| `certificate.json` | what was measured of this bundle |
| `reverse_encoder.safetensors` | feedback, for maps that go both ways: the cloud's `Encoder` |
| `reverse_decoder.safetensors` | feedback, for the same maps: the edge's `FeedbackDecoder` |
| `service_risk.safetensors` | the service's guard, a `RiskModel`; optional |
| `canary.json` | the canary set: frames with recorded answers; optional |
| `memory.safetensors` | the basis of long memories, a `MemoryBasis`; optional |
| `signature.json` | if signed: an Ed25519 signature of `bundle.json` |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from projector.bundle.canary import CanarySet
from projector.bundle.describe import BundleInfo, describe, parse_object
from projector.bundle.feedback import Feedback, feedback_in
from projector.bundle.files import (
    CANARY,
    CERTIFICATE,
    CLOUD,
    DESCRIPTION,
    EDGE,
    GRAPH,
    MEMORY,
    SERVICE_RISK,
    Reader,
    files_of,
    read_at_most,
    require_whole,
    verified,
)
from projector.bundle.keys import TrustedKeys
from projector.bundle.refusals import refusal
from projector.bundle.sign import signed_by
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel, feature_count
from projector.memory.basis import MemoryBasis
from projector.serving import backends
from projector.serving.backends import Backend, CloudFiles
from protos.errors import (
    BridgeError,
)
from protos.layout import KVLayout


@dataclass(frozen=True)
class Bundle:
    """A verified bundle that fits the models at hand. Build it with `Bundle.load`.

    Attributes:
        info: the description.
        encoder: the edge half.
        cloud: the cloud half, as weights and as graph.
        certificate: what was measured.
        path: its folder.
        signer: name of the trusted key that signed it; None if trusted keys were not required.
        key: public key of the signer, trusted or not; None if unsigned.
        feedback: both feedback halves; None for a map that goes one way only.
        service_risk: the service's guard; None without one (see `projector guard`).
        canary: the canary set; None without one.
        memory: the basis of long memories; None without one (see `projector memory`).
    """

    info: BundleInfo
    encoder: Encoder
    cloud: CloudFiles = field(repr=False)
    certificate: Mapping[str, Any] = field(repr=False)
    path: Path
    signer: str | None = None
    key: str | None = None
    feedback: Feedback | None = None
    service_risk: RiskModel | None = None
    canary: CanarySet | None = field(default=None, repr=False)
    memory: MemoryBasis | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 hex over the whole bundle."""
        return self.info.digest

    @classmethod
    def peek(cls, path: str | Path) -> BundleInfo:
        """Read and verify only the description, to learn which models a bundle is for.

        Raises:
            BundleMissingError: the bundle is missing.
            BundleFormatError: it has another format version.
            BundleCorruptError: the description was altered.
        """
        folder = Path(path)
        return describe(read_at_most(files_of(folder), folder, DESCRIPTION), folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        source: KVLayout | str,
        target: KVLayout | str,
        version: int | None = None,
        trusted: TrustedKeys | None = None,
    ) -> Bundle:
        """Load a bundle for the two models that are running, and verify every byte.

        Args:
            path: the bundle's folder.
            source: the edge model's live layout, or its negotiated fingerprint.
            target: the cloud model's live layout, or the fingerprint that the engine reports.
            version: require this version.
            trusted: require a signature by one of these keys. Without them a bundle may be
                unsigned, but a signature that exists must still be valid.

        Raises:
            BundleMissingError: the folder or one of its files is missing.
            BundleFormatError: another format, or parts that contradict each other.
            BundleCorruptError: a size or digest differs: truncated or altered.
            BundleLayoutError: it was trained for another source or target model.
            BundleVersionError: it does not have the required version.
            SignatureError: unsigned, signed by another key, or altered since.
        """
        folder = Path(path)
        return cls.load_from(files_of(folder), folder, source, target, version, trusted)

    @classmethod
    def load_from(
        cls,
        read: Reader,
        path: Path,
        source: KVLayout | str,
        target: KVLayout | str,
        version: int | None = None,
        trusted: TrustedKeys | None = None,
    ) -> Bundle:
        """`load` from any reader; each file is read once. Messages call it `path`.

        Raises:
            BridgeError: as `load`.
        """
        description = read_at_most(read, path, DESCRIPTION)
        key, signer = signed_by(read, path, description, trusted)
        info = describe(description, path)
        _require_layout(info, "source", info.source, source)
        _require_layout(info, "target", info.target, target)
        if version is not None and info.version != version:
            raise refusal(
                "302.1",
                f"bundle '{info.id}' in {path} is version {info.version}, "
                f"version {version} is required",
            )
        blobs = {name: verified(read, path, name, *info.files[name]) for name in info.names}
        require_whole(blobs[GRAPH], path)
        encoder = _encoder(blobs[EDGE], info, path)
        return cls(
            info=info,
            encoder=encoder,
            cloud=CloudFiles(blobs[CLOUD], blobs[GRAPH], info.digest),
            certificate=parse_object(blobs[CERTIFICATE], path / CERTIFICATE),
            path=path,
            signer=signer,
            key=key,
            feedback=feedback_in(blobs, info, path),
            service_risk=_service_risk(blobs.get(SERVICE_RISK), info, path),
            canary=_canary(blobs.get(CANARY), info, encoder.tokens, path),
            memory=memory_in(blobs.get(MEMORY), info, path),
        )

    def backend(
        self,
        name: str = "onnxruntime",
        threads: int = 1,
        device: str = "cpu",
        plans: Path | None = None,
    ) -> Backend:
        """Open the cloud half.

        Args:
            name: the backend's name.
            threads: CPU threads.
            device: its device, by the backend's name for it.
            plans: folder for compiled plans; None to keep none.

        Raises:
            ConfigError: the backend is unknown, or lacks something it needs.
            BundleFormatError: it cannot run the cloud half.
        """
        made = backends.get(name)
        return made(
            self.cloud,
            self.info.target,
            self.info.rank,
            threads=threads,
            device=device,
            source=self.sent_layout,
            plans=plans,
        )

    def sharing(self, others: Iterable[Bundle]) -> Bundle:
        """This bundle, holding the cloud half of another one if theirs has the same bytes."""
        for other in others:
            if other.info.cloud_half == self.info.cloud_half:
                return replace(self, cloud=other.cloud)
        return self

    def same_half(self, other: Bundle) -> bool:
        """Whether one backend serves both bundles."""
        mine, theirs = (
            (one.info.cloud_half, one.info.target.fingerprint, one.encoder.tokens, one.info.rank)
            for one in (self, other)
        )
        return mine == theirs

    @property
    def sent_layout(self) -> KVLayout:
        """The edge model's layout, with the grid whose tokens travel."""
        source, grid = self.info.source, self.encoder.grid
        return source if grid is None else replace(source, grid=grid)


def _encoder(blob: bytes, info: BundleInfo, folder: Path) -> Encoder:
    try:
        encoder = Encoder.from_bytes(blob)
    except BridgeError as error:
        raise refusal("604.7", f"{folder / EDGE}: {error}") from error
    theirs = (encoder.source_fingerprint, encoder.state_dim, encoder.rank, encoder.points)
    ours = (info.source.fingerprint, info.source.state_dim, info.rank, info.points)
    same = theirs == ours and encoder.source_tokens == info.source.tokens
    if not same or encoder.text != (info.source.of_text and info.target.of_text):
        raise refusal(
            "604.8", f"{folder}: {EDGE} and {DESCRIPTION} disagree on the source, rank or points"
        )
    return encoder


def _service_risk(blob: bytes | None, info: BundleInfo, folder: Path) -> RiskModel | None:
    if blob is None:
        return None
    try:
        risk = RiskModel.from_bytes(blob)
    except BridgeError as error:
        raise refusal("604.12", f"{folder / SERVICE_RISK}: {error}") from error
    if len(risk.weights) != feature_count(info.rank):
        raise refusal(
            "604.12",
            f"{folder / SERVICE_RISK}: the risk has {len(risk.weights)} features, not "
            f"{feature_count(info.rank)}",
        )
    return risk


def _canary(blob: bytes | None, info: BundleInfo, tokens: int, folder: Path) -> CanarySet | None:
    if blob is None:
        return None
    return CanarySet.from_bytes(blob, tokens, info.points, folder / CANARY)


def _require_layout(info: BundleInfo, side: str, trained: KVLayout, live: KVLayout | str) -> None:
    fitting = (live,) if isinstance(live, str) else live.fingerprints
    if trained.fingerprint in fitting:
        return
    detail, fingerprint = "", fitting[0]
    if isinstance(live, KVLayout):
        ours, theirs = (json.loads(layout.to_json()) for layout in (trained, live))
        differing = [name for name in ours if ours[name] != theirs.get(name)]
        detail = "; they differ in " + ", ".join(differing)
    raise refusal(
        "603.1" if side == "source" else "603.2",
        f"bundle '{info.id}' expects the {side} {trained.model_id} (layout "
        f"{trained.fingerprint[:12]}, d={trained.state_dim}), the running {side} has layout "
        f"{fingerprint[:12]}{detail}",
    )


def memory_in(blob: bytes | None, info: BundleInfo, folder: Path) -> MemoryBasis | None:
    """The basis of long memories from its file's bytes.

    Raises:
        BundleFormatError: the bytes are no basis, or one for other models.
    """
    if blob is None:
        return None
    try:
        basis = MemoryBasis.from_bytes(blob)
        basis.require(info.source.fingerprint, info.target.fingerprint)
        basis.require_layers(info.source)
    except BridgeError as error:
        raise refusal("604.14", f"{folder / MEMORY}: {error}") from error
    return basis
