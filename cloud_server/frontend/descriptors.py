"""File descriptors: raise the soft limit, say how many connections fit, keep some in reserve.

    limit = open at start + reserve + metrics and HTTP connections + gRPC connections

Each gRPC connection takes one descriptor. Without a cap, a stranger who connects often enough takes
them all. Then an engine that dies cannot be started again, because that takes pipes and files.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from protos.errors import ConfigError

RESERVE = 64
"""Descriptors that no connection gets: starting an engine, its sockets, files, new threads."""
HIGHEST = 65536
"""The soft limit is raised to the hard one, but no further than this."""
_LEAST = 4


def raise_limit(highest: int = HIGHEST) -> int:
    """Raise the soft limit of open files towards the hard one; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = highest if hard == resource.RLIM_INFINITY else min(hard, highest)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return highest if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def open_now() -> int:
    """Descriptors that this process holds."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder)) - 1  # the one that lists them
    return 0


def connections(limit: int, held: int, others: int, wanted: int) -> int:
    """How many gRPC connections may be open at once.

    Args:
        limit: descriptors that the process may hold.
        held: those that it holds before it takes connections.
        others: connections of the metrics port and the HTTP port.
        wanted: the setting; 0 takes as many as fit.

    Raises:
        ConfigError: fewer fit than are wanted, or too few to serve.
    """
    room = limit - held - RESERVE - others
    if room < max(wanted, _LEAST):
        raise ConfigError(
            f"{max(wanted, _LEAST)} gRPC connections need {limit - room + max(wanted, _LEAST)} "
            f"file descriptors ({held} in use, {RESERVE} in reserve, {others} for the metrics "
            f"and HTTP ports), the limit is {limit}: raise it (ulimit -Hn, LimitNOFILE=, --ulimit "
            "nofile), or lower --max-connections, --api-connections and --metrics-connections"
        )
    return wanted or room


class Reserve:
    """Descriptors held back, and freed while something that must not fail needs some.

    Args:
        size: how many.
    """

    def __init__(self, size: int = RESERVE // 2) -> None:
        self._size = size
        self._held: list[int] = []
        self._take()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Within this block they are free."""
        self.close()
        try:
            yield
        finally:
            self._take()

    def close(self) -> None:
        """Free them for good."""
        while self._held:
            os.close(self._held.pop())

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # others were quicker; the next time there may be more
            while len(self._held) < self._size:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
