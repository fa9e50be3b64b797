"""Work that goes on beside the run: one error that nobody foresaw does not end it for a year."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from protos.process.logs import Logger

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 900.0
_RAN_S = 3600.0
"""After a run of so long the pauses are short again."""


async def lasting(
    name: str,
    work: Callable[[], Coroutine[Any, Any, None]],
    log: Logger,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] | None = None,
) -> None:
    """Do work until it ends by itself or is cancelled; after an error begin it anew.

    Args:
        name: of the work, for the log line `NAME_failed`.
        work: begins it.
        log: structured logger.
        sleep: waits that many seconds.
        clock: seconds, monotonic; default: the loop's.
    """
    now = clock or asyncio.get_running_loop().time
    most_s = _FIRST_PAUSE_S
    while True:
        began = now()
        try:
            return await work()
        except Exception as error:
            if now() - began > _RAN_S:
                most_s = _FIRST_PAUSE_S
            pause_s = random.uniform(most_s / 2, most_s)
            log.error(f"{name}_failed", cause=repr(error), pause_s=round(pause_s, 1), exc_info=True)
        await sleep(pause_s)
        most_s = min(_LONGEST_PAUSE_S, 2 * most_s)


@asynccontextmanager
async def beside(
    name: str, work: Callable[[], Coroutine[Any, Any, None]], log: Logger
) -> AsyncIterator[None]:
    """Work that goes on beside the run and ends with it, see `lasting`."""
    task = asyncio.create_task(lasting(name, work, log))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
