"""Restraint: a hot or thirsty device takes fewer captures at cheaper points; it recovers slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.device.power import read
from edge_agent.metrics import Metrics
from edge_agent.uplink.point_controller import PointController, Rung
from edge_agent.uplink.restraint import Restraint
from protos.process import logs

RUNGS = (Rung("a", 20, 0.5, 0.4), Rung("b", 40, 0.8, 0.3), Rung("c", 80, 0.95, 0.2))


class Board:
    """A Jetson's sysfs in a folder, and its time."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.waited = root, 0.0, 0.0
        chip = root / "sys/bus/i2c/devices/1-0040"
        self._hwmon, self._zone = chip / "hwmon/hwmon3", root / "sys/class/thermal/thermal_zone0"
        self._hwmon.mkdir(parents=True)
        self._zone.mkdir(parents=True)
        (chip / "name").write_text("ina3221\n")
        (self._hwmon / "in1_label").write_text("VDD_IN\n")
        (self._hwmon / "in1_input").write_text("5000\n")
        (self._zone / "type").write_text("tj-thermal\n")
        self.set(watts=5.0, celsius=50.0)

    def set(self, watts: float | None = None, celsius: float | None = None) -> None:
        if watts is not None:
            (self._hwmon / "curr1_input").write_text(f"{round(watts * 200)}\n")
        if celsius is not None:
            (self._zone / "temp").write_text(f"{round(celsius * 1000)}\n")

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def restraint(board: Board, **limits: Any) -> Restraint:
    return Restraint(
        lambda: read(board.root),
        Metrics(),
        logs.configure("error"),
        clock=lambda: board.now,
        sleep=board.sleep,
        **limits,
    )


def work(made: Restraint, board: Board, seconds: float, watts: float = 5.0) -> float:
    """Capture for so long, each second of work at so many watts; the captures a second."""
    begun, count = board.now, 0
    while board.now - begun < seconds:
        board.set(watts=5.0)
        made.wait(lambda: False)
        board.set(watts=watts)
        board.now += 0.5
        made._look()  # the sensors are read in between
        board.now += 0.5
        count += 1
    return count / (board.now - begun)


def chosen(made: Restraint) -> str:
    controller = PointController()
    controller.rungs_down = lambda: made.rungs
    return controller.choose(RUNGS, "c")


def test_without_limits_nothing_is_held_back(board: Board) -> None:
    made = restraint(board)
    board.set(celsius=110.0)
    assert work(made, board, 120.0, watts=40.0) == 1.0
    assert (board.waited, chosen(made)) == (0.0, "c")


@pytest.mark.slow
def test_heat_halves_the_captures_then_lowers_the_point_and_both_come_back(board: Board) -> None:
    made = restraint(board, celsius=85.0)
    board.set(celsius=86.0)
    rates = [work(made, board, 12.0) for _ in range(3)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.6
    work(made, board, 60.0)
    assert chosen(made) == "a"
    level = made.metrics.restraint.labels("heat")._value.get()
    board.set(celsius=82.0)  # neither hot nor well below
    work(made, board, 300.0)
    assert made.metrics.restraint.labels("heat")._value.get() == level
    board.set(celsius=70.0)
    work(made, board, 2000.0)
    assert made.metrics.restraint.labels("heat")._value.get() == 0
    assert (work(made, board, 60.0), chosen(made)) == (1.0, "c")


def test_a_temperature_that_swings_around_the_limit_does_not_swing_the_level(board: Board) -> None:
    made = restraint(board, celsius=85.0)
    levels = []
    for turn in range(40):
        board.set(celsius=85.5 if turn % 4 == 0 else 83.0)
        work(made, board, 10.0)
        levels.append(made.metrics.restraint.labels("heat")._value.get())
    assert levels == sorted(levels)


def test_captures_that_cost_too_much_go_at_cheaper_points_first(board: Board) -> None:
    made = restraint(board, joules=4.0)
    work(made, board, 11.0, watts=15.0)
    before = board.waited
    work(made, board, 11.0, watts=15.0)
    assert chosen(made) in ("a", "b") and board.waited == before == 0.0
    work(made, board, 60.0, watts=15.0)
    assert board.waited > 0.0
    assert made.metrics.joules._value.get() > 4.0


def test_captures_within_the_budget_are_not_held_back(board: Board) -> None:
    made = restraint(board, joules=4.0)
    assert work(made, board, 120.0, watts=6.0) == 1.0
    assert chosen(made) == "c"


def test_a_board_without_sensors_is_never_held_back(tmp_path: Path, board: Board) -> None:
    made = restraint(board, joules=0.1, celsius=20.0)
    made.readings = lambda: read(tmp_path / "nothing")
    assert work(made, board, 120.0, watts=40.0) == 1.0
    assert chosen(made) == "c"


def test_frames_that_wait_for_long_take_a_rung_off_new_ones(board: Board) -> None:
    ages = iter([0.0, 59.0, 61.0, 30.0, 9.0, 30.0])
    made = restraint(board, oldest_s=lambda: next(ages))
    assert [chosen(made) for _ in range(6)] == ["c", "c", "b", "b", "c", "c"]


def test_a_pause_ends_with_the_run(board: Board) -> None:
    made = restraint(board, celsius=20.0)
    work(made, board, 100.0)
    before = board.waited
    made.wait(lambda: True)
    assert board.waited == before
