"""Makes updates, also hostile ones that the maker refuses to make."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projector.bundle.keys import SigningKey
from protos.update import FORMAT, MANIFEST, SIGNATURE, SIGNED

MODEL = {"model/export.json": b"{}", "model/graphs/vision.onnx": b"\0" * 3000}


def listed(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
        for name, blob in files.items()
    }


def write_update(
    path: Path,
    key: SigningKey,
    contents: Mapping[str, bytes] = MODEL,
    held: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    signature: bytes | None = None,
    **fields: Any,
) -> Path:
    """Sign a list of `contents`, and put `held` (the same by default) into the archive."""
    plain = {"format": FORMAT, "number": 2, "version": "v2", "machine": "any", "python": "any"}
    plain |= {"files": listed(contents)} | fields
    blob = (json.dumps(plain, sort_keys=True) + "\n").encode()
    signed = json.dumps(asdict(key.sign(SIGNED + blob))).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(MANIFEST, blob)
        archive.writestr(SIGNATURE, signed if signature is None else signature)
        for name, content in (contents if held is None else held).items():
            archive.writestr(name, content)
    return path
