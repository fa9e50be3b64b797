"""What `make bench-edge` builds on: the narrow link, captures at their times, and its figures."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.edge.answer_times import arrivals
from benchmarks.edge.device import DeviceJob, Due, Paced
from benchmarks.edge.endurance import Moment, summary
from benchmarks.edge.faults import faults
from benchmarks.edge.figures import at_least, at_most, not_run, percentile
from benchmarks.edge.narrow import Direction, Shape, narrow

MAY = (
    os.geteuid() == 0 and Path("/dev/net/tun").exists() and all(map(shutil.which, ("ip", "sysctl")))
)


def way(shape: Shape) -> Direction:
    return Direction(shape, random.Random(0))


def test_packets_leave_one_after_the_other_at_the_rate() -> None:
    up = way(Shape(bits_per_s=8000, delay_s=0.5))
    up.take(bytes(1000), 0.0)
    up.take(bytes(500), 0.1)
    assert up.due(1.49) == []
    assert up.due(1.5) == [bytes(1000)], "a second for its bytes, and the delay"
    assert up.wakes_at == 2.0, "the second one is on its way"
    assert up.due(1.99) == []
    assert up.due(2.0) == [bytes(500)]
    assert up.wakes_at == float("inf") and up.carried_bytes == 1500


def test_a_link_that_is_down_keeps_what_waits_and_goes_on_at_another_rate() -> None:
    shape = Shape(bits_per_s=0)
    up = way(shape)
    up.take(bytes(1000), 0.0)
    assert up.due(1000.0) == []
    shape.bits_per_s = 8000
    up.changed(1000.0)
    assert up.due(1001.0) == [bytes(1000)]


def test_a_queue_drops_what_would_wait_for_too_long_but_four_packets_may() -> None:
    up = way(Shape(bits_per_s=8000, queue_s=1.0))
    for _ in range(5):
        up.take(bytes(1500), 0.0)
    assert up.dropped == 1
    assert len(up.due(100.0)) == 4


def test_losses_are_drawn_and_take_their_time_on_the_link() -> None:
    up = way(Shape(bits_per_s=8e6, loss=0.25))
    arrived = 0
    for number in range(4000):
        up.take(bytes(1000), float(number))
        arrived += len(up.due(number + 0.5))
    assert 2800 < arrived < 3200
    assert up.packets == 4000


@pytest.mark.skipif(not MAY, reason="namespaces need root, iproute2 and /dev/net/tun")
def test_a_namespace_reaches_this_side_over_the_link() -> None:
    send = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
    send += "s.sendall(bytes(20000)); s.recv(1)"
    with narrow(Shape(1e6)) as link, socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        inside = link.inside.command(sys.executable, "-c", send, link.inside.address, port)
        sender = subprocess.Popen(inside)
        call, _ = server.accept()
        with call:
            received = 0
            while received < 20000:
                received += len(call.recv(65536))
            call.sendall(b"!")
            assert sender.wait(60) == 0
        assert link.up.carried_bytes > 20000
    gone = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert link.inside.name not in gone


def paced(folder: Path, *times_s: float, newest: bool) -> Paced:
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    dues = [Due(at_s, 0, "what ?", 3600.0) for at_s in times_s]
    return Paced(DeviceJob({}, str(folder), dues, newest, "old"), lambda: None)


def test_captures_come_in_order_and_as_old_as_they_are(tmp_path: Path) -> None:
    found = list(paced(tmp_path, 0.0, 0.0, 0.001, newest=False))
    assert [one.name for one in found] == ["old-0", "old-1", "old-2"]
    assert found[0].questions == ("what ?",)
    assert found[0].captured_monotonic_s is not None


def test_of_captures_that_wait_a_camera_gives_the_newest(tmp_path: Path) -> None:
    source = paced(tmp_path, -3.0, -2.0, -1.0, newest=True)
    assert [one.name for one in source] == ["old-2"]
    assert source.skipped == 2


def test_a_device_job_survives_its_file(tmp_path: Path) -> None:
    job = DeviceJob({"in_flight": 2}, "pictures", [Due(0.5, 3, "what ?")], True, "live", 8, 100)
    job.write(tmp_path / "job.json")
    assert DeviceJob.read(tmp_path / "job.json") == job


def test_arrivals_are_as_many_a_second_as_asked_and_the_same_again() -> None:
    times = arrivals(5.0, 2000)
    assert times == sorted(times) == arrivals(5.0, 2000)
    assert 4.7 < len(times) / times[-1] < 5.3


def test_a_percentile_is_a_value_that_came() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.95) == 95.0
    assert percentile(values[:20], 0.95) == 19.0
    assert percentile([], 0.95) == float("inf")


def test_figures_say_whether_they_are_met_or_not_known() -> None:
    assert at_most("x", 5.0, 5.0, "%")["met"] and not at_most("x", 5.01, 5.0, "%")["met"]
    assert at_least("x", float("inf"), 3.0, "")["value"] is None, "strict JSON has no infinity"
    assert not_run("x", "≤ 0", "", "why")["met"] is None


def samples(growth: float, descriptors: int = 20) -> list[Moment]:
    return [
        Moment(float(second), int(1e8 * (1 + growth * second / 600)), 1, 20, 9, 2)
        if second < 580
        else Moment(float(second), int(1e8 * (1 + growth)), 1, descriptors, 9, 2)
        for second in range(600)
    ]


def test_a_long_run_is_judged_by_its_last_minute_against_that_after_a_sixth() -> None:
    assert summary(samples(0.0), 600.0)["growth_percent"] == 0.0
    assert 7.0 < summary(samples(0.1), 600.0)["growth_percent"] < 9.0
    assert summary(samples(0.0, descriptors=23), 600.0)["more"] == 3


def test_faults_are_read_from_their_report_and_never_guessed(tmp_path: Path) -> None:
    report = tmp_path / "edge_faults.json"
    for figure in faults(tmp_path, False, report)["figures"]:
        assert figure["value"] is None and figure["met"] is None and figure["not_run"]
    report.write_text(json.dumps({"kinds": {}, "faults": 3000, "lost": 0, "doubled": 1}))
    lost, injected = faults(tmp_path, False, report)["figures"]
    assert lost["value"] == 1 and not lost["met"] and injected["met"]
