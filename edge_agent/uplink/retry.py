"""When a request is sent again: after which failures, how often, and after which pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_random_exponential

from edge_agent.metrics import Metrics
from protos.errors import BridgeError, ClockError, OverloadedError, UnknownSessionError
from protos.process.logs import Logger

_LONGEST_ASKED_S = 60.0
"""A server that asks for a longer pause gets no more than this."""


@dataclass(frozen=True)
class RetryPolicy:
    """Full-jitter exponential back-off: the n-th pause is uniform in 0..min(max, base · 2^(n-1)).

    Attributes:
        give_up_s: how long a request is sent again before it ends with its last error, seconds;
            0: for as long as it takes.
        retries: attempts after the first; None: as many as fit into `give_up_s`.
        backoff_s: base, seconds.
        backoff_max_s: upper end of any pause, seconds.
        answer_timeout_s: a request without a terminal event is sent again after this, seconds.
        connect_timeout_s: longest wait for Negotiate, and for each piece of an encoder, seconds.
    """

    give_up_s: float = 180.0
    retries: int | None = None
    backoff_s: float = 0.2
    backoff_max_s: float = 10.0
    answer_timeout_s: float = 60.0
    connect_timeout_s: float = 10.0


class Refused(Exception):
    """A request that the server refused; the server's flag says whether to retry, not the class.

    Args:
        error: the server's error.
        retryable: whether the request is sent again.
        pause_s: shortest pause before that, seconds.
    """

    def __init__(self, error: BridgeError, retryable: bool, pause_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retryable = retryable
        self.pause_s = pause_s


def _error_behind(failure: BaseException | None) -> BaseException | None:
    """The typed error that an attempt failed with."""
    return failure.error if isinstance(failure, Refused) else failure


@dataclass(frozen=True)
class Retries:
    """Makes attempts by a policy.

    Attributes:
        policy: how often and how long.
        metrics: counts retries by cause.
        log: structured logger.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
    """

    policy: RetryPolicy
    metrics: Metrics
    log: Logger
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def attempts(self, request_id: Callable[[], bytes] = bytes) -> AsyncRetrying:
        """Attempts to iterate over, until one ends without a retryable error.

        Args:
            request_id: returns the id, for the log; empty while there is none.
        """
        start = self.clock()
        most = self.policy.retries

        def stop(state: RetryCallState) -> bool:
            spent = most is not None and state.attempt_number > most
            most_s = self.policy.give_up_s
            return spent or (most_s > 0 and self.clock() - start >= most_s)

        jitter = wait_random_exponential(
            multiplier=self.policy.backoff_s, max=self.policy.backoff_max_s
        )

        def pause_s(state: RetryCallState) -> float:
            """Full jitter, after the time that the server asked for, if it did."""
            failure = state.outcome.exception() if state.outcome is not None else None
            error = _error_behind(failure)
            asked_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
            own_s = failure.pause_s if isinstance(failure, Refused) else 0.0
            random_s = jitter(state)
            if isinstance(error, UnknownSessionError):  # it is there, and waits for a Negotiate
                random_s = min(random_s, self.policy.backoff_s)
            return max(own_s, min(asked_s, _LONGEST_ASKED_S)) + random_s

        def before_sleep(state: RetryCallState) -> None:
            failure = state.outcome.exception() if state.outcome is not None else None
            error = _error_behind(failure)
            self.metrics.retries.labels(getattr(error, "name", "unknown")).inc()
            if isinstance(error, ClockError):
                self.log.warning("waiting_for_the_time", cause=str(error))
            self.log.info(
                "retry",
                request_id=request_id().hex(),
                cause=str(error),
                attempt=state.attempt_number,
                pause_s=state.upcoming_sleep,
            )

        return AsyncRetrying(
            retry=retry_if_exception(
                lambda e: isinstance(e, BridgeError | Refused) and e.retryable
            ),
            stop=stop,
            wait=pause_s,
            sleep=self.sleep,
            before_sleep=before_sleep,
            reraise=True,
        )
