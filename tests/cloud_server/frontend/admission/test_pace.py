"""How fast requests end, and when refused ones come back."""

from __future__ import annotations

import pytest

from cloud_server.frontend.admission.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_times_when_others_wait() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.per_s == 0.0 and pace.wait_s(50) == 0.0, "nothing is refused before it is known"
    for _ in range(40):
        clock.now += 0.1
        pace.ended(others_wait=True)
    assert pace.per_s == pytest.approx(10.0, rel=0.01) and pace.wait_s(50) == pytest.approx(5.0)
    pace.ended(others_wait=False)
    clock.now += 3600.0  # idle: says nothing of how fast it is
    pace.ended(others_wait=False)
    assert pace.per_s == pytest.approx(10.0, rel=0.05)


def test_it_follows_a_change_within_seconds() -> None:
    clock = Clock()
    pace = Pace(clock)
    for gap_s, count in ((0.1, 100), (0.5, 40)):
        for _ in range(count):
            clock.now += gap_s
            pace.ended(others_wait=True)
    assert pace.per_s == pytest.approx(2.0, rel=0.1)


def test_answers_of_one_batch_come_at_once_and_count_each() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(40):
        clock.now += 1.0
        for _ in range(8):
            pace.ended(others_wait=True)
    assert pace.per_s == pytest.approx(8.0, rel=0.15)


def test_refused_requests_come_back_one_after_the_other_at_the_rate_of_answers() -> None:
    clock = Clock()
    pace = Pace(clock, chance=lambda: 0.5)
    for _ in range(40):
        clock.now += 0.1
        pace.ended(others_wait=True)
    hints = [pace.come_back_s(1.0) for _ in range(50)]
    assert hints == sorted(hints) and hints[0] >= 1.0
    assert hints[-1] - hints[0] == pytest.approx(4.9)
    assert max(pace.come_back_s(1.0) for _ in range(1000)) <= 30.0 * 1.25
