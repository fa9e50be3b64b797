"""Reloads settings while the service runs: at SIGHUP, and when the settings file changes.

Certificates and the database are checked every second; SIGHUP checks them at once. Log level,
default quotas, paths of certificates and the settings of bundles can change; the log names other
settings that changed, because they need a restart. Bundles that were replaced in their folders are
loaded at SIGHUP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from cloud_server import bundle_settings
from cloud_server.frontend.access import access as callers
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.versions.rollout import Rollout
from cloud_server.settings import Settings
from projector.bundle.keys import TrustedKeys
from protos.errors import BridgeError
from protos.process import logs
from protos.process.files import stamp
from protos.process.logs import Logger

CHANGEABLE = ("log_level", *callers.CHANGEABLE, *bundle_settings.CHANGEABLE)
"""Settings that may change while the service runs."""
_LOOK_S = 1.0


class Reload:
    """The part that reloads settings (see `Part`).

    Args:
        settings: the settings at the start.
        again: reads the settings again, from all their sources.
        file: the settings file; None without one.
        access: follows certificates and the database.
        rollout: follows bundles.
        log: a bound logger.
    """

    def __init__(
        self,
        settings: Settings,
        again: Callable[[], Settings],
        file: Path | None,
        access: Access,
        rollout: Rollout,
        log: Logger,
    ) -> None:
        self._now = settings
        self._again, self._file, self._log = again, file, log
        self._access, self._rollout = access, rollout
        self._stamp = stamp(file) if file is not None else None
        self._task: asyncio.Task[None] | None = None

    def now(self) -> None:
        """Check certificates, database and settings now. Call it on the event loop."""
        self._log.info("reloading")
        self._access.reload()
        self._read()

    async def start(self) -> None:
        """See `Part`: follow the settings file."""
        self._task = asyncio.create_task(self._follow())

    async def drain(self) -> None:
        """See `Part`."""

    async def close(self) -> None:
        """See `Part`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _follow(self) -> None:
        while self._file is not None:
            await asyncio.sleep(_LOOK_S)
            if stamp(self._file) != self._stamp:
                self._read()

    def _read(self) -> None:
        self._stamp = stamp(self._file) if self._file is not None else None
        try:
            fresh = self._again()
            fresh.check_exposure()
            if fresh.trusted_keys is not None:
                TrustedKeys.load(fresh.trusted_keys)
        except BridgeError as error:
            self._log.error("settings not taken over", cause=error.message)
            return
        differ = {
            name
            for name in Settings.model_fields
            if getattr(fresh, name) != getattr(self._now, name)
        }
        changed = {name: getattr(fresh, name) for name in sorted(differ.intersection(CHANGEABLE))}
        self._now = self._now.model_copy(update=changed)
        if "log_level" in changed:
            logs.set_level(fresh.log_level)
            self._log.warning("log level changed", least=fresh.log_level)
        self._access.change(self._now)
        self._rollout.change(self._now)
        if differ:
            self._log.warning(
                "settings reloaded",
                changed=list(changed),
                need_restart=sorted(differ.difference(CHANGEABLE)),
            )
