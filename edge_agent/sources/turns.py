"""Several sources in one: each gives one capture in its turn, as long as it has one."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from edge_agent.metrics import Metrics
from edge_agent.sources import Capture, Source
from protos.errors import ConfigError
from protos.process.logs import Logger
from protos.process.nearest import nearest


class Member(Protocol):
    """A source that can be asked whether it has something, without waiting."""

    def attach(self, metrics: Metrics, log: Logger) -> None:
        """Count and log there from now on."""

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; `wake` is called, from any thread, when `take` may have something."""

    def take(self) -> Capture | None:
        """The next capture; None if there is none now."""

    @property
    def done(self) -> bool:
        """Whether there will never be another one."""

    def request(self, camera: str = "") -> None:
        """Take a capture now, if this source can be asked to."""

    def close(self) -> None:
        """End it."""


class Finite:
    """A source that is read from its beginning to its end, as a member.

    Args:
        source: yields the captures.
        change: applied to every capture: names it, paints masks.
    """

    def __init__(self, source: Source, change: Callable[[Capture], Capture]) -> None:
        self._source, self._change = source, change
        self._captures: Iterator[Capture] | None = None
        self.done = False

    def attach(self, metrics: Metrics, log: Logger) -> None:
        """Do nothing: the agent counts its captures."""

    def start(self, wake: Callable[[], None]) -> None:
        """See `Member`."""
        self._captures = iter(self._source)

    def take(self) -> Capture | None:
        """See `Member`."""
        capture = None if self._captures is None or self.done else next(self._captures, None)
        self.done = capture is None
        return capture if capture is None else self._change(capture)

    def request(self, camera: str = "") -> None:
        """Do nothing: every capture is taken anyway."""

    def close(self) -> None:
        """See `Member`."""
        self.done = True


class Turns:
    """A live source of several members with fair turns.

    Args:
        members: by no order of preference.
        skipped: entries of folders that were passed over, by kind.

    Attributes:
        endless: true, as nobody knows its length.
    """

    endless = True

    def __init__(self, members: Sequence[Member], skipped: Mapping[str, int] = Counter()) -> None:
        self.members, self.skipped = tuple(members), skipped
        self._news, self._closed = threading.Event(), False

    def __iter__(self) -> Iterator[Capture]:
        """Yield captures as they come; ends once every member is done, or after `close`."""
        try:
            for member in self.members:
                member.start(self._news.set)
            turn = 0
            while not self._closed:
                self._news.clear()
                order = (*self.members[turn:], *self.members[:turn])
                for place, member in enumerate(order, turn + 1):
                    if (capture := member.take()) is not None:
                        turn = place % len(self.members)
                        yield capture
                        break
                else:
                    if all(member.done for member in self.members):
                        return
                    self._news.wait()
        finally:
            for member in self.members:
                member.close()

    def attach(self, metrics: Metrics, log: Logger) -> None:
        """Count and log there from now on; before the iteration."""
        for member in self.members:
            member.attach(metrics, log)

    def __len__(self) -> int:
        """See `Source`: unknown."""
        return 0

    def broken(self) -> str:
        """A member that ended by a failure of this program; empty if none has."""
        found = (str(getattr(member, "broken", "")) for member in self.members)
        return next(filter(None, found), "")

    def request(self, camera: str = "") -> None:
        """Have a camera, or every one, take its next picture; see `LiveSource`."""
        names = [name for member in self.members if (name := getattr(member, "name", ""))]
        if camera and camera not in names:
            hint = nearest(camera, names) or f"; cameras: {', '.join(names) or 'none'}"
            raise ConfigError(f"no camera of this device is named {camera!r}{hint}")
        for member in self.members:
            if not camera or getattr(member, "name", "") == camera:
                member.request()

    def finished(self) -> None:
        """Every capture that was given has been worked on: the run ends well."""
        for member in self.members:
            getattr(member, "finished", int)()

    def close(self) -> None:
        """End the iteration and the members; may be called from any thread, twice."""
        self._closed = True
        self._news.set()
        closing = [threading.Thread(target=member.close) for member in self.members]
        for each in closing:  # at once: a camera whose process does not die takes seconds
            each.start()
        for each in closing:
            each.join()


def named(capture: Capture, camera: str) -> Capture:
    """A capture of a source that has a name."""
    return dataclasses.replace(capture, name=f"{camera}/{capture.name}", camera=camera)
