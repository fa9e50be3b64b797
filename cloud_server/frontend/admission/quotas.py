"""Enforces quotas: requests and bytes a second, for a device and for its whole tenant."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cloud_server.state.quota import Quota
from protos.errors import OverloadedError

QuotaOf: TypeAlias = Callable[[str, str | None], Quota]
"""The quota of a tenant's device, or (None) of the tenant."""
_MOST = 65536
_BURST_S = 2.0


@dataclass
class _Left:
    """What a device or a tenant may still send at once (token buckets).

    Attributes:
        at: time of the last update, seconds.
    """

    requests: float
    bytes: float
    at: float


@dataclass(frozen=True)
class Allowance:
    """How many requests a device may still send.

    Attributes:
        most: requests at once after a pause.
        left: requests at once now.
        full_s: seconds until `left` is `most` again.
    """

    most: float
    left: float
    full_s: float


class Quotas:
    """Counts each request against quotas.

    Args:
        quota_of: current quotas.
        clock: seconds, monotonic.
        most: devices and tenants that are remembered; the least recently used is forgotten.
    """

    def __init__(
        self, quota_of: QuotaOf, clock: Callable[[], float] = time.monotonic, most: int = _MOST
    ) -> None:
        self._quota_of, self._clock, self._most = quota_of, clock, most
        self._left: OrderedDict[tuple[str, str | None], _Left] = OrderedDict()

    def charge(self, tenant: str, device: str, size: int) -> None:
        """Count one request of `size` bytes, or refuse it.

        A request larger than a whole burst passes after a pause; the next requests wait longer.

        Raises:
            OverloadedError: the quota of the device or its tenant is used up; says when to retry.
        """
        now = self._clock()
        taken, refusal = [], None
        for whose, name in (("device", device), ("tenant", None)):
            quota = self._quota_of(tenant, name)
            if not (quota.requests_per_s or quota.bytes_per_s):
                continue
            left = self._now(tenant, name, quota, now)
            short = [("requests", quota.requests_per_s, 1.0 - left.requests)]
            short.append(("bytes", quota.bytes_per_s, min(size, _burst(quota)[1]) - left.bytes))
            for what, per_s, missing in short:
                wait_s = missing / per_s if per_s and missing > 1e-9 else 0.0
                if wait_s and (refusal is None or wait_s > refusal.retry_after_s):
                    refusal = OverloadedError(
                        f"more {what} from this {whose} than its quota of {per_s:g} a second: send "
                        f"again in {wait_s:.1f} s",
                        retry_after_s=wait_s,
                        cause=f"{what}_quota",
                    )
            taken.append(left)
        if refusal is not None:
            raise refusal
        for left in taken:
            left.requests -= 1.0
            left.bytes -= size

    def allowance(self, tenant: str, device: str) -> Allowance | None:
        """How many requests a device may still send, by the tighter of its two quotas.

        None if neither bounds them.
        """
        now = self._clock()
        found: Allowance | None = None
        for name in (device, None):
            quota = self._quota_of(tenant, name)
            if quota.requests_per_s:
                most, left = _burst(quota)[0], self._now(tenant, name, quota, now).requests
                if found is None or left < found.left:
                    found = Allowance(most, left, (most - left) / quota.requests_per_s)
        return found

    def _now(self, tenant: str, device: str | None, quota: Quota, now: float) -> _Left:
        """What is left now, by the current quota."""
        requests, size = _burst(quota)
        left = self._left.pop((tenant, device), None)
        if left is None:
            left = _Left(requests, size, now)
        passed = now - left.at
        left.requests = min(requests, left.requests + passed * quota.requests_per_s)
        left.bytes = min(size, left.bytes + passed * quota.bytes_per_s)
        left.at = now
        self._left[tenant, device] = left
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return left


def _burst(quota: Quota) -> tuple[float, float]:
    """Requests and bytes at once; at least one request."""
    requests = quota.request_burst or _BURST_S * quota.requests_per_s
    return max(1.0, requests), quota.byte_burst or _BURST_S * quota.bytes_per_s
