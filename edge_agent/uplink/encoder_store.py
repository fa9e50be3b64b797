"""Encoders kept on disk under their digest, so that a device fetches each one once.

A file that does not match its name is never handed out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protos.errors import BundleCorruptError, ConfigError, DiskFullError
from protos.process.files import NO_ROOM, drop_drafts, expanded, write_file

_NO_ROOM = (*NO_ROOM, errno.EROFS, errno.EIO)
_KEPT = 8
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EncoderStore:
    """A directory of files named `<sha256>.safetensors`; without one, encoders stay in memory."""

    directory: Path | None
    _held: dict[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> EncoderStore:
        """A directory in the user's home; memory if none can be written."""
        base = environ.get("XDG_STATE_HOME") or "~/.local/state"
        try:
            directory = expanded(Path(base)) / "neural-bridge" / "edge"
            directory.mkdir(parents=True, exist_ok=True)
        except (ConfigError, OSError):
            return cls(None)
        return cls(directory if os.access(directory, os.W_OK | os.X_OK) else None)

    def get(self, digest: str) -> bytes | None:
        """Return the blob of that digest, or None if it is absent or damaged on disk."""
        if self.directory is None:
            return self._held.get(digest)
        path = self._path(self.directory, digest)
        if not path.is_file():  # reading a pipe would block
            return None
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(blob).hexdigest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `_prune` takes this as the time of last use
        return blob

    def put(self, digest: str, blob: bytes) -> None:
        """Check the blob against its digest and keep it (written aside, then renamed).

        The seven other encoders used last are kept; older ones and half-written files are removed.

        Raises:
            BundleCorruptError: the blob has another SHA-256.
            DiskFullError: there is no room.
            ConfigError: the directory cannot be written.
        """
        actual = hashlib.sha256(blob).hexdigest()
        if actual != digest:
            raise BundleCorruptError(
                f"the encoder arrived with SHA-256 {actual[:12]}…, the server named "
                f"{digest[:12]}…: fetch it again"
            )
        directory = self.directory
        if directory is None:
            self._held[digest] = blob
            return
        path = self._path(directory, digest)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_file(path, blob, mode=0o600)
            self._prune(directory, path)
        except OSError as error:
            kind = DiskFullError if error.errno in _NO_ROOM else ConfigError
            raise kind(
                f"state_dir {directory} cannot be written: {error.strerror or error}: give "
                "--state-dir, a folder that this user may write"
            ) from error

    def _prune(self, directory: Path, newest: Path) -> None:
        drop_drafts(directory)
        others = (path for path in directory.glob("*.safetensors") if path != newest)
        ages = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in ages[_KEPT - 1 :]:
            path.unlink(missing_ok=True)

    @staticmethod
    def _path(directory: Path, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BundleCorruptError(f"{digest!r} is not a SHA-256 digest in hexadecimal")
        return directory / f"{digest}.safetensors"
