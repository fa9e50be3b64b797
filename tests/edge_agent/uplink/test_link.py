"""The estimate of a link: its delay and its rate."""

from __future__ import annotations

import pytest

from edge_agent.uplink.link import Link


def test_the_estimate_finds_the_links_delay_and_rate() -> None:
    link = Link()
    for number, size in enumerate([100, 4000, 900, 2500, 100, 6000, 1500, 300]):
        link.sent(number, size, at=float(number))
        link.ended(number, at=number + 0.08 + size / 20_000 + 0.3, server_s=0.3)
    assert link.rtt_s == pytest.approx(0.08, abs=1e-6)
    assert link.bytes_per_s == pytest.approx(20_000, rel=1e-6)
    assert link.delay(2000, at=9.0) == pytest.approx(0.08 + 0.1 + 0.3, abs=1e-6)


def test_bytes_on_their_way_delay_the_next_frame() -> None:
    link = Link()
    for number, size in enumerate([100, 4000, 100, 4000]):
        link.sent(number, size, at=float(number))
        link.ended(number, at=number + size / 10_000, server_s=0.0)
    empty = link.delay(100, at=5.0)
    link.sent("big", 5000, at=5.0)
    assert link.delay(100, at=5.0) == pytest.approx(empty + 0.5, abs=1e-6)


def test_a_link_is_silent_from_when_an_answer_should_have_come() -> None:
    link = Link()
    link.sent("a", 100, at=0.0)
    link.ended("a", at=0.05, server_s=0.0)
    link.sent("b", 100, at=1.0)
    assert not link.silent(at=1.04) and link.silent(at=1.06)
    link.lost("b", at=9.0)
    assert not link.silent(at=9.0) and link.overdue_s == pytest.approx(8.0)
    link.sent("c", 100, at=9.0)
    link.ended("c", at=9.05, server_s=0.0)
    assert link.overdue_s == 0.0


def test_what_comes_and_goes_is_as_often_in_time_at_every_size() -> None:
    link = Link()
    for number in range(24):
        size = 200 if number % 2 else 100
        link.sent(number, size, at=float(number))
        outage_s = 0.7 * (number % 8 in (3, 6))
        link.ended(number, at=number + 0.05 + size / 10_000 + outage_s, server_s=0.0)
    small, large = (link.in_time(size, 30.0, 0.5) for size in (100, 2000))
    assert small == large == pytest.approx(0.75, abs=0.02)
    assert link.in_time(6000, 30.0, 0.5) < 0.1


def test_what_a_slow_server_works_on_is_not_on_the_link() -> None:
    link = Link()
    for number, size in enumerate([100, 4000, 900, 2500, 100, 6000]):
        link.sent(number, size, at=2.0 * number)
        link.ended(number, at=2.0 * number + 1.05 + size / 20_000, server_s=1.0)
    link.sent("there", 4000, at=20.0)
    assert link.queue_s(100, at=20.1) == pytest.approx(4100 / 20_000)
    assert link.queue_s(100, at=20.5) == pytest.approx(100 / 20_000)
