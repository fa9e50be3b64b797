"""The controller: where it stands on the ladder, and when frames wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.controller import Trace, recorded, simulate, traces
from edge_agent.uplink.link import Link
from edge_agent.uplink.point_controller import PointController, Rung, climbable
from protos.errors import ConfigError

LOW, MID, HIGH = (
    Rung("low", 100.0, 0.91, 0.6),
    Rung("mid", 1000.0, 0.93, 0.3),
    Rung("high", 10_000.0, 0.95, 0.1),
)
LADDER = (MID, HIGH, LOW)


class Simulated:
    """A controller on a link of a given rate; frames are sent one after the other."""

    def __init__(self, latency_s: float | None = 0.5, distortion: float | None = None) -> None:
        self.now = 0.0
        self.switched: list[tuple[str, str]] = []
        self.controller = PointController(
            latency_s,
            distortion,
            clock=lambda: self.now,
            on_switch=lambda before, after: self.switched.append((before, after)),
        )
        self._frames = 0

    def frames(self, count: int, bytes_per_s: float, rtt_s: float = 0.05) -> list[str]:
        chosen = []
        for _ in range(count):
            name = self.controller.choose(LADDER, "high")
            size = next(r.wire_bytes for r in LADDER if r.name == name)
            self._frames += 1
            self.controller.sent(self._frames, int(size))
            spent_s = rtt_s + size / bytes_per_s
            self.now += spent_s
            self.controller.ended(self._frames, 0.0)
            self.now += max(0.0, 0.2 - spent_s)
            chosen.append(name)
        return chosen


def test_a_point_that_a_cheaper_one_reaches_is_no_rung() -> None:
    worse = Rung("worse", 2000.0, 0.92, 0.2)
    assert climbable([HIGH, worse, LOW, MID]) == (LOW, MID, HIGH)


def test_frames_given_up_late_still_say_that_the_link_is_slow() -> None:
    link = Link()
    for number in range(8):
        link.sent(number, 100, at=float(number))
        link.lost(number, at=number + 0.9)
    assert link.delay(100, at=9.0) >= 0.9
    assert link.in_time(100, at=9.0, objective_s=0.8) < 0.5


def test_while_the_link_is_silent_the_advised_rung_is_stood_on_and_frames_still_go() -> None:
    run = Simulated()
    assert run.frames(40, 1e6)[-1] == "high"
    run.controller.sent("stuck", 10_000)
    run.now += 3.0
    assert run.controller.choose(LADDER, "high", "mid") == "mid"
    assert run.controller.may_send(LADDER)
    run = Simulated()
    run.frames(40, 1e6)
    run.controller.sent("stuck", 10_000)
    run.now += 3.0
    dominated = Rung("advised", 2000.0, 0.92, 0.2)
    assert run.controller.choose([*LADDER, dominated], "high", "advised") == "mid"


def test_a_link_that_narrows_takes_the_ladder_down_and_back_up_when_it_widens() -> None:
    run = Simulated()
    assert run.frames(10, 1e6)[-1] == "high"
    narrow = run.frames(20, 2000.0)
    assert narrow[0] == "high" and narrow[-1] == "low"
    assert narrow.count("high") <= 2
    assert run.frames(1000, 1e6)[-1] == "high"


@pytest.mark.slow
def test_a_point_that_keeps_failing_is_tried_ever_less_often() -> None:
    run = Simulated()
    run.frames(3000, 6000.0)
    early = sum(before == "mid" for before, _ in run.switched[: len(run.switched) // 2])
    assert len(run.switched) < 30 and early < 15


def test_the_distortion_limit_is_never_exceeded_however_slow_the_link() -> None:
    run = Simulated(distortion=0.4)
    assert set(run.frames(100, 500.0)) <= {"mid", "high"}
    assert Simulated(distortion=0.01).controller.choose(LADDER, "mid") == "high"
    assert Simulated(distortion=0.2).controller.choose(LADDER, "low") == "high"


def test_what_cannot_be_kept_to_is_said() -> None:
    limited = Simulated(distortion=0.01).controller
    assert "sent, at" in limited.unmet(LADDER, "high")
    assert "not measured" in limited.unmet(LADDER, "picture")
    assert "no operating point was measured" in limited.unmet([], "mid")
    assert "up to low" in Simulated(distortion=0.4).controller.unmet(LADDER, "low")
    assert Simulated(distortion=0.4).controller.unmet(LADDER, "high") == ""
    assert PointController().unmet([], "mid") == ""


def test_a_rung_that_brings_fewer_answers_per_byte_than_a_dearer_one_is_never_stood_on() -> None:
    poor = Rung("poor", 90.0, 0.7, 0.8)  # .0078 answers a byte, LOW has .0091
    assert climbable([*LADDER, poor]) == (LOW, MID, HIGH)
    thin = Rung("thin", 30.0, 0.7, 0.8)
    assert climbable([*LADDER, thin]) == (thin, LOW, MID, HIGH)
    assert climbable([]) == ()


def test_a_run_begins_on_the_advised_point_and_climbs_from_there() -> None:
    run = Simulated()
    assert run.controller.choose(LADDER, "high", "mid") == "mid"
    assert Simulated().controller.choose(LADDER, "mid", "high") == "mid"
    assert Simulated().controller.choose(LADDER, "high", "gone") == "high"
    for number in range(400):
        name = run.controller.choose(LADDER, "high", "mid")
        run.controller.sent(number, int(next(r.wire_bytes for r in LADDER if r.name == name)))
        run.now += 0.05
        run.controller.ended(number, 0.0)
    assert run.controller.current == "high"


def test_without_an_objective_and_a_limit_the_advice_stands() -> None:
    assert Simulated(latency_s=None).controller.choose(LADDER, "mid") == "mid"
    assert Simulated().controller.choose(LADDER, "unmeasured") == "unmeasured"


def test_frames_wait_at_the_source_only_while_an_end_will_wake_them() -> None:
    run = Simulated()
    run.frames(20, 300.0)
    assert run.controller.may_send(LADDER)
    run.controller.sent("more", 100)
    assert not run.controller.may_send(LADDER)
    run.controller.lost("more")
    assert run.controller.may_send(LADDER)


def test_a_long_way_holds_no_frame_back_for_no_waiting_mends_it() -> None:
    run = Simulated()
    run.frames(20, 1e6, rtt_s=0.45)
    for number in range(4):
        assert run.controller.may_send(LADDER)
        run.controller.sent(f"more {number}", 100)


def test_frames_that_are_admitted_count_before_they_are_sent() -> None:
    run = Simulated()
    assert run.controller.may_send(LADDER)
    run.controller.admit()
    assert not run.controller.may_send(LADDER)  # nothing is known of the link: one by one
    run.controller.settle(0)
    run.frames(20, 1000.0)
    admitted = 0
    while run.controller.may_send(LADDER) and admitted < 8:
        run.controller.admit()
        admitted += 1
    assert 1 <= admitted <= 4  # a tenth of a second each
    for number in range(admitted):
        run.controller.sent(f"more {number}", 100)
    assert not run.controller.may_send(LADDER)


def test_an_answer_that_was_worked_on_before_it_was_sent_again_says_nothing_of_the_link() -> None:
    link = Link()
    for number, size in enumerate([100, 4000, 900, 2500, 100, 6000]):
        link.sent(number, size, at=float(number))
        link.ended(number, at=number + 0.08 + size / 20_000, server_s=0.0)
    before = link.bytes_per_s, link.rtt_s
    link.sent("again", 4000, at=9.0)
    link.ended("again", at=9.3, server_s=2.0)
    assert (link.bytes_per_s, link.rtt_s) == before and link.idle


def test_over_an_outage_frames_are_late_but_few_of_those_after_it() -> None:
    quiet = traces(60, 0)[0]
    rate = quiet.bytes_per_s * 0 + 50_000.0
    rate[200:300] = 0.0
    cut = Trace("cut", rate, quiet.rtt_s * 0 + 0.05)
    run = simulate(cut, LADDER)
    assert 10 / 60 <= run.late_share < 14 / 60


@pytest.mark.slow
def test_the_controller_beats_every_fixed_point_where_the_rate_changes() -> None:
    steps = traces(96, 0)[0]
    fixed = max(simulate(steps, LADDER, rung.name).score for rung in LADDER)
    assert simulate(steps, LADDER).score > fixed


def test_a_recorded_trace_is_packets_in_their_steps(tmp_path: Path) -> None:
    path = tmp_path / "link.up"
    path.write_text("".join(f"{at}\n" for at in (0, 0, 99, 100, 950)))
    (one,) = recorded(path, 0.5, 1)
    assert one.name == "link"
    assert one.bytes_per_s[:2].tolist() == [22_500.0, 7_500.0]
    assert one.bytes_per_s[2:9].sum() == 0
    assert len(one.rtt_s) == len(one.bytes_per_s) == 10
    path.write_text("".join(f"{at}\n" for at in range(2400)))
    assert [len(part.bytes_per_s) for part in recorded(path, 1.0, 1)] == [10, 10]


@pytest.mark.parametrize("text", ["", "five", "2\n1\n", "-1\n2\n", f"{10**12}\n", f"{10**30}\n"])
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "link.up"
    path.write_text(text)
    with pytest.raises(ConfigError, match="link.up"):
        recorded(path, 1.0, 1)
