"""The test that rolls a version back: it finds worse versions, with few false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_server.frontend.versions.comparison import KINDS, Bet, Comparison

ALARMS = 0.01
GATE = ("acme", "gate-1")


def run(before: float, after: float, seed: int, frames: int, margin: float = 0.05) -> int | None:
    """The frame at which a version is called worse; None if it never is."""
    drawn = np.random.default_rng(seed)
    made = Comparison(margin, ALARMS)
    for frame in range(frames):
        made.see(False, GATE, refused=float(drawn.random() < before))
        made.see(True, GATE, refused=float(drawn.random() < after))
        if made.worse() is not None:
            return frame
    return None


@pytest.mark.slow
def test_a_version_that_is_as_good_is_hardly_ever_taken_back() -> None:
    """400 rollouts of 1,000 frames each, looked at after every frame."""
    alarms = [run(0.10, 0.10, seed, 1000, margin=0.0) is not None for seed in range(400)]
    # 1 % shared by four kinds: 1 in 400 is expected at most; 6 would have a chance of 1 in 1,700.
    assert sum(alarms) < 6


def test_a_difference_within_the_margin_is_no_alarm() -> None:
    assert [run(0.10, 0.14, seed, 1000) for seed in range(50)].count(None) >= 48


@pytest.mark.parametrize(("before", "after", "within"), [(0.02, 0.5, 60), (0.05, 0.25, 300)])
def test_a_worse_version_is_found_within_some_frames(
    before: float, after: float, within: int
) -> None:
    found = [run(before, after, seed, 2000) for seed in range(40)]
    assert None not in found
    assert float(np.median([one for one in found if one is not None])) < within


def test_each_kind_is_compared_alone_and_named() -> None:
    made = Comparison(0.05, ALARMS)
    for _ in range(300):
        made.see(False, GATE, refused=0.0, fallback=0.0, risk=0.1)
        made.see(True, GATE, refused=0.0, fallback=0.0, risk=0.6)
    worse = made.worse()
    assert worse is not None and worse.kind == "risk"
    assert (round(worse.before, 3), round(worse.after, 3)) == (0.1, 0.6)
    assert "60.0% on the new version, 10.0% on the old one" in str(worse)
    assert set(made.figures()) == {"refused", "fallback", "risk"} < set(KINDS)


def test_outcomes_wait_for_a_partner_and_the_oldest_are_forgotten() -> None:
    bet = Bet(0.0)
    for _ in range(10_000):
        bet.see(False, 0.0)
    assert bet.pairs == 0 and bet.evidence == 1.0
    for _ in range(10_000):
        bet.see(True, 1.0)
    assert bet.pairs == 512 and bet.evidence > 1e9


def test_the_stake_cannot_become_negative_or_overflow() -> None:
    worst, best = Bet(1.0), Bet(0.0)
    for _ in range(5000):
        for bet, pair in ((worst, (1.0, 0.0)), (best, (0.0, 1.0))):
            bet.see(False, pair[0])
            bet.see(True, pair[1])
    assert 0.0 <= worst.evidence < 1e-9
    assert best.evidence > 1e9


def devices(*owners: tuple[str, str], broken: tuple[str, str], frames: int = 400) -> Comparison:
    """A rollout in which one device sends ten times as many frames, all of them bad."""
    made = Comparison(0.05, ALARMS)
    for frame in range(frames):
        for owner in owners:
            for _ in range(10 if owner == broken else 1):
                made.see(False, owner, refused=0.0)
                made.see(True, owner, refused=float(owner == broken))
        assert frame or made.worse() is None, "nor at once, before others have come"
    return made


@pytest.mark.parametrize("others", [1, 2, 20])
def test_one_device_that_sends_only_broken_frames_takes_no_version_back(others: int) -> None:
    fleet = [("acme", f"gate-{number}") for number in range(others + 1)]
    for broken in fleet:
        made = devices(*fleet, broken=broken, frames=40)
        assert made.figures()["refused"]["evidence"] == 1e9
        assert made.worse() is None and made.worse(settled=True) is None


def test_one_tenants_devices_take_no_version_back_that_others_use_too() -> None:
    made = Comparison(0.05, ALARMS)
    for frame in range(400):
        for tenant, bad in (("mallory", 1.0), ("acme", 0.0)):
            owner = (tenant, f"gate-{frame % 10}")
            made.see(False, owner, refused=0.0)
            made.see(True, owner, refused=bad)
    assert made.worse() is None and made.worse(settled=True) is None


@pytest.mark.parametrize("tenants", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_version_that_is_worse_for_everyone_is_taken_back(tenants: int, count: int) -> None:
    made, drawn = Comparison(0.05, ALARMS), np.random.default_rng(5)
    for frame in range(400):
        owner = (f"tenant-{frame % tenants}", f"gate-{frame // tenants % count}")
        made.see(False, owner, refused=0.0)
        made.see(True, owner, refused=float(drawn.random() < 0.5))
    assert made.worse() is not None


def test_the_only_device_of_the_new_version_decides_once_no_other_will_come() -> None:
    made = Comparison(0.05, ALARMS)
    for frame in range(100):
        made.see(False, ("acme", f"gate-{frame % 7}"), refused=0.0)
        made.see(True, ("acme", "gate-9"), refused=1.0)
    assert made.worse() is None and made.worse(settled=True) is not None


def test_a_device_on_the_old_version_hides_no_worse_version_behind_broken_frames() -> None:
    made, drawn = Comparison(0.05, ALARMS), np.random.default_rng(7)
    for frame in range(400):
        for _ in range(20):
            made.see(False, ("mallory", "flood"), refused=1.0)
        made.see(False, ("acme", f"gate-{frame % 9}"), refused=0.0)
        made.see(True, (f"tenant-{frame % 2}", f"door-{frame % 8}"), refused=0.5 < drawn.random())
    worse = made.worse()
    assert worse is not None and worse.before < 0.2


def test_a_device_on_the_old_version_that_sends_broken_frames_makes_no_new_version_worse() -> None:
    made = Comparison(0.05, ALARMS)
    for frame in range(400):
        for _ in range(20):
            made.see(False, ("mallory", "flood"), refused=1.0)
        made.see(False, ("acme", f"gate-{frame % 9}"), refused=0.0)
        made.see(True, ("acme", f"door-{frame % 9}"), refused=0.0)
        assert made.worse() is None and made.worse(settled=True) is None
