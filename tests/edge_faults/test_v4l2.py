"""Video devices of a kernel that fail under the agent's cameras, by PyAV.

One virtual machine is started; `video_devices.py` runs there and says what it saw.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cameras.states import ADVICE
from tests.edge_faults import machine
from tests.edge_faults.faults import FULL, EdgeFaults
from tests.edge_faults.video_devices import READERS, SIZE

_LIMIT_S = 900.0
Seen = dict[str, Any]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    if not FULL:
        pytest.skip("an emulated machine with video devices: make test-edge")
    if machine.why_not():
        pytest.skip(f"no machine with video devices: {machine.why_not()}")
    folder = tmp_path_factory.mktemp("machine")
    devices = "n_devs=1 node_types=1 ccs_cap_mode=0"
    try:
        printed = machine.boot(folder, "tests.edge_faults.video_devices", devices, _LIMIT_S)
        found = [json.loads(line) for line in printed]
        assert found and found[-1]["step"] == "ends", found
    except (AssertionError, ValueError, subprocess.SubprocessError):
        print(_end(folder / "console.log"))
        raise
    for line in found:
        print(line)
    return found


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-5000:] if log.exists() else "no console"


@pytest.fixture(params=READERS)
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def step(lines: list[Seen], name: str, by: str) -> Seen:
    """What was seen in one step; the test fails with the reason if it was not reached."""
    of = [line for line in lines if line.get("by") == by]
    found = [line for line in of if line["step"] == name]
    assert found, next((line for line in of if line["step"] == "failed"), f"no step {name}")
    return found[0]


def test_a_device_is_seen_at_the_size_that_it_has(lines: list[Seen], by: str) -> None:
    seen = step(lines, "sees", by)
    assert tuple(seen["size"]) == tuple(seen["device_size"]) == SIZE
    assert seen["colours"] >= 8 and not seen["restarts"]


def test_a_second_launch_is_told_in_one_line_and_the_first_goes_on(
    lines: list[Seen], by: str
) -> None:
    seen = step(lines, "busy", by)
    (event,) = seen["events"]
    assert (event["event"], event["state"]) == ("camera", "device_busy")
    assert event["level"] == "warning" and event["advice"] == ADVICE["device_busy"]
    assert seen["taken_by_second"] == 0 and not seen["restarts"]


def test_an_unplugged_device_is_noticed_and_seen_again_once_it_is_back(
    lines: list[Seen], by: str
) -> None:
    seen = step(lines, "unplugged", by)
    assert set(seen["restarts"]) == {"no_device"} and seen["noticed_s"] < 10


def test_a_device_that_hangs_costs_one_process(lines: list[Seen]) -> None:
    assert set(step(lines, "hangs", "pyav")["restarts"]) == {"silent"}


def test_a_device_that_repeats_one_picture_is_opened_again(lines: list[Seen]) -> None:
    assert set(step(lines, "repeats", "pyav")["restarts"]) == {"frozen"}


def test_a_damaged_picture_restarts_nothing(lines: list[Seen]) -> None:
    assert not step(lines, "damaged", "pyav")["restarts"]


def test_a_stream_that_the_driver_gives_up_is_begun_again(lines: list[Seen], by: str) -> None:
    assert sum(step(lines, "breaks", by)["restarts"].values()) >= 1


def test_another_camera_at_the_same_place_is_seen_at_its_own_size(lines: list[Seen]) -> None:
    step(lines, "replaced", "pyav")  # it waited for pictures of 720 x 576
    step(lines, "standard", "pyav")  # and then for 720 x 480


def test_each_picture_is_taken_once_or_counted_and_no_process_is_left(
    lines: list[Seen], edge_faults: EdgeFaults
) -> None:
    assert lines[-1]["processes"] == []
    for by in {line["by"] for line in lines if "by" in line}:
        seen = step(lines, "ends", by)
        lost = seen["handed_over"] - seen["taken"] - seen["left_out"]
        edge_faults.judged(f"V4L2: {by}", seen["faults"], seen["taken"], lost, seen["doubled"])
