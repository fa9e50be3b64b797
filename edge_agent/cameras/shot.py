"""What a reader takes from a camera, before it is known whether anybody wants to see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from edge_agent.cameras.ring import Pixels, fits


@dataclass(frozen=True)
class Shot:
    """One decoded picture.

    Attributes:
        media_s: its place in the stream, seconds; None if the stream does not say.
        width: pixels.
        height: pixels.
        render: (width, height) to RGB samples of that size; not called for pictures that nobody
            wants.
    """

    media_s: float | None
    width: int
    height: int
    render: Callable[[int, int], Pixels]


class Reader(Protocol):
    """Reads one camera.

    Attributes:
        dropped: pictures that could not be decoded, by cause.
    """

    dropped: Counter[str]

    def shots(self) -> Iterator[Shot]:
        """Open the camera and yield what it shows until it ends.

        Raises:
            CameraFailure, OSError: it cannot be opened or read on.
        """


def size_for(shot: Shot, width: int | None, height: int | None) -> tuple[int, int]:
    """The size that a picture is taken at: as asked, proportions kept if one side is asked.

    A picture larger than the shared memory's slots is taken at a half, a quarter, … of its size.
    """
    if width and height:
        wide, high = width, height
    elif width:
        wide, high = width, max(1, round(shot.height * width / shot.width))
    elif height:
        wide, high = max(1, round(shot.width * height / shot.height)), height
    else:
        wide, high = shot.width, shot.height
    while not fits(wide, high):
        wide, high = max(1, wide // 2), max(1, high // 2)
    return wide, high
