"""What an update must fit: this device's processor, Python and JetPack, and the slot that runs."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from protos.errors import UpdateError
from protos.update import ANY, Manifest

_RELEASE = Path("/etc/nv_tegra_release")
_JETPACKS = {"34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""JetPack's major version by the release of Jetson Linux (L4T) that it brings."""
NONE = "none"


@dataclass(frozen=True)
class Platform:
    """A device, as far as updates differ by it.

    Attributes:
        machine: its processor, as `uname -m` has it.
        python: minor version of its Python, such as "3.10".
        jetpack: major version of its JetPack; "none" for a machine that is no Jetson.
    """

    machine: str
    python: str
    jetpack: str

    @classmethod
    def here(cls, release: Path = _RELEASE) -> Platform:
        """This device."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cls(platform.machine(), python, _jetpack(release))


def _jetpack(release: Path) -> str:
    try:
        with release.open("rb") as file:
            found = re.match(rb"# R(\d{1,3})", file.read(256))
    except OSError:
        return NONE
    if found is None:
        return NONE
    number = found[1].decode()
    return _JETPACKS.get(number, f"R{number}")


def check_device(
    manifest: Manifest, newest: int, older: bool, here: Platform | None = None
) -> None:
    """Refuse an update for another device, or one that is not newer than what runs.

    Args:
        manifest: the update's.
        newest: number of the slot that runs.
        older: take an older one or the same one as well.
        here: the device; None for this one.

    Raises:
        UpdateError: it does not fit.
    """
    device = here or Platform.here()
    if manifest.machine not in (ANY, device.machine):
        raise UpdateError(f"it is for {manifest.machine}, this device is {device.machine}")
    if manifest.python not in (ANY, device.python):
        raise UpdateError(f"it is for Python {manifest.python}, this device has {device.python}")
    if manifest.jetpack not in (ANY, device.jetpack):
        raise UpdateError(f"it is for JetPack {manifest.jetpack}, this device has {device.jetpack}")
    if manifest.number <= newest and not older:
        raise UpdateError(
            f"it is number {manifest.number}, and number {newest} runs: not newer; --older "
            "installs it anyway"
        )
