"""Tests that are coroutines, and waiting for what another process does."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait, outside a loop, until something holds.

    Raises:
        TimeoutError: it does not.
    """
    end_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end_s:
            raise TimeoutError("it does not hold")
        time.sleep(0.02)
