"""The spool itself: what is kept, what goes when it is full or old, damage, keys, disks."""

from __future__ import annotations

import io
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord
from edge_agent.spool.entry import Bounds, Drop, Entry
from edge_agent.spool.spool import Spool
from edge_agent.spool.spool_clock import SpoolClock
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.vault import Vault
from protos.errors import DiskFullError, SpoolError
from protos.process import logs

ALARM, NORMAL, LATER = 0, 1, 2


def stored(number: int, size: int = 80) -> StoredFrame:
    record = AnswerRecord(f"{number:016x}", f"c{number}", 7.0, "is there smoke ?", point="fp8")
    return StoredFrame(
        record, bytes([number % 256]) * size, b"", bytes(16), "3" * 64, "2" * 64, "b 1"
    )


@dataclass
class Device:
    """A device's clocks and its spool, opened again and again."""

    folder: Path
    bounds: Bounds = Bounds()
    vault: Vault = Vault()
    booted: float = 100.0
    wall: float = 1.8e9
    boot: str = "one"
    metrics: Metrics = field(default_factory=Metrics)
    logged: io.StringIO = field(default_factory=io.StringIO)

    def spool(self) -> Spool:
        clock = SpoolClock(self.boot, lambda: self.booted, lambda: self.wall)
        log = logs.configure("info", stream=self.logged)
        made = Spool(self.folder, self.bounds, self.vault, self.metrics, log, clock)
        made.open()
        return made

    def reboot(self, off_s: float = 0.0) -> None:
        self.boot, self.booted, self.wall = self.boot + "+", 10.0, self.wall + off_s

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value("neural_bridge_edge_" + name) or 0.0


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "spool")


def put(spool: Spool, frame: StoredFrame, rank: int = NORMAL) -> list[Drop]:
    """What the agent does: make room, then accept."""
    drops, room = spool.room_for(frame, rank)
    spool.end([drop.id for drop in drops])
    if room:
        spool.accept(frame, rank)
    else:
        drops.append(Drop(0, "full", frame, frame.request_id))
    return drops


def waits(spool: Spool) -> list[str]:
    found = spool.waiting(1_000_000)
    return [entry.frame.record.capture for entry in found if isinstance(entry, Entry)]


# ---------------------------------------------------------------------- order, restarts


def test_frames_come_back_after_a_restart_alarms_first_then_the_oldest(device: Device) -> None:
    with device.spool() as spool:
        for number, rank in enumerate([NORMAL, LATER, ALARM, NORMAL]):
            put(spool, stored(number), rank)
    with device.spool() as spool:
        assert waits(spool) == ["c2", "c0", "c3", "c1"]
        first = spool.waiting(1)[0]
        assert isinstance(first, Entry) and first.frame == stored(2)
        assert [e.id for e in spool.waiting(9, busy={first.id})] == [1, 4, 2]
        spool.end([first.id])
        assert (spool.frames, device.value("spool_frames")) == (3, 3)
    with device.spool() as spool:
        assert waits(spool) == ["c0", "c3", "c1"]
        spool.end([1, 2, 4, 99])
        assert (spool.frames, spool.bytes) == (0, 0)


def test_a_row_that_ended_never_lends_its_id_to_another_one_of_this_run(device: Device) -> None:
    with device.spool() as spool:
        first = spool.accept(stored(1), NORMAL)
        spool.end([first.id])
        assert spool.accept(stored(2), NORMAL).id > first.id


# ---------------------------------------------------------------------- bounds


def test_when_full_the_oldest_of_the_lowest_priority_go_and_alarms_stay(tmp_path: Path) -> None:
    device = Device(tmp_path, Bounds(most_bytes=1 << 20))
    with device.spool() as spool:
        put(spool, stored(0, 20_000), ALARM)
        put(spool, stored(1, 20_000), LATER)
        dropped = [d for n in range(2, 100) for d in put(spool, stored(n, 20_000))]
        names = [drop.frame.record.capture for drop in dropped if drop.frame]
        assert names[:3] == ["c1", "c2", "c3"] and {drop.cause for drop in dropped} == {"full"}
        assert waits(spool)[0] == "c0" and waits(spool)[-1] == "c99"
        assert sorted(names + waits(spool)) == sorted(f"c{n}" for n in range(100))
        refused = put(spool, stored(100, 20_000), LATER)
        assert [drop.id for drop in refused] == [0]  # it is itself of the lowest priority
        on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert on_disk <= (1 << 20) + (2 << 20)  # the log and the index of the log come on top


