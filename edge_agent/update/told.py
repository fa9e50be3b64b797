"""How updates stand on this device, read from the slots: what it tells the service in every call.

Nothing is remembered beside `boot.json` and a list of refused files, so a restart loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.update.boot import Slot, Slots
from protos.errors import BridgeError
from protos.process.files import write_file
from protos.process.folders import open_file
from protos.strict_json import read_json

WAITING, FETCHED, TRIAL, FAILED = "waiting", "fetched", "trial", "failed"
REFUSED = "refused"
"""Event in the history of the slots: an update was not installed."""
WAITS = "waits"
"""Event in the history of the slots: an update is tried again later."""
_FAILURES = ("rolled_back", REFUSED)
_MOST = 24
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Stand:
    """How one update stands here.

    Attributes:
        state: waiting, fetched, trial or failed.
        cause: why it failed or waits.
        failures: how often it failed.
    """

    state: str
    cause: str = ""
    failures: int = 0


@dataclass(frozen=True)
class Here:
    """What runs on this device, and how its updates stand.

    Attributes:
        number: of the slot that proved itself.
        digest: of the update that it came from; empty if it came from none.
        trial: digest of the update on trial; empty without one.
        on_trial: whether any slot is on trial.
        stands: by digest of the update.
    """

    number: int
    digest: str
    trial: str
    on_trial: bool
    stands: dict[str, Stand]


def here(slots: Slots, refused: Path) -> Here | None:
    """Read it; None on a device without slots.

    Args:
        slots: the slots.
        refused: file of updates that were fetched and refused.
    """
    state = slots.state()
    good = slots.slot(state.good) if state is not None else None
    if state is None or good is None:
        return None
    stands: dict[str, Stand] = {}
    for digest, cause in _failed(state.history):
        before = stands.get(digest, Stand(FAILED))
        stands[digest] = Stand(FAILED, cause, before.failures + 1)
    for digest, count in read_refused(refused).items():
        failures = stands.get(digest, Stand(FAILED)).failures + int(count["failures"])
        stands[digest] = Stand(FAILED, str(count["cause"]), failures)
    for digest, cause in _waits(state.history).items():
        stands[digest] = Stand(WAITING, cause, stands.get(digest, Stand(WAITING)).failures)
    trial = ""
    if state.trial is not None:
        slot = slots.slot(state.trial.slot)
        trial = _digest(slot.source) if slot is not None else ""
        if trial:
            failures = stands.get(trial, Stand(TRIAL)).failures
            stands[trial] = Stand(TRIAL, "", failures)
    kept = list(stands.items())[-_MOST:]
    return Here(good.number, _digest(good.source), trial, state.trial is not None, dict(kept))


def refuse(slots: Slots, digest: str, number: int, version: str, cause: str) -> None:
    """Write into the history that an update was not installed. The caller holds the lock."""
    state = slots.state()
    if state is not None:
        slots.save(state.told(REFUSED, Slot("", number, version, digest, {}), cause))


def wait(slots: Slots, digest: str, number: int, version: str, cause: str) -> None:
    """Write into the history that an update waits, once in a row. The caller holds the lock."""
    state = slots.state()
    if state is None:
        return
    last = state.history[-1] if state.history else {}
    if (last.get("event"), last.get("source")) == (WAITS, digest):
        state = replace(state, history=state.history[:-1])
    slots.save(state.told(WAITS, Slot("", number, version, digest, {}), cause))


def read_refused(file: Path) -> dict[str, dict[str, Any]]:
    """Updates that were fetched and refused: cause and failures by digest."""
    plain = read_object(file)
    return {
        digest: one
        for digest, one in plain.items()
        if _digest(digest)
        and isinstance(one, dict)
        and isinstance(one.get("failures"), int)
        and isinstance(one.get("cause"), str)
    }


def add_refused(file: Path, digest: str, cause: str) -> None:
    """Remember that a fetched update was refused.

    Raises:
        OSError: it cannot be written.
    """
    known = read_refused(file)
    failures = int(known.pop(digest, {"failures": 0})["failures"])
    known[digest] = {"cause": cause, "failures": failures + 1}
    write_file(file, json.dumps(dict(list(known.items())[-_MOST:])).encode(), 0o600)


def read_object(file: Path) -> dict[str, Any]:
    """A small JSON object; empty if it is missing or damaged."""
    try:
        with open_file(file) as opened:
            plain = read_json(opened.read(_MOST_BYTES + 1), _MOST_BYTES, file.name)
    except (OSError, BridgeError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _failed(history: tuple[dict[str, Any], ...]) -> Iterator[tuple[str, str]]:
    """Digest and cause of each failure; an older `boot.py` wrote the digest with no event."""
    began = ""
    for event in history:
        digest = _digest(event.get("source", ""))
        if event.get("event") == "trial":
            began = digest
        if event.get("event") in _FAILURES and (digest or began):
            yield digest or began, str(event.get("cause", ""))[:64]


def _waits(history: tuple[dict[str, Any], ...]) -> dict[str, str]:
    """Why updates wait, by digest: those of which nothing else was heard since."""
    waits: dict[str, str] = {}
    for event in history:
        if digest := _digest(event.get("source", "")):
            waits.pop(digest, None)
            if event.get("event") == WAITS:
                waits[digest] = str(event.get("cause", ""))[:64]
    return waits


def _digest(source: object) -> str:
    """The digest in a slot's source; empty if it came from no update."""
    known = isinstance(source, str) and len(source) == 64 and not source.strip("0123456789abcdef")
    return str(source) if known else ""
