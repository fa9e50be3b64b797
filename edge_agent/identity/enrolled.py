"""The identity that this process uses; reloaded when its file changes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.service_clock import ServiceClock
from protos.errors import BridgeError, CertificateError


@dataclass
class Enrolled:
    """The current identity of an enrolled device.

    Attributes:
        file: its file. A later `edge-agent enrol` takes effect without a restart.
        clock: the service's clock.
        unsaved: why the newest identity could not be stored; None if it is stored.
    """

    file: IdentityFile
    clock: ServiceClock = field(default_factory=ServiceClock)
    unsaved: BridgeError | None = None
    _now: Identity | None = field(default=None, repr=False)
    _stamp: object = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def read(cls, file: IdentityFile) -> Enrolled | None:
        """Read the identity in a file; None if the file does not exist.

        Raises:
            CertificateError: it is damaged, or others may read it.
        """
        found = file.load()
        return None if found is None else cls(file)

    @property
    def now(self) -> Identity:
        """The newest identity.

        Raises:
            CertificateError: the file is gone, damaged, or others may read it.
        """
        with self._lock:
            stamp = self.file.stamp
            if self._now is None or stamp != self._stamp:
                found = self.file.load()
                if found is None:
                    raise CertificateError(f"{self.file.path} is gone: enrol this device again")
                self._now, self._stamp, self.unsaved = found, stamp, None
            return self._now

    def replace(self, identity: Identity) -> None:
        """Use another identity from now on, and store it.

        If it cannot be stored, it is still used, and `unsaved` says why. Call this again later.
        """
        with self._lock:
            try:
                self.file.save(identity)
                self.unsaved = None
            except BridgeError as error:
                self.unsaved = error
            self._now, self._stamp = identity, self.file.stamp
