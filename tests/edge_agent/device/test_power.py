"""Readings of boards' sensors, of broken ones, and of ones that never answer."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.device.power import Readings, Sensors, read
from edge_agent.metrics import Metrics
from tests.edge_agent.device import boards

THERMAL = "sys/devices/virtual/thermal"


@pytest.mark.parametrize(
    ("board", "watts", "celsius", "mode"),
    [
        (boards.orin_nano, 5.056 * 1.480, 51.531, "25W"),
        (boards.agx_orin, 19.864 * 0.3 + 5.032, 51.531, "3"),
        (boards.thor, 19.96 * 1.75, 46.5, "0"),
        (boards.plain, None, 38.0, ""),
    ],
)
def test_each_board_says_its_watts_once_its_hottest_zone_and_its_mode(
    board: Callable[[Path], Path], watts: float | None, celsius: float, mode: str, tmp_path: Path
) -> None:
    found = read(board(tmp_path))
    assert found.watts == (None if watts is None else pytest.approx(watts, rel=1e-9))
    assert (found.celsius, found.mode, found.throttled) == (celsius, mode, False)


def test_rails_zones_and_the_gpu_are_named(tmp_path: Path) -> None:
    found = read(boards.orin_nano(tmp_path))
    assert found.rails["VDD_SOC"] == pytest.approx(5.048 * 0.312)
    assert set(found.rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}, "no shunt voltages or sums"
    assert found.zones["gpu-thermal"] == 49.718 and "cv0-thermal" not in found.zones
    assert found.gpu_hz == 611_999_939


def test_a_slowed_processor_is_throttled_and_a_turning_fan_is_not(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    assert not read(root).throttled
    boards.write(root, {f"{THERMAL}/cooling_device1/cur_state": "2"})
    assert read(root).throttled


def test_an_empty_machine_has_no_readings(tmp_path: Path) -> None:
    assert read(tmp_path) == Readings()


@pytest.mark.parametrize("rubbish", ["", "n/a", "12 34", "9" * 400, "-1e9", "\x00\xff", "-5"])
def test_rubbish_is_passed_over(rubbish: str, tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    for path in root.rglob("*"):
        if path.is_file() and path.name not in ("name", "type"):
            path.write_text(rubbish)
    found = read(root)
    assert found.watts is None or 0.0 <= found.watts < 1e-3  # -5 mV times -5 mA
    assert found.mode == "" and found.celsius in (None, -0.005)


def test_files_that_vanish_while_they_are_read_are_passed_over(tmp_path: Path) -> None:
    root = boards.agx_orin(tmp_path)
    shutil.rmtree(root / "sys/bus/i2c/devices/1-0041")
    (root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr2_input").unlink()
    (root / "sys/bus/i2c/devices/1-0050").symlink_to(root / "gone")
    shutil.rmtree(root / THERMAL)
    found = read(root)
    assert found.watts == pytest.approx(19.864 * 0.2 + 5.032)
    assert found.celsius is None


def test_a_pipe_in_a_sensors_place_holds_up_nobody(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    for path in (root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input",
                 root / "var/lib/nvpmodel/status"):  # fmt: skip
        path.unlink()
        os.mkfifo(path)
    found = read(root)
    assert found.mode == "" and found.celsius == 51.531


def test_a_bus_that_hangs_leaves_no_stale_reading_and_holds_up_nobody(tmp_path: Path) -> None:
    now, root = [100.0], boards.orin_nano(tmp_path)
    hangs, entered, release = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> Readings:
        if hangs.is_set():
            entered.set()
            release.wait()
        return read(root)

    sensors = Sensors(slowly, every_s=0.001, stale_s=15.0, clock=lambda: now[0])
    assert sensors.latest() == Readings()
    sensors.refresh()
    hangs.set()
    sensors.start()
    assert entered.wait(30)
    assert sensors.latest().mode == "25W"
    now[0] += 15.1
    assert sensors.latest() == Readings()
    sensors.stop()
    release.set()


def test_metrics_show_the_newest_readings(tmp_path: Path) -> None:
    metrics, sensors = Metrics(), Sensors(lambda: read(boards.orin_nano(tmp_path)))

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"neural_bridge_edge_{name}")

    metrics.watch(sensors.latest)
    assert value("power_watts") != value("power_watts"), "NaN: nothing was read"
    sensors.refresh()
    assert value("power_watts") == pytest.approx(7.48288)
    assert value("temperature_celsius") == 51.531 and value("throttled") == 0.0
