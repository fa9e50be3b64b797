"""How much a device or a whole tenant may ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """Bounds of one device, or of one tenant's devices together; 0 is no bound.

    Attributes:
        requests_per_s: requests a second, on average.
        request_burst: requests at once; 0 takes two seconds' worth.
        bytes_per_s: message bytes received a second, on average.
        byte_burst: bytes at once; 0 takes two seconds' worth.
        concurrent: requests under way.
        scenes: scenes held.
        weight: share of a contended engine, beside others of weight 1.
    """

    requests_per_s: float = 0.0
    request_burst: float = 0.0
    bytes_per_s: float = 0.0
    byte_burst: float = 0.0
    concurrent: int = 0
    scenes: int = 0
    weight: float = 1.0

    def changed(self, values: Mapping[str, float | None]) -> Quota:
        """This quota with other values, by name; None leaves one as it is."""
        given = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **given)  # type: ignore[arg-type]


QUOTA_FIELDS = tuple(field.name for field in dataclasses.fields(Quota))
UNBOUNDED = Quota()
