"""A checkpoint's calibrated confidence: `edge_confidence.json` beside its weights.

An edge export carries its own in `export.json`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from projector.codec.confidence import Confidence
from projector.models.exported.manifest import CalibratedConfidence
from protos.errors import ModelError
from protos.process.files import write_file, writing

NAME = "edge_confidence.json"
_LONGEST_BYTES = 1 << 20


class _Stored(BaseModel):
    """The file.

    Attributes:
        fingerprint: of the cache layout of the checkpoint that it was learnt with.
        confidence: what was learnt.
    """

    model_config = ConfigDict(extra="forbid")
    fingerprint: str
    confidence: CalibratedConfidence


def write_confidence(folder: Path, fingerprint: str, learnt: CalibratedConfidence) -> None:
    """Put a confidence beside a checkpoint.

    Raises:
        DiskFullError: there is no room.
    """
    stored = _Stored(fingerprint=fingerprint, confidence=learnt)
    with writing(folder / NAME):
        write_file(folder / NAME, stored.model_dump_json(indent=1).encode())


def read_confidence(folder: Path, fingerprint: str) -> Confidence | None:
    """The confidence of a checkpoint; None if it has none.

    Raises:
        ModelError: the file is damaged, or was learnt with another checkpoint.
    """
    file = folder / NAME
    try:
        with file.open("rb") as opened:
            raw = opened.read(_LONGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error
    again = f"remove it, or run projector calibrate-edge {folder} PICTURES again"
    try:
        stored = _Stored.model_validate_json(raw)
    except ValidationError as error:
        raise ModelError(f"{file} is no calibrated confidence: {again}") from error
    if stored.fingerprint != fingerprint:
        raise ModelError(f"{file} was learnt with another checkpoint: {again}")
    return Confidence.of(stored.confidence.weights, stored.confidence.bias)
