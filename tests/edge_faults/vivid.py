"""A video device that the kernel makes up (`vivid`): what one can make it do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Requests of <linux/videodev2.h>.
_SET_FORMAT, _FORMAT, _CAPTURE = 0xC0D05605, "I4xIII188x", 1
_GET_FORMAT = 0xC0D05604
_SET_STANDARD = 0x40085618
_SET_CONTROL = 0xC008561C
_SET_INPUT = 0xC0045627
_QUERY_CONTROL, _CONTROL, _NEXT = 0xC0445624, "II32s28x", 0x80000000
_DRIVER = Path("/sys/bus/platform/drivers/vivid")
PAL, NTSC = 0xFF, 0xB000
WEBCAM, TV = 0, 1


def unplug() -> None:
    """Take the device away, also from under a program that reads it."""
    (_DRIVER / "unbind").write_text("vivid.0")


def plug() -> None:
    """Bring the device back, as it was at first."""
    (_DRIVER / "bind").write_text("vivid.0")


@dataclass(frozen=True)
class Vivid:
    """One device.

    Attributes:
        number: of `/dev/video…`.
    """

    number: int

    @property
    def path(self) -> str:
        """Its place among the devices."""
        return f"/dev/video{self.number}"

    def size(self, width: int, height: int) -> None:
        """Choose the size of its pictures."""
        fourcc = int.from_bytes(b"YUYV", "little")
        self._ask(_SET_FORMAT, struct.pack(_FORMAT, _CAPTURE, width, height, fourcc))

    def input(self, number: int) -> None:
        """Choose what it shows: `WEBCAM` or `TV`."""
        self._ask(_SET_INPUT, struct.pack("i", number))

    def standard(self, number: int) -> None:
        """Choose the standard of the input `TV`: `PAL` or `NTSC`."""
        self._ask(_SET_STANDARD, struct.pack("Q", number))

    def control(self, name: str, value: int = 1) -> None:
        """Set a control by its name."""
        with self._open() as device:
            at = 0
            while True:
                asked = bytearray(struct.pack(_CONTROL, at | _NEXT, 0, b""))
                fcntl.ioctl(device, _QUERY_CONTROL, asked)  # OSError after the last one
                at, _, its = struct.unpack(_CONTROL, asked)
                if its.rstrip(b"\0").decode() == name:
                    break
            fcntl.ioctl(device, _SET_CONTROL, struct.pack("Ii", at, value))

    def chosen(self) -> tuple[int, int]:
        """The size that its reader has chosen."""
        asked = bytearray(struct.pack(_FORMAT, _CAPTURE, 0, 0, 0))
        with self._open() as device:
            fcntl.ioctl(device, _GET_FORMAT, asked)
        _, width, height, _ = struct.unpack(_FORMAT, asked)
        return width, height

    def _ask(self, request: int, argument: bytes) -> None:
        with self._open() as device:
            fcntl.ioctl(device, request, argument)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        device = os.open(self.path, os.O_RDWR)
        try:
            yield device
        finally:
            os.close(device)
