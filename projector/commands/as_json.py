"""A layout and a bundle as commands print them with `--json`."""

from __future__ import annotations

import json
from typing import Any

from projector.bundle.load import Bundle
from protos.layout import KVLayout


def layout_json(layout: KVLayout) -> dict[str, Any]:
    """A layout as JSON, with what follows from it."""
    return {
        **json.loads(layout.to_json()),
        "fingerprint": layout.fingerprint,
        "tokens": layout.tokens,
        "state_dim": layout.state_dim,
        "raw_fp8_bytes_per_picture": layout.tokens * layout.state_dim,
    }


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """What a bundle holds, and who signed it, as JSON."""
    info = bundle.info
    return {
        "path": str(bundle.path),
        "id": info.id,
        "version": info.version,
        "digest": info.digest,
        "rank": info.rank,
        "source_layout": layout_json(info.source),
        "target_layout": layout_json(info.target),
        "operating_points": [json.loads(point.to_json()) for point in info.points],
        "default_point": info.default_point,
        "ladder": list(info.ladder),
        "files": {
            name: {"bytes": size, "sha256": digest} for name, (size, digest) in info.files.items()
        },
        "signed_by": bundle.key,
        "signer": bundle.signer,
    }
