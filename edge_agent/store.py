"""Encoders kept on disk under their digest, so that a device fetches each one once.

Knows files and SHA-256; knows nothing of what an encoder holds. A file that does not match its name
is never handed out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from protos.errors import BundleCorruptError, ConfigError, DiskFullError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_KEPT = 8
_HALF_WRITTEN_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EncoderStore:
    """A directory of files named `<sha256>.safetensors`."""

    directory: Path

    def get(self, digest: str) -> bytes | None:
        """Return the blob of that digest, or None where it is absent or damaged on disk."""
        path = self._path(digest)
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(blob).hexdigest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the newest is the one used last
        return blob

    def put(self, digest: str, blob: bytes) -> None:
        """Check the blob against its digest and keep it (written aside, then renamed).

        Of others the newest seven stay, and of what was written half nothing.

        Raises:
            BundleCorruptError: the blob's SHA-256 is another one.
            DiskFullError: there is no room.
            ConfigError: the directory cannot be written.
        """
        actual = hashlib.sha256(blob).hexdigest()
        if actual != digest:
            raise BundleCorruptError(
                f"the encoder arrived with SHA-256 {actual[:12]}…, the server named "
                f"{digest[:12]}…: fetch it again"
            )
        path = self._path(digest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=self.directory, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(blob)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
            except OSError:
                Path(aside).unlink(missing_ok=True)
                raise
            self._prune(path)
        except OSError as error:
            kind = DiskFullError if error.errno in _NO_ROOM else ConfigError
            raise kind(
                f"state_dir {self.directory} cannot be written: {error.strerror or error}"
            ) from error

    def _prune(self, newest: Path) -> None:
        now = time.time()
        for part in self.directory.glob("*.part"):
            if now - part.stat().st_mtime > _HALF_WRITTEN_S:
                part.unlink(missing_ok=True)
        others = (path for path in self.directory.glob("*.safetensors") if path != newest)
        ages = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in ages[_KEPT - 1 :]:
            path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BundleCorruptError(f"{digest!r} is not a SHA-256 digest in hexadecimal")
        return self.directory / f"{digest}.safetensors"
