"""`edge-agent update`: install an update, show the slots, go back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from edge_agent.metrics import Metrics
from edge_agent.settings import Settings
from edge_agent.update import boot
from edge_agent.update.boot import UNIT, BootState, Slots
from edge_agent.update.from_service import FromService, Offered, require_state
from edge_agent.update.install import install
from edge_agent.update.told import Here
from edge_agent.update.waiting import install_waiting
from edge_agent.uplink.dial import Dial, explained
from projector.bundle.keys import TrustedKeys
from projector.bundle.update import open_update
from protos.errors import OfflineError, UpdateError
from protos.process import logs
from protos.process.files import writing

STATUS, ROLLBACK, WAITING = "status", "rollback", "waiting"


def update(
    chosen: Settings,
    what: str,
    older: bool,
    restart: bool,
    as_json: bool,
    state: Path | None = None,
) -> int:
    """Do what the command says.

    Args:
        chosen: the settings.
        what: an update's file, "status", "rollback" or "waiting".
        older: install an update that is not newer as well.
        restart: start the agent again, where systemd runs it from these slots.
        as_json: print the status as JSON.
        state: the state directory, for "waiting".
    """
    slots = Slots(chosen.slots)
    if what == STATUS:
        found = status(slots)
        print(json.dumps(found, indent=2) if as_json else _table(found))
        return 0
    if what == ROLLBACK:
        _require(slots)
        try:
            with writing(slots.root), slots.locked():
                print(boot.roll_back(slots))
        except LookupError as error:
            raise UpdateError(str(error.args[0])) from error
    elif what == WAITING:
        done = install_waiting(chosen, require_state(state))
        print(done or "no update waits")
        if not done:
            return 0
    else:
        with open_update(Path(what), TrustedKeys.load(chosen.update_keys)) as opened:
            made = install(opened, slots, older)
            print(
                f"number {opened.manifest.number} ({opened.manifest.version}), signed by "
                f"{opened.signer}: in slot {made.wanted}, on trial from the next start"
            )
    if restart and slots.root == boot.ROOT and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "restart", "--no-block", UNIT], check=False)
    else:
        print(f"to start it: systemctl restart {UNIT}")
    return 0


def check(chosen: Settings, state: Path | None, dial: Dial, as_json: bool) -> int:
    """Ask the service whether it offers this device an update; nothing is fetched.

    Args:
        chosen: the settings.
        state: the state directory.
        dial: makes a channel to the service.
        as_json: print JSON.

    Raises:
        BridgeError: the service refuses, or cannot be reached.
    """
    log = logs.configure("error", "edge_agent")
    asking = FromService(
        chosen, require_state(state), dial, lambda: True, lambda: False, Metrics(), log,
        timeout_s=chosen.connect_timeout_s,
    )  # fmt: skip

    async def asked() -> tuple[Here | None, Offered | None]:
        async with dial() as channel:
            try:
                return await asking.ask(channel)
            except OfflineError as error:
                raise explained(dial, error) from error

    here, offered = asyncio.run(asked())
    if as_json:
        found = {"offered": None if offered is None else vars(offered)}
        print(json.dumps(found | {"stands": {} if here is None else _stands(here)}, indent=2))
        return 0
    if here is None:
        print(f"{chosen.slots} has no slots: updates need install.sh")
    for digest, stand in _stands(here).items() if here is not None else ():
        print(f"{digest[:12]}…: {stand['state']}, {stand['failures']} failures {stand['cause']}")
    if offered is not None:
        size = f"{offered.size_bytes / 1e6:.1f} MB"
        print(f"the service offers number {offered.number} ({offered.version}), {size}")
    elif chosen.update_from_service:
        print("the service offers no update")
    else:
        print("update_from_service is off here: the service offers this device nothing")
    return 0


def _stands(here: Here) -> dict[str, Any]:
    return {digest: vars(stand) for digest, stand in here.stands.items()}


def status(slots: Slots) -> dict[str, Any]:
    """Both slots, which one runs, and the last events."""
    state = _require(slots)
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


def _require(slots: Slots) -> BootState:
    state = slots.state()
    if state is None:
        raise UpdateError(f"{slots.root} has no slots (boot.json): run install.sh")
    return state


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
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(event.get("unix_s", 0)))
        cause = f" ({event['cause']})" if event.get("cause") else ""
        lines.append(f"{when} UTC  number {event.get('number', '?')} {event['event']}{cause}")
    return "\n".join(lines)
