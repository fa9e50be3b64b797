"""Encoders kept on disk under their digest, so that a device fetches each one once.

A file that does not match its name is never handed out. While an encoder arrives it grows in
`<sha256>.part`; after a break, a restart or a kill the download goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.uplink.encoder_part import EncoderPart, require_digest
from edge_agent.uplink.part_file import PartFile
from projector.codec.file_format import MAX_BYTES
from protos.errors import BundleCorruptError, ConfigError, DiskFullError
from protos.process.files import NO_ROOM, drop_drafts, expanded, write_file
from protos.process.folders import open_file

_NO_ROOM = (*NO_ROOM, errno.EROFS, errno.EIO)
_KEPT = 8
_PARTS = 2
"""An encoder's part, and that of its feedback's decoder or of another server's encoder."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EncoderStore:
    """A directory of files named `<sha256>.safetensors`; without one, encoders stay in memory."""

    directory: Path | None
    _held: dict[str, bytes] = field(default_factory=dict, repr=False)
    _begun: dict[str, bytes] = field(default_factory=dict, repr=False)  # one part at most

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
        try:
            with open_file(path) as file:
                blob = file.read(MAX_BYTES + 1)
        except OSError:
            return None
        if hashlib.sha256(blob).hexdigest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `_prune` takes this as the time of last use
        return blob

    @contextlib.contextmanager
    def part(self, digest: str) -> Iterator[EncoderPart]:
        """What has arrived of an encoder; what is added to it stays for the next attempt.

        On the disk, for the two encoders that were begun last. In memory, for one, if it cannot be
        written or another download has the file.

        Raises:
            BundleCorruptError: `digest` is no digest.
        """
        begun = self._begun.pop(digest, b"")
        self._begun.clear()
        part = EncoderPart(digest, begun, self._part_file(digest), MAX_BYTES)
        try:
            yield part
        finally:
            if part.file is not None and part.data:
                part.file.close()
            elif part.file is not None:
                part.remove_file()
            elif part.data and not part.kept:
                self._begun[digest] = bytes(part.data)

    def keep(self, part: EncoderPart) -> None:
        """Keep an encoder that has arrived whole, see `put`."""
        if self.directory is None or part.file is None:
            self.put(part.digest, bytes(part.data))
            part.kept = True
            return
        require_digest(part.digest, part.data)
        path = self._path(self.directory, part.digest)
        with self._writing(self.directory):
            try:
                part.file.become(path)
            except FileNotFoundError:  # somebody removed it
                write_file(path, bytes(part.data), mode=0o600)
            self._prune(self.directory, path)

    def put(self, digest: str, blob: bytes) -> None:
        """Check the blob against its digest and keep it (written aside, then renamed).

        The seven other encoders used last are kept; older ones and half-written files are removed.

        Raises:
            BundleCorruptError: the blob has another SHA-256.
            DiskFullError: there is no room.
            ConfigError: the directory cannot be written.
        """
        require_digest(digest, blob)
        directory = self.directory
        if directory is None:
            self._held[digest] = blob
            return
        path = self._path(directory, digest)
        with self._writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            write_file(path, blob, mode=0o600)
            self._prune(directory, path)

    @staticmethod
    @contextlib.contextmanager
    def _writing(directory: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = DiskFullError if error.errno in _NO_ROOM else ConfigError
            raise kind(
                f"state_dir {directory} cannot be written: {error.strerror or error}: give "
                "--state-dir, a folder that this user may write"
            ) from error

    def _part_file(self, digest: str) -> PartFile | None:
        """The open file of a part; None if it cannot be used."""
        if self.directory is None:
            return None
        path = self._path(self.directory, digest).with_suffix(".part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = PartFile(path)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            parts = [one for one in self.directory.glob("*.part") if _DIGEST.fullmatch(one.stem)]
            parts.sort(key=lambda one: one.stat().st_mtime, reverse=True)
            for older in [one for one in parts if one != path][_PARTS - 1 :]:
                older.unlink(missing_ok=True)
        return file

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
