"""The parts of a shadowed picture, and how they are put together."""

from __future__ import annotations

import pytest

from protos.errors import FrameCorruptError, FrameMalformedError, FrameTooLargeError
from protos.shadow import Gathering, shadow_parts

SESSION, CONSTANTS, FILE = bytes(range(16)), bytes(range(32)), bytes(range(256)) * 5


@pytest.mark.parametrize("size", [1, 100, 1279, 1280, 5000])
def test_parts_of_any_size_make_the_file_again(size: int) -> None:
    parts = list(shadow_parts(SESSION, CONSTANTS, 7, FILE, size))
    assert len(parts) == -(-len(FILE) // size) and max(len(p.picture) for p in parts) <= size
    gathering = Gathering(len(FILE))
    came = [gathering.add(part.SerializeToString()) for part in parts]
    assert came[:-1] == [None] * (len(parts) - 1)
    picture = came[-1]
    assert picture is not None and picture.picture == FILE
    assert (picture.session_id, picture.frame_number) == (SESSION, 7)
    picture.verify(CONSTANTS)
    with pytest.raises(FrameCorruptError):
        picture.verify(CONSTANTS[::-1])


def test_a_file_that_is_too_long_is_refused_by_its_first_part() -> None:
    first = next(shadow_parts(SESSION, CONSTANTS, 7, FILE, 10))
    with pytest.raises(FrameTooLargeError):
        Gathering(len(FILE) - 1).add(first.SerializeToString())


def test_parts_out_of_order_or_twice_are_refused() -> None:
    parts = [p.SerializeToString() for p in shadow_parts(SESSION, CONSTANTS, 7, FILE, 500)]
    for wrong in ([0, 2], [0, 0], [1], [0, 1, 1]):
        gathering = Gathering(1 << 20)
        with pytest.raises(FrameMalformedError):
            for index in wrong:
                gathering.add(parts[index])
