"""The file with a device's identity: owner-only, written atomically.

Key, certificate and roots are in one file, so no crash can leave a key without its certificate.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.identity.identity import Identity
from protos.errors import CertificateError
from protos.process.files import drop_drafts, write_file, writing

NAME = "identity.json"
_ROOM_BYTES = 64 << 10
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class IdentityFile:
    """`identity.json` in its own folder under the state directory."""

    path: Path

    @classmethod
    def under(cls, state_dir: Path) -> IdentityFile:
        """The identity's file for a state directory."""
        return cls(state_dir / "identity" / NAME)

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """A value that changes whenever the file is written; None if it does not exist.

        Raises:
            CertificateError: this user may not read the folder.
        """
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    @property
    def age_s(self) -> float:
        """Seconds since it was written, by this device's clock; infinite if it does not exist."""
        try:
            return time.time() - self.path.stat().st_mtime
        except OSError:
            return float("inf")

    def load(self) -> Identity | None:
        """Read the identity; None if this device is not enrolled.

        Raises:
            CertificateError: others may read or replace it, it cannot be read, or it is damaged.
        """
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        with os.fdopen(number, "rb") as file:
            self._check_owner_only(os.fstat(number))
            raw = file.read(_LARGEST_BYTES)
        return Identity.from_json(raw.decode(errors="replace"), self.path)

    def save(self, identity: Identity) -> None:
        """Store an identity; the old one stays until the new one is on the disk.

        Raises:
            DiskFullError: there is no room.
            ConfigError: the folder cannot be written.
        """
        with writing(self.path):
            self._folder()
            write_file(self.path, identity.to_json().encode(), 0o600)
        drop_drafts(self.path.parent)  # they hold keys

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Reserve disk space for `save` before a one-time code is used up.

        Raises:
            DiskFullError: there is no room.
            ConfigError: the folder cannot be written.
        """
        reserve = self.path.with_name(".room.part")
        with writing(self.path):
            self._folder()
            write_file(reserve, bytes(_ROOM_BYTES), 0o600)
        try:
            yield
        finally:
            reserve.unlink(missing_ok=True)

    def _unreadable(self, error: OSError) -> CertificateError:
        return CertificateError(
            f"{self.path} cannot be read: {error.strerror}: run the agent as the user who enrolled "
            "the device"
        )

    def _folder(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(self.path.parent, 0o700)

    def _check_owner_only(self, file: os.stat_result) -> None:
        if not stat.S_ISREG(file.st_mode):
            raise CertificateError(f"{self.path} is no regular file: enrol again with --force")
        if file.st_mode & 0o077:
            raise CertificateError(
                f"{self.path} holds this device's private key, and other users may read it (mode "
                f"{stat.S_IMODE(file.st_mode):o}): chmod 600 it; if anybody else may have read "
                "it, have the device revoked and enrol again"
            )
        folder = self.path.parent.stat().st_mode
        if folder & 0o022:
            raise CertificateError(
                f"{self.path.parent} may be written by other users (mode "
                f"{stat.S_IMODE(folder):o}): chmod 700 it"
            )
