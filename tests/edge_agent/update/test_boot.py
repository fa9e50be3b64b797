"""Which slot runs: a new one is kept if it answers, and left if it does not."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.update import boot, commands, told
from edge_agent.update.boot import HEALTHY_FRAMES, MOST_STARTS, TRIAL_S, Slot, Slots

BOOT = "this boot"


def part(slots: Slots, name: str) -> str:
    (slots.root / "parts" / name).mkdir(parents=True, exist_ok=True)
    return name


def slot(slots: Slots, number: int) -> Slot:
    return Slot(f"id{number}", number, f"v{number}", "test", {"agent": part(slots, f"p{number}")})


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """Slot a, number 1, which proved itself."""
    made = Slots(tmp_path / "slots-root")
    boot.adopt(made, slot(made, 1))
    return made


def running(slots: Slots) -> int:
    """Number of the slot that `current` points to."""
    plain = json.loads((slots.root / "current" / "slot.json").read_text())
    assert (slots.root / "current" / "agent").is_dir()
    return int(plain["number"])


def last(slots: Slots) -> dict[str, Any]:
    state = slots.state()
    assert state is not None
    return state.history[-1]


def judged(slots: Slots, now_s: float, health: dict[str, Any] | None = None) -> bool:
    return boot.judge(slots, health or {}, BOOT, now_s)[1]


def test_the_first_slot_runs_without_a_trial(slots: Slots) -> None:
    assert running(slots) == 1 and slots.state() == boot.BootState("a", None, (last(slots),))


def test_a_slot_that_answers_is_kept(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    boot.start(slots)
    assert running(slots) == 2
    assert not judged(slots, 10.0, {"id": "id2", "frames": HEALTHY_FRAMES})
    state = slots.state()
    assert state is not None and state.trial is None and state.good == "b"
    for _ in range(2 * MOST_STARTS):
        boot.start(slots)
    assert running(slots) == 2


@pytest.mark.parametrize(
    "health",
    [
        {},
        {"id": "id2", "frames": HEALTHY_FRAMES - 1},
        {"id": "id1", "frames": 100},  # the old slot's
        {"id": "id2", "frames": "many"},
    ],
)
def test_a_slot_that_does_not_answer_in_its_time_is_left(
    slots: Slots, health: dict[str, Any]
) -> None:
    boot.adopt(slots, slot(slots, 2))
    boot.start(slots)
    assert not judged(slots, 10.0, health)
    assert not judged(slots, 9.0 + TRIAL_S, health)
    assert running(slots) == 2
    assert judged(slots, 11.0 + TRIAL_S, health)
    assert running(slots) == 1
    assert last(slots)["event"] == "rolled_back" and last(slots)["cause"] == "no_answers"
    assert not judged(slots, 12.0 + 2 * TRIAL_S)


def test_a_slot_that_crashes_is_left_after_so_many_starts(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    for _ in range(MOST_STARTS):
        boot.start(slots)
        assert running(slots) == 2
    boot.start(slots)
    assert running(slots) == 1 and last(slots)["cause"] == "crash_loop"


def test_the_time_of_a_trial_begins_again_with_each_boot(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    judged(slots, TRIAL_S)
    assert not boot.judge(slots, {}, "the next boot", 5.0)[1]
    assert not boot.judge(slots, {}, "the next boot", 4.0 + TRIAL_S)[1]
    assert boot.judge(slots, {}, "the next boot", 6.0 + TRIAL_S)[1]


def test_a_new_update_takes_the_place_of_one_on_trial(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    boot.adopt(slots, slot(slots, 3))
    assert running(slots) == 3
    for _ in range(MOST_STARTS + 1):
        boot.start(slots)
    assert running(slots) == 1


def test_by_hand_one_goes_back_and_never_to_a_slot_that_failed(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    judged(slots, 1.0, {"id": "id2", "frames": HEALTHY_FRAMES})
    boot.roll_back(slots)
    assert running(slots) == 1
    boot.adopt(slots, slot(slots, 3))
    boot.roll_back(slots)
    assert running(slots) == 1
    with pytest.raises(LookupError, match="no other slot"):
        boot.roll_back(slots)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"format": 2, "good": "a"}', "\0" * 99])
@pytest.mark.parametrize("at", ["boot.json", "slots/b/slot.json"])
def test_damage_never_stops_the_agent(slots: Slots, at: str, damage: str) -> None:
    boot.adopt(slots, slot(slots, 2))
    (slots.root / at).write_text(damage)
    boot.start(slots)
    assert running(slots) == (2 if at == "boot.json" else 1)
    assert slots.state() is not None


@pytest.mark.parametrize(
    ("at", "change"),
    [
        ("boot.json", {"good": ["a"]}),
        ("boot.json", {"trial": {"slot": "b", "starts": "3"}}),
        ("boot.json", {"trial": {"slot": {}}}),
        ("boot.json", {"history": [5, None, {"event": 3}, {"unix_s": 4}]}),
        ("slots/b/slot.json", {"number": "2"}),
        ("slots/b/slot.json", {"parts": ["agent"]}),
        ("slots/b/slot.json", {"parts": {"agent": 5}}),
        ("slots/b/slot.json", {"parts": "agent"}),
    ],
)
def test_values_of_another_type_are_damage_too(
    slots: Slots, at: str, change: dict[str, Any]
) -> None:
    boot.adopt(slots, slot(slots, 2))
    path = slots.root / at
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    boot.start(slots)
    judged(slots, 1.0)
    slots.drop_unused_parts()
    state = slots.state()
    assert state is not None and running(slots) == (1 if "slot.json" in at else 2)
    commands.status(slots)
    told.here(slots, slots.root / "none")


def test_a_part_that_is_gone_sends_back(slots: Slots) -> None:
    boot.adopt(slots, slot(slots, 2))
    (slots.root / "parts" / "p2").rmdir()
    boot.start(slots)
    assert running(slots) == 1 and last(slots)["cause"] == "not_whole"


def test_a_lost_link_is_made_again(slots: Slots) -> None:
    (slots.root / "current").unlink()
    boot.start(slots)
    assert running(slots) == 1


def test_nothing_to_run_is_said_and_no_crash(tmp_path: Path) -> None:
    assert "install again" in boot.start(Slots(tmp_path))


class PowerCut(BaseException):
    """Ends everything, as `except Exception` must not catch it."""


def cut_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the power fail at the n-th call that changes the disk."""
    left = itertools.count(calls, -1)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if next(left) <= 0:
                raise PowerCut
            return real(*args, **more)

        return call

    for owner, name in (
        (os, "replace"), (os, "fsync"), (Path, "rename"), (Path, "symlink_to"), (Path, "mkdir"),
        (boot.shutil, "rmtree"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))


