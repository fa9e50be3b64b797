"""`edge-agent update`: install an update, show the slots, go back."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from edge_agent.settings import Settings
from edge_agent.update import boot
from edge_agent.update.boot import UNIT, Slots
from edge_agent.update.install import install
from projector.bundle.keys import TrustedKeys
from projector.bundle.update import open_update
from protos.errors import UpdateError
from protos.process.files import writing

STATUS, ROLLBACK = "status", "rollback"


def update(chosen: Settings, what: str, older: bool, restart: bool, as_json: bool) -> int:
    """Do what the command says.

    Args:
        chosen: the settings.
        what: an update's file, "status" or "rollback".
        older: install an update that is not newer as well.
        restart: start the agent again, where systemd runs it from these slots.
        as_json: print the status as JSON.
    """
    slots = Slots(chosen.slots)
    if what == STATUS:
        found = status(slots)
        print(json.dumps(found, indent=2) if as_json else _table(found))
        return 0
    if what == ROLLBACK:
        try:
            with writing(slots.root), slots.locked():
                print(boot.roll_back(slots))
        except LookupError as error:
            raise UpdateError(str(error.args[0])) from error
    else:
        with open_update(Path(what), TrustedKeys.load(chosen.update_keys)) as opened:
            state = install(opened, slots, older)
            print(
                f"number {opened.manifest.number} ({opened.manifest.version}), signed by "
                f"{opened.signer}: in slot {state.wanted}, on trial from the next start"
            )
    if restart and slots.root == boot.ROOT and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "restart", "--no-block", UNIT], check=False)
    else:
        print(f"to start it: systemctl restart {UNIT}")
    return 0


def status(slots: Slots) -> dict[str, Any]:
    """Both slots, which one runs, and the last events."""
    state = slots.state()
    if state is None:
        raise UpdateError(f"{slots.root} has no slots (boot.json): run install.sh")
    found: dict[str, Any] = {"runs": slots.current(), "good": state.good, "slots": {}}
    for name in boot.NAMES:
        slot = slots.slot(name)
        if slot is not None:
            found["slots"][name] = {
                "number": slot.number,
                "version": slot.version,
                "source": slot.source,
                "parts": slot.parts,
            }
    if state.trial is not None:
        found["trial"] = {"slot": state.trial.slot, "starts": state.trial.starts}
    found["history"] = list(state.history)
    return found


def _table(found: dict[str, Any]) -> str:
    lines = []
    for name in boot.NAMES:
        slot = found["slots"].get(name)
        if slot is None:
            lines.append(f"slot {name}: empty")
            continue
        words = [f"slot {name}: number {slot['number']}, {slot['version']}"]
        if name == found["runs"]:
            words.append("runs")
        if name == found.get("trial", {}).get("slot"):
            words.append(f"on trial, started {found['trial']['starts']} times")
        lines.append(", ".join(words))
    for event in found["history"][-5:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(event["unix_s"]))
        cause = f" ({event['cause']})" if event.get("cause") else ""
        lines.append(f"{when} UTC  number {event.get('number', '?')} {event['event']}{cause}")
    return "\n".join(lines)
