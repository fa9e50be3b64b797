"""Transformed states kept on disk, found by what they were made of.

Knows files, digests and a limit in bytes. Does not know: models, maps.

An entry's key is `SHA-256(source digest, bundle digest, precision)`, so that nothing made by
another map or in another precision is ever found. Entries are written beside their place and
renamed, carry their own digest and are checked when read: two processes may share a folder, and a
damaged entry is a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protos.errors import ConfigError, DiskFullError
from protos.process.files import drop_drafts, write_file

Floats = npt.NDArray[np.float32]

PRECISIONS = ("float32", "float16")
_SUFFIX = ".state"
_DIGEST_BYTES = 32
_HALF_WRITTEN_S = 3600.0


def key_of(source: str, bundle: str, precision: str) -> str:
    """The key of a transformed state.

    Args:
        source: hex digest of the source state.
        bundle: hex digest of the bundle that transformed it.
        precision: one of `PRECISIONS`.

    Raises:
        ConfigError: an unknown precision, or digests that are no SHA-256 in hex.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': expected one of {', '.join(PRECISIONS)}")
    for digest in (source, bundle):
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ConfigError(f"'{digest[:80]}' is no SHA-256 digest in hex")
    return hashlib.sha256(f"{source}\n{bundle}\n{precision}".encode()).hexdigest()


@dataclass(frozen=True)
class StateCache:
    """A folder of transformed states, the least recently used of which go first.

    Attributes:
        folder: made if missing.
        most_bytes: what the entries may take together.
    """

    folder: Path
    most_bytes: int

    def __post_init__(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: a limit of 0 or less, or a folder that cannot be made.
        """
        if self.most_bytes < 1:
            raise ConfigError(f"a cache of {self.most_bytes} bytes: expected 1 or more")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be made: {error.strerror}") from error

    def get(self, source: str, bundle: str, precision: str) -> tuple[Floats, Floats] | None:
        """Keys and values, float32 `[layers, kv_heads, tokens, head_dim]` each; None for a miss."""
        path = self._path(key_of(source, bundle, precision))
        if not path.is_file():  # reading a pipe would wait
            return None
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        body, digest = blob[:-_DIGEST_BYTES], blob[-_DIGEST_BYTES:]
        try:
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("altered")
            arrays = load(body)
            keys, values = arrays["keys"], arrays["values"]
        except (SafetensorError, ValueError, KeyError):
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # another process may have dropped it by now
            os.utime(path)
        return keys.astype(np.float32), values.astype(np.float32)

    def put(self, source: str, bundle: str, precision: str, keys: Floats, values: Floats) -> None:
        """Keep keys and values; an entry larger than the whole limit is not kept.

        Raises:
            DiskFullError: it could not be written; nothing half-written is left.
        """
        path = self._path(key_of(source, bundle, precision))
        dtype = np.float16 if precision == "float16" else np.float32
        arrays = {"keys": keys.astype(dtype), "values": values.astype(dtype)}
        body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        blob = body + hashlib.sha256(body).digest()
        if len(blob) > self.most_bytes:
            return
        self._make_room(len(blob))
        try:
            write_file(path, blob, mode=0o600)
            self._make_room(0)  # another process may have filled it meanwhile
        except OSError as error:
            raise DiskFullError(f"{path} could not be written: {error}") from error

    def size_bytes(self) -> int:
        """What the entries take together."""
        return sum(size for _, size, _ in self._entries())

    def _make_room(self, wanted: int) -> None:
        drop_drafts(self.folder)
        entries = sorted(self._entries())
        held = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if held + wanted <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """When each was last used, its size and its file."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # dropped by another process
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"