@pytest.mark.parametrize("what", ["adopt", "keep", "go_back", "adopt_again"])
def test_after_a_power_cut_at_any_step_a_whole_slot_runs(tmp_path: Path, what: str) -> None:
    for calls in itertools.count():
        slots = Slots(tmp_path / f"{what}{calls}")
        boot.adopt(slots, slot(slots, 1))
        new = slot(slots, 2)
        if what != "adopt":
            boot.adopt(slots, new)
        newer = slot(slots, 3)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, calls)
            try:
                if what == "keep":
                    judged(slots, 1.0, {"id": "id2", "frames": HEALTHY_FRAMES})
                elif what == "go_back":
                    boot.roll_back(slots)
                else:
                    boot.adopt(slots, new if what == "adopt" else newer)
                whole = True
            except PowerCut:
                whole = False
        boot.start(slots)
        assert running(slots) in (1, 2, 3)
        state = slots.state()
        assert state is not None and slots.current() == state.wanted
        for _ in range(MOST_STARTS + 1):
            boot.start(slots)
        assert running(slots) == (2 if state.trial is None and state.good == "b" else 1)
        if whole:
            assert calls >= 3
            return


def test_the_copy_that_root_runs_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(boot.__file__).read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_program_installs_starts_and_goes_back(tmp_path: Path) -> None:
    root, health = tmp_path / "root", tmp_path / "health.json"

    def said(*words: str) -> str:
        command = [sys.executable, "-I", boot.__file__, "--root", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    (root / "parts" / "one").mkdir(parents=True)
    said("install", "--agent", "one")
    assert said("start") == "slots: slot a\n"
    (root / "parts" / "two").mkdir()
    said("install", "--agent", "two")
    assert "slot b on trial, start 1" in said("start")
    slot_id = json.loads((root / "current/slot.json").read_text())["id"]
    health.write_text(json.dumps({"id": slot_id, "frames": HEALTHY_FRAMES}))
    assert "is kept" in said("judge", "--health", str(health))
    assert "slot a runs from the next start" in said("rollback")


def test_an_update_that_is_being_unpacked_keeps_no_agent_from_starting(
    slots: Slots, capsys: pytest.CaptureFixture[str]
) -> None:
    boot.adopt(slots, slot(slots, 2))
    with slots.locked():
        for command in ("start", "judge"):
            assert boot.main(["--root", str(slots.root), command]) == 0
            assert "being unpacked" in capsys.readouterr().out
    assert running(slots) == 2
    assert boot.main(["--root", str(slots.root), "start"]) == 0
    assert "start 1" in capsys.readouterr().out
