"""The quota of a device or a whole tenant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """Bounds of one device, or of all devices of a tenant together; 0 means no bound.

    Attributes:
        requests_per_s: requests a second, on average.
        request_burst: requests at once; 0 means as many as in two seconds.
        bytes_per_s: message bytes received a second, on average.
        byte_burst: bytes at once; 0 means as many as in two seconds.
        concurrent: requests under way.
        scenes: scenes held.
        weight: share of a busy engine; the others have weight 1.
    """

    requests_per_s: float = 0.0
    request_burst: float = 0.0
    bytes_per_s: float = 0.0
    byte_burst: float = 0.0
    concurrent: int = 0
    scenes: int = 0
    weight: float = 1.0

    def changed(self, values: Mapping[str, float | None]) -> Quota:
        """A copy with some values replaced, by name; None keeps a value."""
        given = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **given)  # type: ignore[arg-type]


QUOTA_FIELDS = tuple(field.name for field in dataclasses.fields(Quota))
UNBOUNDED = Quota()
