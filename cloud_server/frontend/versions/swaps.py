"""Notices that a bundle's folder now holds another bundle than the one that is served."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence

from cloud_server.frontend.versions.plans import Wanted
from projector.bundle.load import Bundle
from protos.errors import BridgeError
from protos.process.logs import Logger

_LOOK_S = 2.0


class Swaps:
    """Watches the folders of the versions that are served.

    Args:
        log: a bound logger.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._told: dict[str, str] = {}
        self._looked_at = -math.inf

    async def look(self, served: Sequence[Wanted]) -> None:
        """Log once for each folder whose bundle was replaced; looks every 2 seconds at most."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        for version, there in await asyncio.to_thread(_swapped, served):
            if self._told.get(version.path) != there:
                self._told[version.path] = there
                self._log.warning(
                    "a bundle was replaced on disk; what was loaded is served on (SIGHUP or "
                    "cloud-server bundles add takes up the new one)",
                    path=version.path,
                    served=version.digest,
                    there=there,
                )


def _swapped(versions: Sequence[Wanted]) -> list[tuple[Wanted, str]]:
    """The versions whose folder now holds another bundle, with the new digest.

    The digest is empty while the folder holds no readable bundle.
    """
    found = []
    for version in versions:
        there = ""
        with contextlib.suppress(BridgeError):
            there = Bundle.peek(version.path).digest
        if there != version.digest:
            found.append((version, there))
    return found
