"""What `make bench-edge` counts: every packet on the link, from the IP header on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.edge.film import Coded, Job
from benchmarks.edge.netns import Passed, netns
from benchmarks.edge.rows import row
from benchmarks.rate.pictures import bare, bare_bytes
from benchmarks.rate.video import coded_pictures, picture_bytes

MAY = os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("sysctl") is not None


def packet(payload: int, protocol: int = 6, kind: bytes = b"\x08\x00") -> bytes:
    """Ethernet, IPv4 and TCP with timestamps around so many bytes."""
    ip = bytes([0x45, 0]) + (52 + payload).to_bytes(2, "big") + bytes(5) + bytes([protocol])
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return bytes(12) + kind + ip.ljust(20, b"\0") + tcp + bytes(payload)


def test_packets_are_counted_from_the_ip_header_on_and_acknowledgements_apart() -> None:
    passed = Passed()
    passed.take(packet(100)[:128], down=False)
    passed.take(packet(0), down=False)
    passed.take(packet(900)[:128], down=True)
    passed.take(packet(50, kind=b"\x86\xdd"), down=False)  # IPv6: not ours
    assert passed == Passed(2, 204, 1, 952, 1, 152)
    assert passed - Passed(1, 152, 0, 0, 1, 152) == Passed(1, 52, 1, 952, 0, 0)


@pytest.mark.skipif(not MAY, reason="network namespaces need root, iproute2 and procps")
def test_what_a_namespace_sends_is_counted() -> None:
    send = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
    send += "s.sendall(bytes(1000)); s.recv(1)"
    with netns() as link, socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        command = link.command(sys.executable, "-c", send, link.address, str(port))
        sender = subprocess.Popen(command)
        call, _ = server.accept()
        with call:
            received = 0
            while received < 1000:
                received += len(call.recv(2000))
            call.sendall(b"!")
            assert sender.wait(60) == 0
        assert link.passed.data_packets == 1
        assert link.passed.data_bytes == 1052
        assert link.passed.up_packets >= 4, "SYN, two acknowledgements, FIN"
        assert link.passed.down_bytes > 0
    gone = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert link.name not in gone


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    frames = [Coded(10, "ab", "0100", "01020304", 3, True), Coded.file(b"picture")]
    job = Job("{}", "s", "10.0.0.1:1", "roots", "chain", "key", 1.0, 0.5, 0.25, 9, frames)
    job.write(path)
    assert Job.read(path) == job
    assert path.stat().st_mode & 0o077 == 0


def test_a_figure_is_met_from_its_target_on() -> None:
    assert row("x", 3.3, 3.3)["met"] and not row("x", 3.29, 3.3)["met"]


def test_what_both_ends_could_agree_on_is_left_out_once() -> None:
    assert bare(b"RIFF" + bytes(16) + b"abc") == b"abc" and bare_bytes(b"other") == 5
    stream = b"\0\0\1\x67set\0\0\1\x65key\0\0\0\1\x41more\0"
    assert coded_pictures("h264", stream) == [b"\x65key", b"\x41more"]
    assert picture_bytes("h264", stream) == 9
