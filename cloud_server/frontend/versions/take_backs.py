"""Versions that this front end takes back; the database is told as soon as it can be written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from cloud_server.frontend.versions.plans import Plan, Wanted
from protos.errors import StateError
from protos.process.logs import Logger


class TakeBacks:
    """Rolls versions back. Until the database knows, they are rolled back in this front end.

    Args:
        plan: the wanted versions.
        log: a bound logger.
    """

    def __init__(self, plan: Plan, log: Logger) -> None:
        self._plan, self._log = plan, log
        self._todo: dict[str, tuple[int, str]] = {}

    async def add(self, version: Wanted, why: str) -> None:
        """Roll a version back, now or as soon as the database can be written."""
        self._todo[version.digest] = version.order_no, why
        try:
            await self.settle()
        except StateError as error:
            self._log.error("a version could not be taken back yet", cause=error.message)

    async def settle(self) -> None:
        """Tell the database what it does not know yet.

        Raises:
            StateError: it cannot be written.
        """
        for digest, (_, why) in list(self._todo.items()):
            await asyncio.to_thread(self._plan.take_back, digest, why)
            self._todo.pop(digest, None)

    def applied(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """The wanted versions as if the database knew; a later change by somebody else wins."""
        for one in wanted:
            if one.digest in self._todo and self._todo[one.digest][0] != one.order_no:
                del self._todo[one.digest]
        return [
            replace(one, wanted="rolled_back") if one.digest in self._todo else one
            for one in wanted
        ]
