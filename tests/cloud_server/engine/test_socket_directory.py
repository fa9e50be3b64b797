"""The folder of the engine's socket."""

from __future__ import annotations

import os
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
