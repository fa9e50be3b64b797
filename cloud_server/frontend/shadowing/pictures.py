"""Shadowed pictures that viewers may see: in memory, bounded, of tenants that allow it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from msgspec import Struct

_ENTRY_BYTES = 512


class ShadowPicture(Struct, frozen=True):
    """A picture that a device shadowed.

    Attributes:
        tenant, device: whose it is.
        session: of its frame, hex.
        frame_number: of its frame.
        file: a PNG, JPEG or WebP file.
        at_s: when it was measured, seconds since 1970.
    """

    tenant: str
    device: str
    session: str
    frame_number: int
    file: bytes
    at_s: float


class ShadowPictures:
    """Keeps the newest pictures.

    Args:
        most_bytes: bound on their memory; the oldest go first.
        tenants: those whose viewers may see pictures; of others none is kept.

    Attributes:
        bytes: memory of those that are kept.
    """

    def __init__(self, most_bytes: int, tenants: Collection[str]) -> None:
        self._most, self._tenants = most_bytes, frozenset(tenants)
        self._kept: OrderedDict[tuple[str, int], ShadowPicture] = OrderedDict()
        self.bytes = 0

    def keep(self, picture: ShadowPicture) -> None:
        """Keep a picture, if its tenant allows it."""
        if picture.tenant not in self._tenants:
            return
        name = picture.session, picture.frame_number
        self._drop(name)
        self._kept[name] = picture
        self.bytes += len(picture.file) + _ENTRY_BYTES
        while self.bytes > self._most:
            self._drop(next(iter(self._kept)))

    def of_scene(self, session: str, frame_number: int) -> ShadowPicture | None:
        """The picture of a scene, for viewers that may see its device; None if it is not kept."""
        return self._kept.get((session, frame_number))

    def newest(self, tenant: str, device: str) -> ShadowPicture | None:
        """A device's newest picture; None if none is kept."""
        return next(
            (
                one
                for one in reversed(self._kept.values())
                if (one.tenant, one.device) == (tenant, device)
            ),
            None,
        )

    def drop(self, session: str, frame_number: int) -> None:
        """Let go of the picture of a scene that is gone."""
        self._drop((session, frame_number))

    def _drop(self, name: tuple[str, int]) -> None:
        gone = self._kept.pop(name, None)
        if gone is not None:
            self.bytes -= len(gone.file) + _ENTRY_BYTES
