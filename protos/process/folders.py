"""The files of a folder, and how many of its entries are skipped.

Listing or opening never blocks on a pipe or a device.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        files: regular files, and links to such, sorted by name; hidden ones are left out.
        skipped: how many entries were passed over, by what they are.
    """

    files: tuple[Path, ...]
    skipped: Mapping[str, int]


def list_files(folder: Path) -> Listing:
    """List a folder, not the folders in it; nothing is opened.

    Raises:
        OSError: the folder cannot be listed.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    for entry in sorted(folder.iterdir()):
        kind = "hidden" if entry.name.startswith(".") else _kind(entry)
        if kind is None:
            files.append(entry)
        else:
            skipped[kind] += 1
    return Listing(tuple(files), dict(skipped))


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to be read; a pipe or device is refused, never waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def said(skipped: Mapping[str, int]) -> str:
    """The counts in words: "2 subfolder, 1 pipe or device"."""
    return ", ".join(f"{count} {kind}" for kind, count in skipped.items()).replace("_", " ")


def _kind(path: Path) -> str | None:
    """The kind of an entry that is not a readable file; None for a file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR) and path.is_symlink()
        return "broken_link" if broken else "unreadable"
    if stat.S_ISREG(mode):
        return None
    return "subfolder" if stat.S_ISDIR(mode) else "pipe_or_device"
