"""Which version of a bundle serves which device: one for all, or a newer one for a share.

A device's place is a hash of its name and the version's digest. So it is the same after a restart
and in every front end, a larger share only adds devices, and each version begins with other
devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cloud_server.engine.jobs import Offer


@dataclass(frozen=True)
class Offered:
    """The versions that are offered to one edge model.

    Attributes:
        offer: the version for all.
        candidate: a newer one, for a share of the devices.
        share: that share, 0..1.
    """

    offer: Offer
    candidate: Offer | None = None
    share: float = 0.0

    def of(self, tenant: str, device: str) -> Offer:
        """The version that serves a device."""
        if self.candidate is None:
            return self.offer
        place = place_of(self.candidate.bundle_digest, tenant, device)
        return self.candidate if place < self.share else self.offer

    @property
    def every(self) -> tuple[Offer, ...]:
        """The versions that serve devices."""
        return (self.offer,) if self.candidate is None else (self.offer, self.candidate)


def choices_of(offers: Iterable[Offer]) -> dict[str, Offered]:
    """One version for all devices of each edge model, by the fingerprint of its layout."""
    return {offer.source_fingerprint: Offered(offer) for offer in offers}


def place_of(digest: str, tenant: str, device: str) -> float:
    """A device's place, 0 or more and less than 1, uniform over devices and versions."""
    named = "\0".join((digest, tenant, device)).encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") / 2.0**64
