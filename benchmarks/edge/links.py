"""Sends several arms at once, each from a network namespace of its own, and counts what passed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.edge.film import Coded, Job
from benchmarks.edge.netns import Netns, Passed, netns
from benchmarks.serve.identities import Identities
from benchmarks.serve.site import stubbed
from protos.errors import BridgeError
from protos.layout import KVLayout
from reference.demo.halves import ENVIRONMENT

KEEPALIVE_S = 300.0
"""Of the service: at its default of 60 s pings on both connections draw 3.6 bytes up a second."""
IN_FLIGHT = 128
"""Frames that the service lets a device have on their way: more than come in `ACK_WAIT_S`."""
_HEADERS, _TIMESTAMPS = 20 + 20, 12
"""IPv4's header and TCP's; and what TCP's timestamps add to it."""
_RECORD = 5 + 16 + 1
"""What TLS 1.3 adds to a record of AES-GCM; each message is one."""


@dataclass(frozen=True)
class Arm:
    """One way to send a film.

    Attributes:
        name: in the report.
        frames: the first one is not counted.
        linger_s, ack_wait_s: of the uplink.
        every_s: seconds between frames.
        timestamps: whether TCP's packets have them.
    """

    name: str
    frames: Sequence[Coded]
    linger_s: float = 0.0
    ack_wait_s: float = 0.0
    every_s: float = 1.0
    timestamps: bool = True


def measure(
    folder: Path, bundle: Path, layout: KVLayout, arms: Sequence[Arm]
) -> dict[str, dict[str, Any]]:
    """Bytes per frame of each arm, by name.

    Args:
        folder: for the service's directory and logs.
        bundle: of the edge model.
        layout: of the edge model.
        arms: sent side by side.

    Returns:
        Means per frame: `payload` and `message_up`, as written; `ip_up`, `ip_down`, `packets_up`,
        `packets_down`, as they passed the link; `ip_up_data` and `packets_up_data`, without packets
        that only acknowledge. `grpc_up` and `tls_up` follow from them: what is in the packets with
        data, without TCP's and IP's headers, and without TLS's. `acks_up` are the bytes of packets
        that only acknowledge.

    Raises:
        BridgeError: a frame was not accepted, or there are no namespaces.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    identities = Identities.make(folder / "directory", len(arms))
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(
            stubbed(
                folder,
                identities,
                "0.0.0.0",
                bundle,
                keepalive_s=KEEPALIVE_S,
                max_in_flight=IN_FLIGHT,
            )
        )
        port = site.at.address.rpartition(":")[2]
        senders = []
        for number, arm in enumerate(arms):
            link = stack.enter_context(netns(arm.timestamps))
            known = identities.devices[number]
            job = Job(
                layout=layout.versions[-1].to_json(),
                settings_digest=layout.settings_digest,
                address=f"{link.address}:{port}",
                roots=identities.authority.trusted_pem.decode(),
                chain=known.chain.decode(),
                key=known.key.decode(),
                linger_s=arm.linger_s,
                ack_wait_s=arm.ack_wait_s,
                every_s=arm.every_s,
                in_flight=IN_FLIGHT,
                frames=arm.frames,
            )
            path = folder / f"arm-{number}.json"
            job.write(path)
            senders.append((arm, link, stack.enter_context(_started(link, path))))
        for _, _, sender in senders:
            _line(sender)
        before = [replace(link.passed) for _, link, _ in senders]
        for _, _, sender in senders:
            _go(sender)
        found = {}
        for (arm, link, sender), past in zip(senders, before, strict=True):
            told = _line(sender)
            passed = link.passed - past
            if told["failed"]:
                raise BridgeError(f"{arm.name}: {told['failed'][0]}")
            found[arm.name] = _row(arm, told, passed)
        for _, _, sender in senders:
            _go(sender)
            sender.wait(60)
    return found


def _row(arm: Arm, told: dict[str, Any], passed: Passed) -> dict[str, Any]:
    sent = arm.frames[1:]
    count = len(sent)
    headers = _HEADERS + _TIMESTAMPS * arm.timestamps
    tls = passed.data_bytes - headers * passed.data_packets
    sums = {
        "payload": sum(len(coded.payload) // 2 for coded in sent),
        "message_up": told["message_bytes"],
        "grpc_up": tls - _RECORD * told["messages"],
        "tls_up": tls,
        "ip_up_data": passed.data_bytes,
        "ip_up": passed.up_bytes,
        "acks_up": passed.up_bytes - passed.data_bytes,
        "ip_down": passed.down_bytes,
        "packets_up": passed.up_packets,
        "packets_up_data": passed.data_packets,
        "packets_down": passed.down_packets,
    }
    return {"frames": count, "messages": told["messages"]} | {
        name: round(value / count, 2) for name, value in sums.items()
    }


@contextlib.contextmanager
def _started(link: Netns, job: Path) -> Any:
    command = link.command(sys.executable, "-m", "benchmarks.edge.sender", str(job))
    with job.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _go(sender: Any) -> None:
    sender.stdin.write("\n")
    sender.stdin.flush()


def _line(sender: Any) -> dict[str, Any]:
    line = sender.stdout.readline()
    if not line:
        raise BridgeError("a sender ended early: see its log in the report's folder")
    told: dict[str, Any] = json.loads(line)
    return told
