"""Files that root creates in the folder of the service's user must belong to that user."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def own_as_folder(path: Path) -> None:
    """Give a new file to the owner of its folder, if this process runs as root."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a file system without owners
            folder = path.parent.stat()
            os.chown(path, folder.st_uid, folder.st_gid)
