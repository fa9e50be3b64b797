"""A bundle's files, and reading one with its size and digest checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from projector.bundle.refusals import refusal
from protos.process.folders import open_file

DESCRIPTION = "bundle.json"
SIGNATURE = "signature.json"
EDGE, CLOUD, GRAPH, CERTIFICATE = (
    "edge.safetensors",
    "cloud.safetensors",
    "cloud.onnx",
    "certificate.json",
)
FILES = (EDGE, CLOUD, GRAPH, CERTIFICATE)
"""Files of every bundle, besides its description."""
FEEDBACK_ENCODER, FEEDBACK_DECODER = "reverse_encoder.safetensors", "reverse_decoder.safetensors"
FEEDBACK_FILES = (FEEDBACK_ENCODER, FEEDBACK_DECODER)
"""More files, if the map goes both ways."""
SERVICE_RISK = "service_risk.safetensors"
"""Optional file: the service's guard."""
CANARY = "canary.json"
"""Optional file: the canary set."""
MEMORY = "memory.safetensors"
"""Optional file: the basis of long memories."""
OPTIONAL = (SERVICE_RISK, CANARY, MEMORY)
EVERY = (*FILES, *FEEDBACK_FILES, *OPTIONAL)
"""Every file that a bundle may have, in their order, besides description and signature."""

Reader = Callable[[str, int], bytes]
"""Takes a file's name and the most bytes to read; returns its bytes or raises `OSError`."""

_MAX_DESCRIPTION_BYTES = 1 << 20


def files_of(folder: Path) -> Reader:
    """A reader of a folder's files."""

    def read(name: str, most: int) -> bytes:
        with open_file(folder / name) as stream:  # does not wait for a pipe
            return stream.read(most)

    return read


def read_at_most(
    read: Reader, folder: Path, name: str, most: int = _MAX_DESCRIPTION_BYTES
) -> bytes:
    """Read a file's bytes.

    Raises:
        BundleMissingError: it cannot be read.
        BundleCorruptError: it has more than `most` bytes.
    """
    try:
        blob = read(name, most + 1)
    except OSError as error:
        raise refusal("601.1", f"no bundle file {folder / name}: {error.strerror}") from error
    if len(blob) > most:
        raise refusal(
            "602.1", f"{folder / name} is larger than the {most} bytes it should have at most"
        )
    return blob


def verified(read: Reader, folder: Path, name: str, size: int, digest: str) -> bytes:
    """Read a file's bytes and check their size and SHA-256.

    Raises:
        BundleMissingError: it cannot be read.
        BundleCorruptError: they differ.
    """
    blob = read_at_most(read, folder, name, size)
    if len(blob) != size:
        raise refusal("602.2", f"{folder / name} has {len(blob)} of {size} bytes: truncated")
    if hashlib.sha256(blob).hexdigest() != digest:
        raise refusal("602.3", f"{folder / name} does not match its digest: altered")
    return blob


def require_whole(graph: bytes, folder: Path) -> None:
    """Refuse a graph that names external data, which no digest of the bundle covers.

    Such a tensor names its file under the key `location` (ONNX, TensorProto.external_data). The raw
    bytes are searched for that word, since a protobuf field can be written in several ways.
    """
    if b"location" in graph:
        raise refusal("604.11", f"{folder / GRAPH} may name a file that is not in the bundle")
