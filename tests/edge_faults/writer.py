"""A process that accepts frames and ends them, and notes each step, until it is killed."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord
from edge_agent.spool.entry import Bounds, Entry
from edge_agent.spool.spool import Spool
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.vault import Vault
from protos.process import logs

KEY = bytes(range(32))


def frame(number: int) -> StoredFrame:
    """The frame of that number: the same whenever it is asked for."""
    chance = random.Random(number)
    size = chance.choice((33, 80, 300, 3000, 20_000))
    record = AnswerRecord(f"{number:016x}", f"c{number}", 7.0, "is there smoke ?", point="fp8")
    return StoredFrame(record, chance.randbytes(size), b"", bytes(16), "3" * 64, "2" * 64, "b 1")


def opened(folder: Path, secret: bool) -> tuple[Spool, Metrics]:
    """The spool in a folder, as an agent opens it."""
    metrics = Metrics()
    vault = Vault(KEY) if secret else Vault()
    spool = Spool(folder, Bounds(), vault, metrics, logs.configure("critical"))
    spool.open()
    return spool, metrics


def write(
    folder: Path, notes: Path, seed: int, steps: int, secret: bool, accepting: float = 0.6
) -> None:
    """Accept and end frames.

    The notes say: `t N` before a frame is accepted, `a N` after; `b N` before it is ended (its
    record would be on the disk), `e N` after.

    Args:
        folder: of the spool.
        notes: appended to.
        seed: of the frames' numbers and of what happens next.
        steps: how many.
        secret: whether rows are encrypted.
        accepting: share of the steps that accept a frame.
    """
    chance, number = random.Random(seed), seed * 100_000
    note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(word: str, which: int) -> None:
        os.write(note, f"{word} {which}\n".encode())

    spool, _ = opened(folder, secret)
    for _ in range(steps):
        if chance.random() < accepting or spool.frames == 0:
            number += 1
            say("t", number)
            spool.accept(frame(number), chance.randrange(3))
            say("a", number)
            continue
        found = [one for one in spool.waiting(chance.randint(1, 4)) if isinstance(one, Entry)]
        for one in found:
            say("b", int(one.frame.record.request_id, 16))
        spool.end([one.id for one in found])
        for one in found:
            say("e", int(one.frame.record.request_id, 16))
    spool.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), False)
