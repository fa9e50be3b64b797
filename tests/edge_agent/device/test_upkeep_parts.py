"""The log on the disk, crash reports and the pulse, by themselves: bounds, full disks, movement."""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.device.crash import MOST_BYTES, CrashReports
from edge_agent.device.log_ring import LogRing, newest
from edge_agent.device.pulse import DISK, MODEL, Pulse


def test_the_log_keeps_the_newest_lines_within_its_bytes(tmp_path: Path) -> None:
    ring = LogRing(tmp_path / "logs", 40_000)
    for number in range(2000):
        ring.write(json.dumps({"number": number, "padding": "x" * 80}) + "\n")
    ring.close(60)
    files = list((tmp_path / "logs").iterdir())
    assert sum(file.stat().st_size for file in files) <= 40_000 and len(files) == 4
    assert json.loads(newest(tmp_path / "logs")[-1])["number"] == 1999
    assert ring.dropped == 0


def test_a_disk_that_takes_nothing_costs_lines_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the folder's place")
    ring = LogRing(tmp_path / "logs", 40_000)
    for number in range(10):
        ring.write(f'{{"number": {number}}}\n')
    ring.close(60)
    assert ring.dropped == 10 and len(ring.tail()) == 10


def test_a_full_disk_costs_lines_until_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "agent.jsonl").symlink_to("/dev/full")
    ring = LogRing(tmp_path, 40_000)
    ring.write("{}\n" * 5)
    ring.close(60)
    assert ring.dropped == 5


def test_a_line_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    ring = LogRing(tmp_path, 40_000)
    ring.write("y" * (1 << 20) + "\n")
    ring.close(60)
    (line,) = newest(tmp_path)
    assert json.loads(line)["event"] == "long_line" and len(line) < 2000


def test_reports_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    now = [2e9]
    reports = CrashReports(tmp_path, "boot", lambda: now[0])
    facts = {"version": "1", "settings": {"questions": ["ü" * 500_000]}}
    for _ in range(30):
        now[0] += 1
        reports.begin(facts, [])
        reports.failed(RuntimeError("z" * 100_000), ["ä" * 900] * 500)
        reports.end()
    waiting = reports.waiting()
    assert len(waiting) == 16 and all(file.stat().st_size <= MOST_BYTES for file in waiting)
    reports.sent(waiting[0])
    assert len(reports.waiting()) == 15


def test_a_run_of_another_boot_lost_its_power(tmp_path: Path) -> None:
    before = CrashReports(tmp_path, "boot-1")
    assert before.begin({"version": "1"}, []) is None
    left = (tmp_path / "running.json").read_bytes()
    before.end()
    (tmp_path / "running.json").write_bytes(left)
    after = CrashReports(tmp_path, "boot-2")
    found = after.begin({"version": "2"}, ["{}"])
    after.end()
    assert found is not None and (found["kind"], found["version"]) == ("power", "1")


def test_damaged_facts_of_the_run_before_are_no_report(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text("{ half")
    reports = CrashReports(tmp_path, "boot")
    assert reports.begin({}, []) is None
    reports.end()


def test_steps_that_end_are_movement_and_each_kind_counts_by_itself() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    with pulse.step(MODEL):
        now[0] = 5.0
        with pulse.step(MODEL):
            now[0] = 9.0
        now[0] = 18.0
        assert pulse.stuck(10.0) == "", "a run of the model ended 9 s ago"
        with pulse.step(DISK):
            pass
        now[0] = 19.5
        assert pulse.stuck(10.0) == MODEL, "the disk moves, the model does not"
    assert pulse.stuck(10.0) == ""
