"""Writes a bundle: from its parts, or from another bundle with a new edge half."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from projector.bundle.canary import CanarySet
from projector.bundle.describe import FORMAT, BundleInfo, canonical_json, describe
from projector.bundle.feedback import Feedback, feedback_in
from projector.bundle.files import (
    CANARY,
    CERTIFICATE,
    CLOUD,
    DESCRIPTION,
    EDGE,
    FEEDBACK_DECODER,
    FEEDBACK_ENCODER,
    FEEDBACK_FILES,
    GRAPH,
    MEMORY,
    OPTIONAL,
    SERVICE_RISK,
    SIGNATURE,
    require_whole,
)
from projector.bundle.load import Bundle, memory_in
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel
from projector.memory.basis import MemoryBasis
from projector.serving.backends import CloudFiles
from protos.errors import (
    BundleFormatError,
)
from protos.layout import KVLayout
from protos.points import points_to_json
from protos.process.files import write_files


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
    feedback: Feedback | None = None,
    service_risk: RiskModel | None = None,
    canary: CanarySet | None = None,
    memory: MemoryBasis | None = None,
) -> BundleInfo:
    """Write an unsigned bundle; a half-written one can never be loaded.

    All files are first written next to their final places. Then an earlier bundle's description is
    removed, the files move into place, and the new description moves last.

    Args:
        path: a folder, created if missing; files of an earlier bundle in it are replaced.
        id: name of the bundle.
        version: increases with each bundle of the same id.
        source: the edge model's layout.
        target: the cloud model's layout.
        encoder: the edge half.
        cloud: the cloud half, as weights and as graph.
        certificate: any JSON-serialisable value.
        default_point: index of the operating point to start with.
        ladder: indices from cheapest to most faithful point; by default the encoder's order.
        feedback: both halves, for a map that goes both ways.
        service_risk: the service's guard.
        canary: the canary set.
        memory: the basis of long memories.

    Raises:
        BundleFormatError: the parts contradict each other.
        DiskFullError: there is no room; an earlier bundle in the folder stays whole.
        ConfigError: the folder cannot be written for another reason.
    """
    if encoder.source_fingerprint != source.fingerprint or encoder.state_dim != source.state_dim:
        raise BundleFormatError("the encoder was made for another source layout")
    folder = Path(path)
    require_whole(cloud.graph, folder)
    text = json.dumps(certificate, indent=2, sort_keys=True, allow_nan=False) + "\n"
    contents = {
        EDGE: encoder.to_bytes(),
        CLOUD: cloud.weights,
        GRAPH: cloud.graph,
        CERTIFICATE: text.encode(),
    }
    if feedback is not None:
        contents[FEEDBACK_ENCODER] = feedback.encoder.to_bytes()
        contents[FEEDBACK_DECODER] = feedback.decoder.to_bytes()
    if service_risk is not None:
        contents[SERVICE_RISK] = service_risk.to_bytes()
    if canary is not None:
        contents[CANARY] = canary.to_bytes()
    if memory is not None:
        contents[MEMORY] = memory.to_bytes()
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
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    description = canonical_json(plain)
    info = describe(description, folder)
    feedback_in(contents, info, folder)
    if canary is not None:
        CanarySet.from_bytes(contents[CANARY], encoder.tokens, info.points, folder / CANARY)
    memory_in(contents.get(MEMORY), info, folder)
    optional = (*FEEDBACK_FILES, *OPTIONAL)
    gone = (DESCRIPTION, SIGNATURE, *(name for name in optional if name not in contents))
    write_files(folder, {**contents, DESCRIPTION: description}, gone=gone)
    return info


def write_next(
    bundle: Bundle,
    path: str | Path,
    *,
    encoder: Encoder,
    certificate: Mapping[str, Any] | None = None,
    default_point: int | None = None,
    ladder: Sequence[int] | None = None,
    service_risk: RiskModel | None = None,
    canary: CanarySet | None = None,
    memory: MemoryBasis | None = None,
) -> BundleInfo:
    """Write a bundle again, unsigned, with another edge half and the next version number.

    Args:
        bundle: the bundle to write again.
        path: as in `write_bundle`.
        encoder: as in `write_bundle`.
        certificate: as in `write_bundle`; by default the bundle's own.
        default_point: by default the bundle's own.
        ladder: by default the bundle's own.
        service_risk: none by default, because a guard is valid only for the points that it was
        learnt at.
        canary: as in `write_bundle`; the old bundle's set does not fit another edge half.
        memory: by default the bundle's own.

    Raises:
        BundleFormatError, DiskFullError, ConfigError: as `write_bundle`.
    """
    info = bundle.info
    return write_bundle(
        path,
        id=info.id,
        version=info.version + 1,
        source=info.source,
        target=info.target,
        encoder=encoder,
        cloud=bundle.cloud,
        certificate=bundle.certificate if certificate is None else certificate,
        default_point=info.default_point if default_point is None else default_point,
        ladder=info.ladder if ladder is None else ladder,
        feedback=bundle.feedback,
        service_risk=service_risk,
        canary=canary,
        memory=bundle.memory if memory is None else memory,
    )
