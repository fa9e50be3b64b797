"""The folder of the engine's socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cloud_server.engine.socket_directory import SocketDirectory
from protos.errors import ConfigError


def test_the_socket_directory_is_the_owners_alone(short_dir: Path) -> None:
    directory = SocketDirectory(short_dir / "new")
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="in use"):
        SocketDirectory(short_dir / "new")
    directory.close()
    SocketDirectory(short_dir / "new").close()
    (short_dir / "open").mkdir(mode=0o755)
    os.chmod(short_dir / "open", 0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        SocketDirectory(short_dir / "open")
    with pytest.raises(ConfigError, match="too long"):
        SocketDirectory(short_dir / ("x" * 100))
    temporary = SocketDirectory(None)
    assert temporary.path.is_dir()
    temporary.close()
    assert not temporary.path.exists()


def test_the_folder_of_a_front_end_that_was_killed_is_removed_by_the_next(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    code = (
        "from cloud_server.engine.socket_directory import SocketDirectory; import time\n"
        "held = SocketDirectory(None); print(held.path, flush=True); time.sleep(600)"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(short_dir)},
        )
        for _ in range(2)
    ]
    try:
        dead, living = (Path(other.stdout.readline().strip()) for other in others if other.stdout)
        (dead / "engine.sock").touch()
        (stranger := short_dir / "neural-bridge-notes").mkdir()  # has no lock: not ours
        os.kill(others[0].pid, signal.SIGKILL)
        others[0].wait()
        SocketDirectory(None).close()
        assert not dead.exists() and living.is_dir() and stranger.is_dir()
    finally:
        for other in others:
            other.kill()
            other.communicate()
