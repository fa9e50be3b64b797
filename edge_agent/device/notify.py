"""Tells systemd how this process is: a datagram to the socket that it names (`sd_notify(3)`)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notify:
    """Sends states to systemd; does nothing where nobody listens.

    Args:
        environ: has NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID if systemd wants to know.

    Attributes:
        watchdog_s: systemd ends the process after so long without `alive`; 0: never.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        place = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + place[1:] if place.startswith("@") else place
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0
        self._said = ""

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def starting(self, limit_s: float) -> None:
        """The start may take this long, seconds; 0: for ever."""
        self._send(f"EXTEND_TIMEOUT_USEC={int((limit_s or 86400.0) * 1e6)}")

    def ready(self) -> None:
        """It works from now on; also after `reloading`."""
        self._send("READY=1")

    def alive(self) -> None:
        """Frames move."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; the same line is sent once."""
        if text != self._said:
            self._said = text
            self._send("STATUS=" + text.replace("\n", " "))

    def reloading(self) -> None:
        """Settings are being read again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            sending.connect(self._address)
            sending.send(state.encode(errors="replace"))
