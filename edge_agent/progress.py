"""How far a run is: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from protos.process import logs
from protos.process.progress import EVERY_S


class Progress:
    """A bar on standard error, one step a capture; without a bar, a log line now and then.

    A source that does not end has no total (None), and no log lines.
    """

    def __init__(
        self,
        total: int | None,
        wanted: bool,
        log: logs.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar = tqdm(
            total=total, disable=not wanted, file=sys.stderr, unit="capture", dynamic_ncols=True
        )
        self._total, self._wanted, self._log, self._clock = total, wanted, log, clock
        self._done, self._begun = 0, clock()
        self._next_s = EVERY_S

    def __enter__(self) -> Callable[[], None]:
        return self._advance

    def _advance(self) -> None:
        self._bar.update(1)
        self._done += 1
        spent = self._clock() - self._begun
        if self._total is None or self._wanted:
            return
        if spent >= self._next_s and self._done < self._total:
            self._next_s = spent + EVERY_S
            left_s = spent / self._done * (self._total - self._done)
            self._log.info("progress", captures=self._done, of=self._total, left_s=round(left_s))

    def __exit__(self, *_: object) -> None:
        self._bar.close()
