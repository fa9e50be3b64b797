"""Watts, temperatures, power mode and throttling of this machine, from sysfs.

Reads what Jetson boards have: INA3221 or INA238 power monitors, thermal zones, cooling devices, the
GPU's devfreq and nvpmodel's status. A board without one of these has no such reading.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_LONGEST = 1 << 16
_MONITORS = ("ina3221", "ina238")
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN", "5V_IN")
"""Rails that carry everything the module takes; the boards differ in the name."""
_COUNTED_BY_ANOTHER = ("VDDQ_VDD2_1V8AO",)
"""Rails that are fed from a rail that is measured too (AGX Orin: VIN_SYS_5V0)."""
_SLOWING = re.compile(r"cpufreq|devfreq|throttle|processor|gpu", re.IGNORECASE)
"""Cooling devices that slow the machine down; fans do not."""
_COLDEST_C, _HOTTEST_C = -60.0, 200.0
"""Zones that are switched off report -256; rubbish reports anything."""


@dataclass(frozen=True)
class Readings:
    """What the sensors said at one moment.

    Attributes:
        watts: power that the module takes; None if the board does not measure it.
        celsius: temperature of the hottest zone; None if there is none.
        mode: power mode by name (`25W`), or by number if it has no name; empty if unknown.
        throttled: whether heat slows the processors down now.
        rails: watts by the rail's label.
        zones: degrees Celsius by the zone's type.
        gpu_hz: the GPU's clock; None if unknown.
    """

    watts: float | None = None
    celsius: float | None = None
    mode: str = ""
    throttled: bool = False
    rails: Mapping[str, float] = field(default_factory=dict)
    zones: Mapping[str, float] = field(default_factory=dict)
    gpu_hz: int | None = None


def read(root: Path = Path("/")) -> Readings:
    """Read every sensor once; a file that is missing or holds rubbish is passed over.

    A driver may hold the caller for as long as its bus hangs: `Sensors` reads in a thread.

    Args:
        root: the folder that `sys`, `etc` and `var` lie in.
    """
    rails, zones = dict(_rails(root)), dict(_zones(root))
    return Readings(
        _watts(rails),
        max(zones.values(), default=None),
        _mode(root),
        _throttled(root),
        rails,
        zones,
        _gpu_hz(root),
    )


class Sensors:
    """The newest readings, read in a thread of its own: a bus that hangs holds up nobody.

    Args:
        read: reads the sensors; may take for ever.
        every_s: seconds between two readings.
        stale_s: readings older than this are no longer given.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        read: Callable[[], Readings] = read,
        every_s: float = 2.0,
        stale_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._every_s, self._stale_s, self._clock = read, every_s, stale_s, clock
        self._last: tuple[float, Readings] | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to read, every `every_s` until `stop`."""
        threading.Thread(target=self._run, name="sensors", daemon=True).start()

    def stop(self) -> None:
        """End the thread once its reading ends."""
        self._stopped.set()

    def refresh(self) -> None:
        """Read once, now."""
        self._last = (self._clock(), self._read())

    def latest(self) -> Readings:
        """The newest readings; empty ones if there are none or they are too old."""
        last = self._last
        if last is None or self._clock() - last[0] > self._stale_s:
            return Readings()
        return last[1]

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.refresh()
            self._stopped.wait(self._every_s)


# ---------------------------------------------------------------------- power monitors


def _rails(root: Path) -> Iterator[tuple[str, float]]:
    """Watts by label, of every channel that is measured."""
    for device in _inside(root / "sys/bus/i2c/devices"):
        chip = _text(device / "name")
        if chip not in _MONITORS:
            continue
        for hwmon in _inside(device / "hwmon"):
            # INA3221 has three channels; what has a higher number is shunt voltages and sums.
            for channel in (1, 2, 3) if chip == "ina3221" else (1,):
                label = _text(hwmon / f"in{channel}_label") or _text(hwmon / f"curr{channel}_label")
                if chip == "ina238":
                    label = label or "VIN"
                watts = _channel(hwmon, channel)
                if watts is not None and label not in ("NC", "N/C"):
                    yield label or f"{device.name}/{channel}", watts


def _channel(hwmon: Path, channel: int) -> float | None:
    if _text(hwmon / f"in{channel}_enable") == "0":
        return None
    microwatts = _number(hwmon / f"power{channel}_input")
    millivolts = _number(hwmon / f"in{channel}_input")
    milliamperes = _number(hwmon / f"curr{channel}_input")
    watts = None
    if microwatts is not None:
        watts = microwatts / 1e6
    elif millivolts is not None and milliamperes is not None:
        watts = millivolts * milliamperes / 1e6
    return watts if watts is not None and 0.0 <= watts < 1000.0 else None


def _watts(rails: Mapping[str, float]) -> float | None:
    whole = [rails[name] for name in _WHOLE if name in rails]
    if whole:
        return whole[0]
    parts = [watts for name, watts in rails.items() if name not in _COUNTED_BY_ANOTHER]
    return sum(parts) if parts else None


# ---------------------------------------------------------------------- heat and clocks


def _zones(root: Path) -> Iterator[tuple[str, float]]:
    for zone in _thermal(root, "thermal_zone"):
        millidegrees = _number(zone / "temp")
        if millidegrees is not None and _COLDEST_C < millidegrees / 1000 < _HOTTEST_C:
            yield _text(zone / "type") or zone.name, millidegrees / 1000


def _throttled(root: Path) -> bool:
    """Whether a device that slows the machine down for its heat is at work."""
    for device in _thermal(root, "cooling_device"):
        state = _number(device / "cur_state")
        if state is not None and state > 0 and _SLOWING.search(_text(device / "type")):
            return True
    return False


def _thermal(root: Path, kind: str) -> list[Path]:
    for folder in ("sys/devices/virtual/thermal", "sys/class/thermal"):
        found = [path for path in _inside(root / folder) if path.name.startswith(kind)]
        if found:
            return found
    return []


def _gpu_hz(root: Path) -> int | None:
    for device in _inside(root / "sys/class/devfreq"):
        if "gpu" in device.name or "gv11b" in device.name or "ga10b" in device.name:
            hertz = _number(device / "cur_freq")
            if hertz is not None and hertz >= 0:
                return hertz
    return None


def _mode(root: Path) -> str:
    """Nvpmodel's mode: its status has the number, its configuration the names."""
    found = re.search(r"pmode:(\d{1,6})", _text(root / "var/lib/nvpmodel/status"))
    if found is None:
        return ""
    number = int(found[1])
    names = r"POWER_MODEL\s+ID=0*(\d{1,6})\s+NAME=([\w.+-]{1,64})"
    for each, name in re.findall(names, _text(root / "etc/nvpmodel.conf")):
        if int(each) == number:
            return str(name)
    return str(number)


# ---------------------------------------------------------------------- files of the kernel


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """The first 64 KiB of a regular file; empty if it cannot be read or would hold the caller."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, _LONGEST).decode("utf-8", "replace").strip("\0 \r\n\t")
    except OSError:  # a zone that is switched off answers EAGAIN; a removed chip ENODEV
        return ""
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?[0-9]{1,15}", text) else None
