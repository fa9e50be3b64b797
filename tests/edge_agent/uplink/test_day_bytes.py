"""The bound on bytes a day: over any 24 hours, over restarts, with clocks that jump."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.uplink.day_bytes import DayBytes

DAY_S = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_no_24_hours_have_more_and_the_night_has_its_share(tmp_path: Path) -> None:
    rng, clock, spent = np.random.default_rng(1), Clock(), []
    budget = DayBytes(100_000, tmp_path / "left", clock)
    for _ in range(5000):
        clock.now += float(rng.exponential(60.0))
        size = int(rng.integers(100, 900))
        if rng.random() < 0.01:
            budget = DayBytes(100_000, tmp_path / "left", clock)  # the agent starts again
        if budget.take(size):
            spent.append((clock.now, size))
    times, sizes = (np.array(column) for column in zip(*spent, strict=True))
    total = np.concatenate([[0], np.cumsum(sizes)])
    within = [
        total[np.searchsorted(times, end, "right")] - total[np.searchsorted(times, end - DAY_S)]
        for end in times
    ]
    assert 60_000 < max(within) <= 100_000
    hours = np.histogram((times - times[0]) % DAY_S // 3600, bins=24)[0]
    assert hours.min() > 0


def test_a_file_that_says_nonsense_gives_nothing_at_once(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"left": "x", "at": 0}', '{"left": NaN, "at": 0}'):
        (tmp_path / "left").write_text(text)
        assert not DayBytes(100_000, tmp_path / "left", Clock()).take(1)


@pytest.mark.parametrize("jump_s", [-1e6, 1e7])
def test_a_clock_that_jumps_gives_no_more_than_what_may_go_at_once(
    tmp_path: Path, jump_s: float
) -> None:
    clock = Clock()
    budget = DayBytes(100_000, tmp_path / "left", clock)
    assert budget.take(25_000) and not budget.take(1)
    clock.now += jump_s
    took = sum(budget.take(1000) for _ in range(100))
    assert took == (25 if jump_s > 0 else 0)


def test_without_a_place_for_it_restarts_bring_nothing() -> None:
    assert not DayBytes(100_000, None, Clock()).take(1000)