def test_thinning_out_leaves_frames_of_all_hours(tmp_path: Path) -> None:
    device = Device(tmp_path, Bounds(most_bytes=1 << 20, when_full="thin_out"))
    with device.spool() as spool:
        dropped = [d for n in range(120) for d in put(spool, stored(n, 20_000))]
        left = [int(name[1:]) for name in waits(spool)]
    assert {drop.cause for drop in dropped} <= {"thinned", "full"}
    assert len(left) + len(dropped) == 120 and len(left) >= 30
    assert left[0] < 20 and left[-1] == 119
    assert max(b - a for a, b in zip(left, left[1:], strict=False)) < 40  # no hour is empty


def test_many_small_frames_stay_within_the_bound_on_the_disk(tmp_path: Path) -> None:
    device = Device(tmp_path, Bounds(most_bytes=1 << 18, when_full="thin_out"))
    with device.spool() as spool:
        for number in range(350):
            put(spool, stored(number, 1200))
        assert spool.frames > 50
        assert (tmp_path / "spool.db").stat().st_size <= 1 << 18


def test_a_frame_that_waited_too_long_goes_but_one_on_its_way_stays(device: Device) -> None:
    device.bounds = Bounds(age_s=1000.0)
    with device.spool() as spool:
        put(spool, stored(1))
        put(spool, stored(2))
        device.booted += 600.0
        put(spool, stored(3))
        assert spool.oldest_s() == pytest.approx(600.0)
        device.booted += 500.0
        drops, _ = spool.room_for(None, LATER, busy={1})
        assert [(drop.id, drop.cause) for drop in drops] == [(2, "age")]


# ---------------------------------------------------------------------- clocks


@pytest.mark.parametrize("jump_s", [20 * 365 * 86400.0, -50 * 365 * 86400.0])
@pytest.mark.parametrize("reboot", [True, False])
def test_no_jump_of_the_wall_clock_makes_frames_old(
    device: Device, jump_s: float, reboot: bool
) -> None:
    device.bounds = Bounds(age_s=1000.0)
    with device.spool() as spool:
        put(spool, stored(1))
    if reboot:
        device.reboot()
    device.wall += jump_s
    with device.spool() as spool:
        assert spool.room_for(None, LATER) == ([], True)
        device.wall -= 2 * jump_s
        assert spool.room_for(None, LATER) == ([], True)
        device.booted += 1001.0
        assert len(spool.room_for(None, LATER)[0]) == 1  # time that the device was on does


def test_time_switched_off_counts_for_half_the_limit_at_most(device: Device) -> None:
    device.bounds = Bounds(age_s=1000.0)
    with device.spool() as spool:
        put(spool, stored(1))
    device.reboot(off_s=400.0)
    with device.spool() as spool:
        assert spool.oldest_s() == pytest.approx(400.0)
    device.reboot(off_s=1e6)
    with device.spool() as spool:
        assert spool.oldest_s() == pytest.approx(900.0)


def test_a_clock_at_1970_counts_only_the_time_that_the_device_is_on(device: Device) -> None:
    device.wall = 5.0
    with device.spool() as spool:
        put(spool, stored(1))
    device.reboot()
    device.wall = 1.8e9
    with device.spool() as spool:
        assert spool.oldest_s() == pytest.approx(10.0)


# ---------------------------------------------------------------------- damage


def garble(path: Path, at: int, size: int = 64) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))


def filled(device: Device, rows: int) -> Path:
    with device.spool() as spool:
        for number in range(rows):
            spool.accept(stored(number), NORMAL)
    return device.folder / "spool.db"


