"""The spool through power cuts, kills and damaged disks: what was accepted is there, once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agent.spool.entry import Entry
from tests.checkout import ROOT
from tests.edge_faults.disk import Disk, calls
from tests.edge_faults.faults import EdgeFaults, times
from tests.edge_faults.writer import frame, opened, write

COMPILER = shutil.which("cc") or shutil.which("gcc")


class Notes:
    """What a writer noted: which frames must be there, may be there, must not be there."""

    def __init__(self, text: str) -> None:
        said: dict[str, set[int]] = defaultdict(set)
        for line in text.splitlines():
            word, _, number = line.partition(" ")
            said[word].add(int(number))
        self.tried, self.accepted = said["t"], said["a"]
        self.must = self.accepted - said["b"]
        self.must_not = said["e"]


def found_in(folder: Path, secret: bool = False) -> tuple[dict[int, int], float]:
    """Numbers of the frames in a spool, with how often each is there; how often it was damaged."""
    spool, metrics = opened(folder, secret)
    with spool:
        there: dict[int, int] = defaultdict(int)
        for one in spool.waiting(1_000_000):
            assert isinstance(one, Entry), "a row is damaged"
            number = int(one.frame.record.request_id, 16)
            assert one.frame == frame(number), "a row has changed"
            there[number] += 1
    aside = metrics.registry.get_sample_value("neural_bridge_edge_spool_set_aside_total")
    return there, aside or 0.0


@pytest.mark.skipif(COMPILER is None, reason="no C compiler, so nothing notes what is written")
def test_power_cuts_at_any_byte_lose_no_accepted_frame(
    tmp_path: Path, edge_faults: EdgeFaults
) -> None:
    assert COMPILER is not None
    library = tmp_path / "disk.so"
    source = Path(__file__).with_name("disk.c")
    build = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run([*build, "-lpthread"], check=True)
    chance, cuts, lost, doubled, frames = random.Random(1), 0, 0, 0, 0
    for seed in range(1, 1 + times(1, 5)):
        folder, journal = tmp_path / f"disk{seed}", tmp_path / f"journal{seed}"
        folder.mkdir()
        where = {"DISK_FOLDER": str(folder), "DISK_JOURNAL": str(journal)}
        env = {**os.environ, **where, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-m", "tests.edge_faults.writer", str(folder / "spool")]
        (folder / "spool").mkdir()
        subprocess.run(
            [*run, str(folder / "notes"), str(seed), str(times(150, 300))], env=env, check=True
        )
        made = calls(journal)
        at = sorted(chance.sample(range(1, len(made)), times(30, 400)))
        disk, notes, upto = Disk(folder), "", 0
        for cut in at:
            for call in made[upto:cut]:
                if call.path.endswith("/notes"):
                    notes += call.data.decode()
                else:
                    disk.take(call)
            upto = cut
            left = tmp_path / "left"
            (left / "spool").mkdir(parents=True)
            disk.after_a_cut(left, chance)
            told = Notes(notes)
            there, aside = found_in(left / "spool")
            assert aside == 0, "a power cut looked like damage"
            lost += len(told.must - there.keys())
            doubled += len(told.must_not & there.keys()) + sum(n - 1 for n in there.values())
            assert there.keys() <= told.tried
            frames += len(told.accepted)
            cuts += 1
            shutil.rmtree(left)
    edge_faults.judged("spool: power cuts", cuts, frames, lost, doubled)


@pytest.mark.slow
def test_kills_at_any_moment_lose_no_accepted_frame(
    tmp_path: Path, edge_faults: EdgeFaults
) -> None:
    chance, lost, doubled, kills = random.Random(2), 0, 0, times(10, 500)
    folder, notes = tmp_path / "spool", tmp_path / "notes"
    for seed in range(1, 1 + kills):
        child = os.fork()
        if child == 0:
            try:
                write(folder, notes, seed, 100_000, secret=True)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not notes.exists():
            continue
        told = Notes(notes.read_text())
        there, aside = found_in(folder, secret=True)
        assert aside == 0
        lost += len(told.must - there.keys())
        doubled += len(told.must_not & there.keys()) + sum(n - 1 for n in there.values())
        assert there.keys() <= told.tried
    edge_faults.judged("spool: kill -9", kills, len(told.accepted), lost, doubled)


def test_damage_anywhere_never_stops_the_agent_nor_changes_a_frame(
    tmp_path: Path, edge_faults: EdgeFaults
) -> None:
    """Bytes of synced files change or go: then frames are lost with the disk, and that is seen."""
    chance, rounds = random.Random(3), times(15, 600)
    whole = tmp_path / "whole"
    write(whole, tmp_path / "notes", 1, 120, secret=False, accepting=0.95)
    child = os.fork()
    if child == 0:  # ends without a clean close, so that there is a log
        try:
            write(whole, tmp_path / "notes", 2, 40, secret=False, accepting=0.95)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    told = Notes((tmp_path / "notes").read_text())
    aside = salvaged = untouched = 0
    for number in range(rounds):
        folder = tmp_path / f"round{number}"
        shutil.copytree(whole, folder)
        target = folder / chance.choice([f.name for f in folder.iterdir() if "spool.db" in f.name])
        content = bytearray(target.read_bytes())
        if not content:
            continue
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            what = chance.choice(("flip", "garble", "zero", "cut"))
            if what == "flip":
                content[at] ^= 1 << chance.randrange(8)
            elif what == "cut" and at:
                del content[at:]
            else:
                size = min(chance.choice((8, 512, 4096)), len(content) - at)
                content[at : at + size] = bytes(size) if what == "zero" else os.urandom(size)
        target.write_bytes(content)
        spool, metrics = opened(folder, secret=False)
        with spool:
            spool.accept(frame(9_900_000 + number), 1)
            there = [one for one in spool.waiting(1_000_000) if isinstance(one, Entry)]
            numbers = [int(one.frame.record.request_id, 16) for one in there]
            assert all(one.frame == frame(n) for one, n in zip(there, numbers, strict=True))
            assert 9_900_000 + number in numbers
            assert len(set(numbers)) == len(numbers)
            assert set(numbers) <= told.tried | {9_900_000 + number}
        broke = metrics.registry.get_sample_value("neural_bridge_edge_spool_set_aside_total") or 0
        aside += broke > 0
        salvaged += broke > 0 and len(told.must & set(numbers)) > 0
        untouched += told.must <= set(numbers)
        spool, metrics = opened(folder, secret=False)
        spool.close()
        again = metrics.registry.get_sample_value("neural_bridge_edge_spool_set_aside_total")
        assert not again, "a crash loop"
        shutil.rmtree(folder)
    edge_faults.judged(
        "spool: damaged files",
        rounds,
        rounds,
        0,
        0,
        set_aside=aside,
        with_frames_saved=salvaged,
        nothing_lost=untouched,
    )
