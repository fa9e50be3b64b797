"""This checkout's files as git sees them, and copies of it that a test may build in or change."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1 << 20
"""Larger files (weights) stand empty in a copy."""


def tracked(*folders: str) -> list[str]:
    """Names of the files, tracked or new, that git does not ignore; skips where there is no git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so build outputs cannot be told from sources")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted({name for name in done.stdout.split("\0") if (ROOT / name).is_file()})


def copy_to(folder: Path) -> Path:
    """Copy the files into a folder; returns it."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).stat().st_size > LONGEST:
            (folder / name).touch()
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder
