"""Times several calls against each other on a machine that other work disturbs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from threadpoolctl import threadpool_limits
from tqdm import tqdm


def least_seconds(
    rounds: int,
    calls: Sequence[Callable[[], object]],
    what: str,
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Seconds of each call on one thread, the best of several rounds that take all in turn.

    A shared machine's slow moments last for seconds; taken in turn, all calls meet them alike. One
    thread, because the waiting of a second NumPy thread would count as CPU time. (torch has its own
    thread count.)

    Args:
        rounds: how often each call is made.
        calls: functions without arguments.
        what: name of the calls, for the progress bar.
        clock: seconds; by default the CPU time of this process.
    """
    best = [float("inf")] * len(calls)
    with threadpool_limits(1):
        for _ in tqdm(range(rounds), desc=what, unit="round", leave=False):
            for which, call in enumerate(calls):
                start = clock()
                call()
                best[which] = min(best[which], clock() - start)
    return best
