"""Runs in the virtual machine: what the agent's cameras do while their devices fail.

Prints one JSON object a line: a step, which reader's it is, and what was seen.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edge_agent.cameras.camera import Camera
from edge_agent.cameras.states import ADVICE, STATES
from edge_agent.cameras.watch import PATIENCE
from edge_agent.sources.address import Address
from tests.edge_agent.cameras.watched_camera import Watched, children, value
from tests.edge_faults import vivid
from tests.edge_faults.vivid import NTSC, PAL, TV, Vivid

READERS = ("pyav",)
SIZE = 320, 180
DEVICE = Vivid(0)
_PATIENCE = replace(PATIENCE, backoff_max_s=0.5, open_s=60.0, stall_s=5.0, frozen_s=4.0)
_LIMIT_S = 120.0
_began = time.monotonic()


def say(step: str, **found: object) -> None:
    """Print one line."""
    at_s = round(time.monotonic() - _began, 1)
    print(json.dumps({"step": step, "at_s": at_s, **found}), flush=True)


class Post:
    """One reader's camera: an address that stays, and a device that comes and goes.

    Args:
        by: the reader.

    Attributes:
        faults: injected so far.
        seen: the camera.
    """

    def __init__(self, by: str) -> None:
        self.by, self.faults = by, 0
        self._place = Path(f"/run/camera-{by}")  # as udev names one
        self._plug()
        self.seen = self._look()

    def restarts(self) -> dict[str, int]:
        """How often a process was started again, by cause."""
        counted = {s: int(value(self.seen.camera, "restarts_total", cause=s)) for s in STATES}
        return {state: number for state, number in counted.items() if number}

    # ------------------------------------------------------------------ the steps

    def sees(self) -> dict[str, object]:
        """Look at a device that works."""
        took = self._pictures()
        last = self.seen.last
        assert last is not None and last.picture is not None
        colours = len(last.picture.getcolors(1 << 24) or ())
        return {
            "size": last.picture.size,
            "device_size": DEVICE.chosen(),
            "first_s": took,
            "colours": colours,
        }

    def busy(self) -> dict[str, object]:
        """Open the device that another process reads."""
        self.faults += 1
        second = self._look()
        try:
            took = self._until(lambda: second.camera.state in ADVICE, "the second camera")
            self._pictures()
            return {"failed_s": took, "events": second.events(), "taken_by_second": second.taken}
        finally:
            second.close()

    def unplugged(self) -> dict[str, object]:
        """The device is gone, and comes back."""
        noticed_s = self._unplug()
        self._plug()
        return {"noticed_s": noticed_s, "back_s": self._pictures()}

    def hangs(self) -> dict[str, object]:
        """No picture comes any more."""
        self.faults += 1
        DEVICE.control("Percentage of Dropped Buffers", 100)
        noticed_s = self._failed("silent")
        DEVICE.control("Percentage of Dropped Buffers", 0)
        return {"noticed_s": noticed_s, "back_s": self._pictures()}

    def repeats(self) -> dict[str, object]:
        """The same picture comes again and again."""
        self.faults += 1
        DEVICE.control("OSD Text Mode", 2)  # no clock in the picture
        noticed_s = self._failed("frozen")
        DEVICE.control("OSD Text Mode", 0)
        return {"noticed_s": noticed_s, "back_s": self._pictures()}

    def damaged(self) -> dict[str, object]:
        """One picture is marked as damaged."""
        self.faults += 1
        DEVICE.control("Inject V4L2_BUF_FLAG_ERROR")
        return {"next_s": self._pictures(10)}

    def breaks(self) -> dict[str, object]:
        """The driver gives up the stream."""
        self.faults += 1
        DEVICE.control("Inject Fatal Streaming Error")
        noticed_s = self._until(lambda: self.seen.camera.state in ADVICE, "the broken stream")
        return {"noticed_s": noticed_s, "back_s": self._pictures()}

    def replaced(self) -> dict[str, object]:
        """Another camera takes the place, with pictures of another size."""
        noticed_s = self._unplug()
        self._plug(PAL)
        return {"noticed_s": noticed_s, "back_s": self._shows((720, 576))}

    def standard(self) -> dict[str, object]:
        """It comes back with another standard."""
        noticed_s = self._unplug()
        self._plug(NTSC)
        return {"noticed_s": noticed_s, "back_s": self._shows((720, 480))}

    def ends(self) -> dict[str, object]:
        """Nothing comes any more: each picture was taken once, or counted as left out."""
        self._unplug()
        camera, names = self.seen.camera, self.seen.names
        handed_over = int(value(camera, "frames_total"))
        left_out = int(value(camera, "frames_dropped_total", cause="newer"))
        self._until(lambda: len(names) + left_out >= handed_over, "the last picture")
        return {
            "faults": self.faults,
            "handed_over": handed_over,
            "left_out": left_out,
            "taken": len(names),
            "doubled": len(names) - len(set(names)),
            "events": self.seen.events(),
        }

    # ------------------------------------------------------------------ their parts

    def _look(self) -> Watched:
        """Begin to read what is at this place, if it is there."""
        size = "" if self.by == "pyav" else "&width={}&height={}".format(*SIZE)
        address = Address.parse(f"v4l2://{self._place}?by={self.by}{size}")
        return Watched(Camera(address, self.by, patience=_PATIENCE))

    def _plug(self, standard: int = 0) -> None:
        """Put the device in its place: with small pictures, or with those of a standard."""
        if standard:
            DEVICE.input(TV)
            DEVICE.standard(standard)
        else:
            DEVICE.size(*SIZE)
        self._place.symlink_to(DEVICE.path)

    def _unplug(self) -> float:
        """Take the device away until the camera knows; returns the seconds that it took."""
        self.faults += 1
        vivid.unplug()
        noticed_s = self._until(lambda: self.seen.camera.state == "no_device", "the unplugging")
        self._place.unlink()
        vivid.plug()
        return noticed_s

    def _until(self, holds: Callable[[], bool], what: str) -> float:
        """Wait until something holds; returns the seconds that it took."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > _LIMIT_S:
                raise TimeoutError(f"{what}: {self.seen.camera.state}, {self.restarts()}")
            time.sleep(0.1)
        return round(time.monotonic() - began, 1)

    def _pictures(self, number: int = 3) -> float:
        """Wait for more pictures."""
        taken = self.seen.taken
        return self._until(lambda: self.seen.taken >= taken + number, f"{number} pictures")

    def _failed(self, cause: str) -> float:
        """Wait until a process ended for that cause."""
        camera = self.seen.camera
        before = value(camera, "restarts_total", cause=cause)
        return self._until(lambda: value(camera, "restarts_total", cause=cause) > before, cause)

    def _shows(self, size: tuple[int, int]) -> float:
        """Wait for a picture of that size."""

        def holds() -> bool:
            last = self.seen.last
            return last is not None and last.picture is not None and last.picture.size == size

        return self._until(holds, f"a picture of {size}")


STEPS = (
    *("sees", "busy", "unplugged", "hangs", "repeats", "damaged", "breaks"),
    *("replaced", "standard", "ends"),
)


def live(by: str) -> None:
    """All that happens to one reader's camera."""
    post = Post(by)
    try:
        for step in STEPS:
            before = post.restarts()
            found = getattr(post, step)()
            caused = {c: n - before.get(c, 0) for c, n in post.restarts().items()}
            say(step, by=by, restarts={c: n for c, n in caused.items() if n}, **found)
    except Exception:
        say("failed", by=by, why=traceback.format_exc(), events=post.seen.events())
    finally:
        post.seen.close()


def main() -> None:
    """Every step of every reader."""
    say("begins", python=sys.version.split()[0], kernel=os.uname().release)
    for by in READERS:
        live(by)
    say("ends", processes=[child.pid for child in children()])


if __name__ == "__main__":
    main()
