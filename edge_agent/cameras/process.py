"""One camera's process: decodes, paints the masks, looks for motion, hands frames over.

`python -m edge_agent.cameras.process SOCKET MEMORY`, two descriptors that it inherits. What it
leaks, and a decoder that hangs in C, end with it. The address comes by the socket: command lines
can be read by every user.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

from edge_agent.cameras.link import Beat, Handover, Job, receive, send
from edge_agent.cameras.mask import Mask
from edge_agent.cameras.motion import Motion
from edge_agent.cameras.reading import reader_for
from edge_agent.cameras.ring import SLOTS, Pixels, Ring
from edge_agent.cameras.shot import Shot, size_for
from edge_agent.cameras.states import CameraFailure, state_of
from edge_agent.sources.address import Address
from protos.errors import BridgeError

_BEAT_S = 0.4
_LOOK_ALIKE_S = 1.0
_EARLY = 0.2
_KILLED_BEFORE_THE_AGENT = 500


class Outlet:
    """Hands a camera's pictures to the agent.

    Args:
        link: to the agent.
        ring: the shared memory.
        job: what is to be done.

    Attributes:
        decoded: pictures that came.
        dropped: pictures that were not handed over, by cause.
    """

    def __init__(self, link: socket.socket, ring: Ring, job: Job) -> None:
        self.dropped: Counter[str] = Counter()
        self._link, self._ring, self._job = link, ring, job
        self._free = list(range(SLOTS))
        self._mask, self._motion = Mask.of(job.masks), Motion()
        self.decoded = self._number = 0
        self._last = self._due = self._beaten = self._compared = self._changed = float("-inf")
        self._print = 0

    def take(self, shot: Shot) -> None:
        """Hand a picture over, or drop it and count why."""
        self.decoded += 1
        now = time.monotonic()
        if self._wanted(shot, now):
            self._collect(block=not self._job.live and not self._free)
            if self._free:
                self._hand_over(shot, now)
            else:
                self.dropped["no_slot"] += 1
        if now - self._beaten >= _BEAT_S:
            self.beat()

    def beat(self) -> None:
        """Say how far this process is."""
        now = time.monotonic()
        self._beaten = now
        alike_s = now - self._changed if self._compared > self._changed else 0.0
        send(self._link, {"beat": Beat(self.decoded, dict(self.dropped), alike_s)})

    def _wanted(self, shot: Shot, now: float) -> bool:
        """Whether the rate allows another picture; a file is thinned by its own clock."""
        if not self._job.max_fps:
            return True
        at = now if self._job.live or shot.media_s is None else shot.media_s
        step = 1 / self._job.max_fps
        # A little early is in time, or jitter would cost every other picture.
        early, self._last = min(_EARLY * step, (at - self._last) / 2), at
        if at < self._due - early:
            self.dropped["rate"] += 1
            return False
        self._due = self._due + step if at < self._due + step else at + step
        return True

    def _collect(self, block: bool) -> None:
        """Take the slots back that the agent has read."""
        while True:
            if not block and not select.select([self._link], [], [], 0)[0]:
                return
            message = receive(self._link)
            if message is None:
                raise BrokenPipeError("the agent is gone")
            self._free.append(int(message["free"]))
            block = False

    def _hand_over(self, shot: Shot, now: float) -> None:
        options = self._job.address.options
        size = size_for(shot, options.get("width"), options.get("height"))
        pixels = shot.render(*size)
        if now - self._compared >= _LOOK_ALIKE_S:
            self._compare(pixels, now)
        pixels = self._mask.paint(pixels)
        began = time.perf_counter()
        moved = self._motion.see(pixels, self._mask, now)
        spent_us = 1e6 * (time.perf_counter() - began)
        slot = self._free.pop()
        self._ring.write(slot, pixels)
        self._number += 1
        wide, high = size
        what = Handover(
            slot, self._number, wide, high, time.time(), now, shot.media_s, moved, spent_us
        )
        send(self._link, {"frame": what})

    def _compare(self, pixels: Pixels, now: float) -> None:
        """Note whether the picture is the same as a second ago, sample by sample."""
        found = zlib.crc32(pixels.tobytes())
        if found != self._print:
            self._print, self._changed = found, now
        self._compared = now


def run(job: Job, link: socket.socket, ring: Ring) -> None:
    """Read the camera until it ends or fails, and say how it ended."""
    message: dict[str, object] = {"ended": True}
    try:
        outlet = Outlet(link, ring, job)
        reader = reader_for(job)
        began, recorded = time.monotonic(), job.address.scheme == "file"
        for shot in reader.shots():
            if job.live and recorded:  # it plays at its own speed
                time.sleep(max(0.0, began + (shot.media_s or 0.0) - time.monotonic()))
            outlet.dropped.update(reader.dropped)
            reader.dropped.clear()
            outlet.take(shot)
        outlet.dropped.update(reader.dropped)
        outlet.beat()
        if not outlet.decoded:
            raise CameraFailure("unreadable", f"{job.address.shown} holds no picture")
        if not recorded:
            raise CameraFailure("silent", f"{job.address.shown} has ended its stream")
    except BrokenPipeError:
        return
    except BridgeError as error:
        message = {"failed": "mask", "cause": str(error)}
    except Exception as error:  # whatever a decoder may raise: the agent decides what follows
        cause = job.address.scrub(str(error) or type(error).__name__)
        message = {"failed": _state(error, job.address), "cause": cause}
    send(link, message)


def _state(error: Exception, address: Address) -> str:
    """The state that an error means; who reads a device that is unplugged gets any error."""
    if address.scheme == "v4l2" and not Path(address.place).exists():
        return "no_device"
    return state_of(error, address.scheme.startswith("rtsp"))


def main(arguments: list[str]) -> None:
    """Run with the descriptors of the socket and of the shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel takes this process first
        Path("/proc/self/oom_score_adj").write_text(str(_KILLED_BEFORE_THE_AGENT))
    link = socket.socket(fileno=int(arguments[0]))
    first = receive(link)
    if first is None:
        return
    with contextlib.suppress(OSError):
        run(Job.from_message(first), link, Ring(int(arguments[1]), writable=True))
    link.close()
    os._exit(0)  # a decoder's threads and exit handlers may hang


if __name__ == "__main__":
    main(sys.argv[1:])
