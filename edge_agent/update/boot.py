"""Which of two slots runs: switches, counts the starts of a new one, keeps it or goes back.

The installer copies this file out of the slots, and root runs the copy with the system's own
Python. So a broken slot cannot keep its device from going back. It imports only the standard
library.

    boot.json       the truth: the good slot, and the one on trial; replaced as a whole
    current         a link to the slot that should run; made again from boot.json at each start
    slots/a, b      slot.json, and a link for each part
    parts/NAME      an environment or a model; never changed once a slot names it
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path("/opt/neural-bridge")
HEALTH = Path("/var/lib/neural-bridge/slot_health.json")
UNIT = "neural-bridge-edge.service"
NAMES = ("a", "b")
MOST_STARTS = 3
"""Starts that a slot on trial gets, power cuts included."""
TRIAL_S = 1800.0
"""Seconds that it gets in one piece to answer `HEALTHY_FRAMES` frames."""
HEALTHY_FRAMES = 5
_HISTORY = 20
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Slot:
    """What a slot holds: `slot.json`.

    Attributes:
        id: made anew for each slot that is written, so that no other slot's health counts for it.
        number: the update's number; a higher one is newer.
        version: its name for people.
        source: where it came from: "install", or the update's SHA-256.
        parts: by kind (agent, model, bundle), the folder under `parts`.
    """

    id: str
    number: int
    version: str
    source: str
    parts: dict[str, str]


@dataclass(frozen=True)
class Trial:
    """A slot that has to prove itself.

    Attributes:
        slot: its name.
        starts: times it was started.
        boot: id of the boot in which `since_s` was taken.
        since_s: seconds since that boot when it was first looked at; no clock can jump.
    """

    slot: str
    starts: int = 0
    boot: str = ""
    since_s: float = 0.0


@dataclass(frozen=True)
class BootState:
    """`boot.json`.

    Attributes:
        good: name of the slot that proved itself.
        trial: the slot that has to; None if none has.
        history: the last events, oldest first.
    """

    good: str
    trial: Trial | None = None
    history: tuple[dict[str, Any], ...] = ()
    format: int = 1

    @property
    def wanted(self) -> str:
        """Name of the slot that should run."""
        return self.trial.slot if self.trial is not None else self.good

    def told(self, event: str, slot: Slot | None, cause: str = "") -> BootState:
        """The same, with one more event."""
        entry: dict[str, Any] = {"event": event, "unix_s": int(time.time())}
        if slot is not None:
            entry |= {"number": slot.number, "version": slot.version, "source": slot.source}
        if cause:
            entry["cause"] = cause
        return replace(self, history=(*self.history, entry)[-_HISTORY:])


@dataclass(frozen=True)
class Slots:
    """The folder with both slots."""

    root: Path = ROOT
    folders: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", self.root / "slots")

    @contextlib.contextmanager
    def locked(self, wait: bool = True) -> Iterator[None]:
        """Nobody else changes the slots meanwhile.

        Args:
            wait: for an update that is being unpacked, which takes minutes.

        Raises:
            BlockingIOError: not waiting, and somebody changes them.
            FileNotFoundError: there is no such folder.
        """
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def state(self) -> BootState | None:
        """Read `boot.json`; None if it is missing or damaged."""
        plain = _read(self.root / "boot.json")
        try:
            trial = plain["trial"]
            state = BootState(
                good=plain["good"],
                trial=None if trial is None else Trial(**trial),
                history=tuple(filter(_is_event, plain["history"])),
                format=plain["format"],
            )
        except (KeyError, TypeError):
            return None
        known = state.format == 1 and state.good in NAMES and state.wanted in NAMES
        return (
            state if known and (state.trial is None or _is_like(state.trial, Trial(""))) else None
        )

    def slot(self, name: str) -> Slot | None:
        """Read a slot; None if it is missing, or one of its parts is."""
        try:
            slot = Slot(**_read(self.folders / name / "slot.json"))
            whole = _is_like(slot, Slot("", 0, "", "", {})) and all(
                (self.folders / name / kind).resolve() == (self.root / "parts" / part).resolve()
                and (self.root / "parts" / part).is_dir()
                for kind, part in slot.parts.items()
            )
        except (TypeError, AttributeError, OSError):
            return None
        return slot if whole and "agent" in slot.parts else None

    def current(self) -> str | None:
        """Name of the slot that `current` points to; None if it points to none."""
        try:
            name = Path(os.readlink(self.root / "current")).name
        except OSError:
            return None
        return name if name in NAMES else None

    def write(self, name: str, slot: Slot) -> None:
        """Make a slot that does not run. Its parts are there already, and on the disk."""
        draft, place = self.folders / f".{name}.part", self.folders / name
        for old in (draft, place):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        for kind, part in slot.parts.items():
            (draft / kind).symlink_to(Path("..", "..", "parts", part))
        _write(draft / "slot.json", asdict(slot))
        _sync(draft)
        draft.rename(place)
        _sync(self.folders)

    def save(self, state: BootState) -> None:
        """Replace `boot.json`, then point `current` to the slot that should run."""
        _write(self.root / "boot.json", asdict(state))
        self.point(state.wanted)

    def point(self, name: str) -> None:
        """Let `current` point to a slot."""
        if self.current() == name:
            return
        draft = self.root / f".current.{secrets.token_hex(4)}.part"
        draft.symlink_to(Path("slots", name))
        os.replace(draft, self.root / "current")
        _sync(self.root)

    def spare(self) -> str:
        """Name of the slot that may be overwritten: the one that is not good."""
        state = self.state()
        good = state.good if state is not None else self.current()
        return "b" if good == "a" else "a"

    def drop_unused_parts(self) -> None:
        """Remove the parts that no slot names."""
        parts = [_read(self.folders / name / "slot.json").get("parts") for name in NAMES]
        used = {str(part) for one in parts if isinstance(one, dict) for part in one.values()}
        for part in (self.root / "parts").glob("*"):
            if part.name not in used:
                shutil.rmtree(part, ignore_errors=True)


def adopt(slots: Slots, slot: Slot) -> BootState:
    """Make a slot and switch to it: on trial if another one proved itself.

    Its parts must be on the disk. The caller holds the lock.
    """
    name, before = slots.spare(), slots.state()
    if before is not None and before.trial is not None and before.trial.slot == name:
        # Never overwrite the slot that `current` names: go back first.
        before = replace(before, trial=None).told("replaced", slots.slot(name))
        slots.save(before)
    slots.write(name, slot)
    if before is None or slots.slot(before.good) is None:
        state = BootState(good=name, history=before.history if before is not None else ())
        state = state.told("installed", slot)
    else:
        state = replace(before, trial=Trial(name)).told("trial", slot)
    slots.save(state)
    return state


def start(slots: Slots) -> str:
    """Before each start of the agent: count it, go back if there were too many, set `current`.

    Returns:
        One line about what was done.
    """
    state = slots.state()
    if state is None:
        return _rescue(slots)
    trial = state.trial
    if trial is not None and slots.slot(trial.slot) is None:
        return go_back(slots, state, "not_whole")
    if trial is not None and trial.starts >= MOST_STARTS:
        return go_back(slots, state, "crash_loop")
    if trial is not None:
        slots.save(replace(state, trial=replace(trial, starts=trial.starts + 1)))
        return f"slot {trial.slot} on trial, start {trial.starts + 1} of {MOST_STARTS}"
    if slots.slot(state.good) is None:
        return _rescue(slots)
    slots.point(state.good)
    return f"slot {state.good}"


def judge(slots: Slots, health: Mapping[str, Any], boot: str, now_s: float) -> tuple[str, bool]:
    """Keep a slot on trial that answers; go back from one that did not in its time.

    Args:
        slots: the slots.
        health: what the agent wrote: the id of its slot, and frames answered since its start.
        boot: id of this boot.
        now_s: seconds since this boot.

    Returns:
        One line, and whether the agent has to be started again.
    """
    state = slots.state()
    if state is None or state.trial is None:
        return "no slot on trial", False
    trial, slot = state.trial, slots.slot(state.trial.slot)
    if slot is None:
        return go_back(slots, state, "not_whole"), True
    frames = health.get("frames") if health.get("id") == slot.id else 0
    if isinstance(frames, int) and frames >= HEALTHY_FRAMES:
        slots.save(replace(state, good=trial.slot, trial=None).told("kept", slot))
        return f"slot {trial.slot} is kept: it answered {frames} frames", False
    if trial.boot != boot:
        slots.save(replace(state, trial=replace(trial, boot=boot, since_s=now_s)))
        return f"slot {trial.slot} on trial", False
    if now_s - trial.since_s < TRIAL_S:
        return f"slot {trial.slot} on trial for {now_s - trial.since_s:.0f} s", False
    return go_back(slots, state, "no_answers"), True


def go_back(slots: Slots, state: BootState, cause: str) -> str:
    """End the trial: the good slot runs again."""
    assert state.trial is not None
    failed = state.trial.slot
    slots.save(replace(state, trial=None).told("rolled_back", slots.slot(failed), cause))
    shutil.rmtree(slots.folders / failed, ignore_errors=True)  # nobody goes back to it by mistake
    return f"slot {failed} is left ({cause}): slot {state.good} runs again"


def roll_back(slots: Slots) -> str:
    """By hand: end the trial, or return to the slot that ran before.

    Raises:
        LookupError: there is no other whole slot.
    """
    state = slots.state()
    if state is None:
        raise LookupError("boot.json is missing or damaged: install again")
    if state.trial is not None:
        return go_back(slots, state, "by_hand")
    other = slots.spare()
    if slots.slot(other) is None:
        raise LookupError("there is no other slot")
    left = slots.slot(state.good)
    slots.save(replace(state, good=other).told("rolled_back", left, "by_hand"))
    return f"slot {other} runs from the next start"


def _rescue(slots: Slots) -> str:
    """`boot.json` or the good slot is damaged: take a slot that is whole."""
    names = [name for name in (slots.current(), *NAMES) if name and slots.slot(name) is not None]
    if not names:
        return "no whole slot: install again"
    before = slots.state()
    state = BootState(names[0], history=before.history if before is not None else ())
    slots.save(state.told("rescued", slots.slot(names[0])))
    return f"boot.json or the good slot was damaged: slot {names[0]}"


def boot_id() -> str:
    """The id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_health(path: Path) -> dict[str, Any]:
    """What the agent wrote about itself; empty if it wrote nothing yet."""
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            plain = json.loads(file.read(_LARGEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _is_event(read: object) -> bool:
    """Whether this is one event of the history."""
    if not isinstance(read, dict):
        return False
    return isinstance(read.get("event"), str) and isinstance(read.get("unix_s", 0), int)


def _is_like(read: Slot | Trial, one: Slot | Trial) -> bool:
    """Whether what was read has fields of the same types as another one."""
    types = {name: type(value) for name, value in asdict(one).items()}
    return all(
        isinstance(value, types[name]) or (types[name] is float and isinstance(value, int))
        for name, value in asdict(read).items()
    )


def _write(path: Path, plain: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("x") as file:
            file.write(json.dumps(plain, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# ---------------------------------------------------------------------- as a program


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description="Which of two slots of the agent runs.")
    parser.add_argument("--root", type=Path, default=ROOT)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start", help="before each start of the agent")
    judging = commands.add_parser("judge", help="keep a slot on trial, or go back")
    judging.add_argument("--health", type=Path, default=HEALTH)
    commands.add_parser("rollback", help="go back by hand")
    installing = commands.add_parser("install", help="make a slot from an installed environment")
    installing.add_argument("--agent", required=True, help="its folder under parts")
    installing.add_argument("--model", type=Path, help="an edge export, copied")
    args = parser.parse_args(argv)
    slots = Slots(args.root)
    try:
        with slots.locked(wait=args.command not in ("start", "judge")):
            said, again = _command(args, slots)
    except BlockingIOError:  # `current` is valid all the time: the agent starts from it
        print("slots: an update is being unpacked, so nothing is counted or judged now")
        return 0
    except (LookupError, OSError) as error:
        print(f"slots: {error}", file=sys.stderr)
        return 1
    print(f"slots: {said}")
    if again:
        subprocess.run(["systemctl", "restart", "--no-block", UNIT], check=False)
    return 0


def _command(args: argparse.Namespace, slots: Slots) -> tuple[str, bool]:
    if args.command == "start":
        return start(slots), False
    if args.command == "judge":
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return judge(slots, read_health(args.health), boot_id(), now_s)
    if args.command == "rollback":
        return roll_back(slots), False
    state = slots.state()
    before = slots.slot(state.good) if state is not None else None
    parts = dict(before.parts) if before is not None else {}
    parts["agent"] = args.agent
    if args.model is not None:
        parts["model"] = f"model-{secrets.token_hex(4)}"
        shutil.copytree(args.model, args.root / "parts" / parts["model"])
    number = before.number if before is not None else 0
    os.sync()
    adopted = adopt(slots, Slot(secrets.token_hex(8), number, args.agent, "install", parts))
    slots.drop_unused_parts()
    return f"slot {adopted.wanted} has {', '.join(sorted(parts))}", False


if __name__ == "__main__":
    sys.exit(main())