@pytest.mark.parametrize("what", ["garbage", "empty schema", "truncated", "of another version"])
def test_a_damaged_spool_is_set_aside_and_the_agent_goes_on(device: Device, what: str) -> None:
    path = filled(device, 50)
    if what == "garbage":
        path.write_bytes(os.urandom(9000))
    elif what == "empty schema":
        garble(path, 0, 4096)
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=77")
        db.close()
    with device.spool() as spool:
        assert device.value("spool_set_aside_total") == 1
        assert "spool_set_aside" in device.logged.getvalue()
        assert spool.frames == (50 if what == "of another version" else spool.frames)
        put(spool, stored(1000))
        assert "c1000" in waits(spool)
    assert len(list(device.folder.glob("*.aside"))) == 1
    with device.spool() as spool:  # no loop
        assert "c1000" in waits(spool)
    assert device.value("spool_set_aside_total") == 1


def test_a_damaged_page_costs_its_own_rows_only(device: Device) -> None:
    path = filled(device, 160)
    garble(path, 10 * 4096, 4096)
    with device.spool() as spool:
        names = waits(spool)
    assert 100 <= len(names) < 160
    assert set(names) <= {f"c{number}" for number in range(160)}


def test_damage_inside_a_row_is_seen_and_named_a_drop(device: Device) -> None:
    path = filled(device, 3)
    raw = path.read_bytes()
    at = raw.index(bytes([1]) * 80)
    garble(path, at + 40, 4)
    with device.spool() as spool:
        found = spool.waiting(9)
        assert [type(one) for one in found] == [Entry, Drop, Entry]
        assert isinstance(found[1], Drop) and found[1].error.name == "dropped"
        assert found[1].request_id == stored(1).request_id


def test_damage_while_the_spool_is_open_costs_no_new_frame(device: Device) -> None:
    with device.spool() as spool:
        for number in range(120):
            spool.accept(stored(number), NORMAL)
    with device.spool() as spool:
        for at in range(1, 20):
            garble(device.folder / "spool.db", at * 4096, 100)
        for number in range(400, 420):
            put(spool, stored(number))
        assert set(waits(spool)) >= {f"c{number}" for number in range(400, 420)}


# ---------------------------------------------------------------------- one agent, keys, disks


def test_a_spool_belongs_to_one_agent_at_a_time(device: Device) -> None:
    with device.spool():
        with pytest.raises(SpoolError, match=f"process {os.getpid()}"):
            device.spool()
    device.spool().close()


def test_with_a_key_nothing_readable_lies_on_the_disk(device: Device) -> None:
    with device.spool() as spool:
        put(spool, stored(1))
    device.vault = Vault(bytes(range(32)))
    with device.spool() as spool:  # rows from before are encrypted too
        assert waits(spool) == ["c1"]
        put(spool, stored(2))
        on_disk = b"".join(path.read_bytes() for path in device.folder.iterdir())
        assert b"smoke" not in on_disk and bytes([1]) * 80 not in on_disk
        assert waits(spool) == ["c1", "c2"]
    for other in (Vault(), Vault(bytes(32))):
        device.vault = other
        with pytest.raises(SpoolError, match="another key"):
            device.spool()
    device.vault = Vault(bytes(range(32)))
    with device.spool() as spool:
        assert waits(spool) == ["c1", "c2"]
        spool.end([1, 2])
    device.vault = Vault()
    with device.spool() as spool:  # nothing is encrypted any more
        assert spool.frames == 0


def test_a_full_disk_keeps_what_it_has_and_takes_frames_again_later(device: Device) -> None:
    with device.spool() as spool:
        put(spool, stored(1))
        before = spool._db
        assert before is not None
        limit = before.execute("PRAGMA page_count").fetchone()[0]
        before.execute(f"PRAGMA max_page_count={limit}")
        with pytest.raises(DiskFullError, match="full"):
            for number in range(2, 200):
                spool.accept(stored(number), NORMAL)
        kept = spool.frames
        before.execute("PRAGMA max_page_count=1000000")
        put(spool, stored(500))
        assert spool.frames == kept + 1 and waits(spool)[-1] == "c500"


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskFullError, match="--spool"):
        Device(tmp_path / "file" / "spool").spool()


def test_a_folder_that_goes_away_is_made_again_with_all_its_frames(device: Device) -> None:
    with device.spool() as spool:
        put(spool, stored(1))
        for file in device.folder.iterdir():
            file.unlink()
        device.folder.rmdir()
        put(spool, stored(2))
        assert waits(spool) == ["c1", "c2"]
    with device.spool() as spool:
        assert waits(spool) == ["c1", "c2"]
