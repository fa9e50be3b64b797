"""When a camera's process counts as broken: stops, decays, repeats, takes too much memory."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from edge_agent.cameras.link import Beat
from edge_agent.cameras.watch import Patience, Watch

PATIENCE = Patience(open_s=20, stall_s=10, frozen_s=30, rate_s=30, memory_bytes=1000)


def end(
    rates: Iterable[float], live: bool = True, patience: Patience = PATIENCE
) -> tuple[float, str]:
    """When and why a process is ended that decodes so many pictures in each second."""
    watch, decoded, now = Watch(patience, live, began=0.0), 0.0, 0.0
    for now, rate in enumerate(rates, 1):
        decoded += rate
        if rate:
            watch.beat(Beat(int(decoded)), now)
        if verdict := watch.verdict(now, 0):
            return now, verdict
    return now, ""


def test_a_camera_that_never_gives_a_picture_is_ended() -> None:
    assert end([0] * 100) == (21, "silent")


def test_a_camera_that_stops_is_ended() -> None:
    assert end([25] * 100 + [0] * 100) == (111, "silent")


def test_a_rate_that_decays_over_twelve_hours_is_noticed() -> None:
    hours = 12 * 3600
    at, why = end(25 * (1 - second / hours) for second in range(hours))
    assert why == "slow" and 0.5 < at / hours < 0.51


@pytest.mark.parametrize("rate", [25, 1, 0.5])
def test_a_steady_rate_is_never_slow(rate: float) -> None:
    assert end([rate] * 5000)[1] == ""


def test_a_gap_and_a_slow_minute_are_no_decay() -> None:
    assert end([25] * 100 + [0] * 8 + [25] * 100 + [5] * 40 + [25] * 500)[1] == ""


def test_a_camera_that_is_slow_from_the_start_is_taken_as_it_is() -> None:
    assert end([2] * 1000 + [1.2] * 1000)[1] == ""


def test_the_same_picture_for_too_long_is_frozen_unless_nobody_minds() -> None:
    for frozen_s, expected in ((30.0, "frozen"), (0.0, "")):
        watch = Watch(Patience(frozen_s=frozen_s), True, 0.0)
        watch.beat(Beat(100, alike_s=29.0), 40.0)
        assert watch.verdict(40.0, 0) == ""
        watch.beat(Beat(110, alike_s=30.0), 41.0)
        assert watch.verdict(41.0, 0) == expected


def test_memory_is_bounded_and_files_may_take_their_time() -> None:
    watch = Watch(PATIENCE, False, 0.0)
    watch.beat(Beat(1, alike_s=1e6), 1.0)
    assert watch.verdict(1e6, 1000) == ""
    assert watch.verdict(1e6, 1001) == "memory"
