"""A disk that loses power: what a process wrote, replayed up to any byte.

What was synced is there. What was not may be there, in any order, in part, or not at all.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

_HEAD = struct.Struct("<cHQI")


@dataclass(frozen=True)
class Call:
    """One call of the recorded process.

    Attributes:
        kind: W (write), T (truncate), S (sync), U (unlink) or R (rename).
        path: the file.
        offset: where it wrote, or its new length.
        data: what it wrote, or the new name.
    """

    kind: str
    path: str
    offset: int
    data: bytes


def calls(journal: Path) -> list[Call]:
    """Read what `disk.c` wrote down."""
    raw, at, found = journal.read_bytes(), 0, []
    while at < len(raw):
        kind, name, offset, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        path, data = raw[at : at + name].decode(), raw[at + name : at + name + length]
        found.append(Call(kind.decode(), path, offset, data))
        at += name + length
    return found


@dataclass
class _File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)

    def sync(self) -> None:
        for call in self.pending:
            _apply(self.synced, call)
        self.pending.clear()


def _apply(content: bytearray, call: Call) -> None:
    if call.kind == "T":
        del content[call.offset :]
        content.extend(bytes(call.offset - len(content)))
        return
    end = call.offset + len(call.data)
    content.extend(bytes(max(0, end - len(content))))
    content[call.offset : end] = call.data


class Disk:
    """The disk of a recorded process, call by call.

    Args:
        folder: whose files it holds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: dict[str, _File] = {}

    def take(self, call: Call) -> None:
        """Replay the next call; names are kept in order, as a journalling file system does."""
        name = call.path.removeprefix(self._folder + "/").removesuffix(" (deleted)")
        if call.kind == "U":
            self._files.pop(name, None)
        elif call.kind == "R":
            self._files[call.data.decode().removeprefix(self._folder + "/")] = self._files.pop(name)
        elif call.kind == "S":
            if name in self._files:  # else it is a folder
                self._files[name].sync()
        else:
            self._files.setdefault(name, _File()).pending.append(call)

    def after_a_cut(self, into: Path, chance: random.Random) -> None:
        """Write what a power cut may leave.

        Args:
            into: an empty folder.
            chance: which unsynced writes are there, and where they are torn.
        """
        for name, file in self._files.items():
            if name.endswith("-shm"):  # shared memory, not a file
                continue
            content, share = bytearray(file.synced), chance.choice((0.0, 0.5, 0.9, 1.0))
            pending = list(file.pending)
            if chance.random() < 0.5:
                chance.shuffle(pending)
            for call in pending:
                if chance.random() < share:
                    torn = chance.randrange(len(call.data) + 1) if call.data else 0
                    whole = call.kind == "T" or chance.random() < 0.5
                    data = call.data if whole else call.data[:torn]
                    _apply(content, Call(call.kind, call.path, call.offset, data))
            (into / name).write_bytes(content)
