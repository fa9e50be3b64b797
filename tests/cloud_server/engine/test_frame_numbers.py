"""A frame number is its first request's while its scene is held."""

from __future__ import annotations

import pytest
from msgspec import structs

from cloud_server.engine.frame_numbers import FrameNumbers
from cloud_server.engine.jobs import Failed
from protos.errors import FrameNumberError
from tests.cloud_server import stage
from tests.cloud_server.engine_bench import Bench, picture


def test_a_number_that_is_taken_is_refused_in_one_step_in_later_ones_and_for_pictures(
    bench: Bench,
) -> None:
    first = bench.job(1)
    thief = structs.replace(bench.job(2), frame_number=1)
    bench.engine.submit(first)
    bench.engine.submit(thief)  # in the same step
    bench.drain()
    bench.engine.submit(structs.replace(thief, id=3, request_id="3" * 16))
    bench.drain()
    stolen = structs.replace(picture(bench, 4, stage.picture_file()), frame_number=1)
    bench.engine.submit(stolen)
    failures = {event.job: event.error for event in bench.said if isinstance(event, Failed)}
    assert set(failures) == {2, 3, 4}
    assert all(isinstance(error, FrameNumberError) for error in failures.values())
    assert first.request_id in str(failures[2])
    bench.engine.submit(structs.replace(first, id=5))  # the same request once more
    bench.engine.submit(structs.replace(thief, id=6, session="another"))
    bench.drain()
    assert set(bench.answers()) == {1, 5, 6}
    bench.engine.submit(bench.ask(7, about=1))
    bench.drain()
    assert bench.answers()[7].text == bench.answers()[1].text
    bench.engine.forget("another")
    bench.engine.submit(picture(bench, 8, b"nothing"))
    bench.engine.submit(structs.replace(bench.job(9), frame_number=8))
    bench.drain()
    assert 9 in bench.answers(), "what was refused takes no number"


def test_numbers_of_scenes_that_are_gone_are_free_and_cost_no_memory() -> None:
    held: set[tuple[str, int]] = set()
    numbers = FrameNumbers(held.__contains__)
    for number in range(10_000):
        numbers.claim(("s", number), "a")
        held.add(("s", number))
        held.discard(("s", number - 100))
        numbers.end_step()
    assert len(numbers) <= 4 * 1024
    numbers.claim(("s", 0), "b")
    with pytest.raises(FrameNumberError, match="9950 is taken by request a"):
        numbers.claim(("s", 9950), "b")
    numbers.claim(("s", 9950), "a")
