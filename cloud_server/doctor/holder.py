"""Which process listens on a port, and whether it is the service of a directory (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cloud_server.settings import PREFIX

_PROC = Path("/proc")
_LISTENS = "0A"
_FLAG = "--directory"


def service_on(port: int, directory: Path) -> int:
    """Process id of the running service of a directory that listens on a port; 0 if none does.

    Processes of other users cannot be seen without root's rights.

    Args:
        port: a TCP port.
        directory: the service's directory.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in sorted(_PROC.glob("[0-9]*")) if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            held = (os.readlink(file) for file in (process / "fd").iterdir())
            if not sockets.isdisjoint(held) and _directory_of(process) == directory.resolve():
                return int(process.name)
    return 0


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _directory_of(process: Path) -> Path | None:
    """The directory that a `cloud-server serve` process was given; None for another process."""
    words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    if "serve" not in words:
        return None
    given = ""
    for word in (process / "environ").read_bytes().decode("utf-8", "replace").split("\0"):
        name, _, value = word.partition("=")
        given = value if name == f"{PREFIX}DIRECTORY" else given
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == _FLAG:
            given = value if equals else after
    return (process / "cwd" / given).resolve() if given else None
