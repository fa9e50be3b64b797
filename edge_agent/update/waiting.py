"""`edge-agent update waiting`: installs the update that the agent fetched; run as root by systemd.

The agent has no right to write the slots, so what it hands over is not believed: the signature is
verified again, by keys that only root can change, and so is what this device's owner allows.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from edge_agent.update import told
from edge_agent.update.boot import Slots
from edge_agent.update.from_service import FOLDER, MOST_NUMBER, WAITS
from edge_agent.update.install import install
from edge_agent.update.settings import UpdateSettings
from projector.bundle.keys import TrustedKeys
from projector.bundle.update import open_update
from protos.errors import BridgeError, DiskFullError, NotAllowedHereError, UpdateError
from protos.process.files import writing
from protos.update import SUFFIX


def install_waiting(chosen: UpdateSettings, state: Path) -> str:
    """Install the update that waits; returns a line about it, empty if there is nothing to do.

    A failure is written into the history of the slots, from which the agent tells the service. A
    full disk is none: the agent hands the update over again later.

    Args:
        chosen: what this device's owner allows.
        state: the agent's state directory.

    Raises:
        DiskFullError: there is no room now.
        BridgeError: it was refused.
    """
    slots, waits = Slots(chosen.slots), told.read_object(state / FOLDER / WAITS)
    digest, number = waits.get("digest"), waits.get("number")
    version = str(waits.get("version"))[:64]
    if not isinstance(digest, str) or len(digest) != 64 or digest.strip("0123456789abcdef"):
        return ""
    if not isinstance(number, int) or not 0 < number < MOST_NUMBER:
        return ""
    here = told.here(slots, state / "none")
    if here is None:
        raise UpdateError(f"{slots.root} has no slot that runs: run install.sh first")
    if here.on_trial or digest == here.digest:
        return ""  # it is there, or another one has to prove itself first
    failed = here.stands.get(digest)
    if failed is not None and failed.failures > _failures_before(waits.get("failures")):
        return ""  # it failed since it was handed over
    try:
        if not chosen.update_from_service:
            raise NotAllowedHereError("update_from_service is off on this device")
        file = state / FOLDER / f"{digest}{SUFFIX}"
        with open_update(file, TrustedKeys.load(chosen.update_keys)) as opened:
            if opened.digest != digest:
                raise UpdateError(f"{file} is another update")
            older = waits.get("older") is True and chosen.update_older
            done = install(opened, slots, older)
            return (
                f"number {opened.manifest.number} ({opened.manifest.version}), signed by "
                f"{opened.signer}: in slot {done.wanted}, on trial from the next start"
            )
    except DiskFullError as error:
        with contextlib.suppress(BridgeError), writing(slots.root), slots.locked():
            told.wait(slots, digest, number, version, error.name)
        raise
    except BridgeError as error:
        with writing(slots.root), slots.locked():
            told.refuse(slots, digest, number, version, error.name)
        raise


def _failures_before(found: object) -> int:
    return found if isinstance(found, int) else 0
