"""A name that nobody resolves: FFmpeg's timeout does not cover it, the watchdog does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_NETWORK = """
ip link set lo up && mount --bind "$1" /etc/resolv.conf && exec "$2" -c "$3"
"""
_CAMERA = """
import json, socket, time
from edge_agent.cameras.camera import open_source
mute = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # hears and says nothing
mute.bind(("127.0.0.1", 53))
camera = open_source("rtsp://camera.example/live?open_s=1&by=pyav")
began = time.monotonic()
camera.start(lambda: None)
while camera.state in ("waiting", "starting") and time.monotonic() - began < 8:
    time.sleep(0.05)
state = camera.state
camera.close()
print(json.dumps([state, time.monotonic() - began]))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_a_name_server_that_never_answers_costs_no_more_than_the_watchdog_allows(
    tmp_path: Path,
) -> None:
    pytest.importorskip("av", reason="no PyAV: pip install 'neural-bridge[video]'")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    command = ["unshare", "--net", "--mount", "sh", "-c", _NETWORK, "sh"]
    command += [str(tmp_path / "resolv.conf"), sys.executable, _CAMERA]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network of its own: {done.stderr.strip()}")
    state, seconds = json.loads(done.stdout)
    assert state == "silent" and seconds < 8, done.stderr
