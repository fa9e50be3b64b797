"""`cloud-server top`: what the terminal shows of the fleet, and how it ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Static

from cloud_server.cli import main
from cloud_server.page.terminal import Top
from protos.errors import BridgeError, OfflineError, UnauthenticatedError
from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop

NOW_S = time.time()


def row(device: str, **more: Any) -> dict[str, Any]:
    scene = {"id": "ab", "accepted_at": NOW_S - 2, "risk": 0.031, "point": "uniform"}
    status = {"spool_frames": 4, "watts": 7.25, "celsius": 71, "throttled": True}
    return {
        "tenant": "acme",
        "device": device,
        "enabled": True,
        "attends": True,
        "heard_at": NOW_S,
        "belief": "believed",
        "why": "risk 3%, limit 10%",
        "scene": scene | {"payload_bytes": 33},
        "status": status,
    } | more


def fleet(*rows: dict[str, Any], whole: bool = True) -> tuple[str, dict[str, Any]]:
    return "fleet", {"now": NOW_S, "silent_s": 60.0, "whole": whole, "rows": list(rows)}


class Feed:
    """Feeds of which the first ends with an error, or never."""

    def __init__(self, *events: Any, error: BridgeError | None = None) -> None:
        self._events, self._error, self.opened = events, error, 0
        self.over = threading.Event()

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self.opened += 1
        yield from self._events
        if self._error is not None:
            raise self._error
        self.over.wait(60)


def shown(app: Top) -> list[list[str]]:
    table = app.query_one(DataTable)
    return [[str(cell) for cell in table.get_row_at(at)] for at in range(table.row_count)]


async def until(pilot: Any, holds: Any) -> None:
    async def look() -> None:
        while not holds():
            await pilot.pause(0.01)

    await asyncio.wait_for(look(), 60)


@on_loop
async def test_the_devices_that_need_a_look_come_first_and_changes_are_taken_in() -> None:
    silent = row("gate-9", attends=False, heard_at=NOW_S - 3600)
    feed = Feed(
        fleet(row("gate-3"), silent, row("gate-4", scene=None, status=None, belief="none")),
        ("beat", {}),
        fleet(row("gate-3", belief="doubted", why="risk 40%, limit 10%"), whole=False),
    )
    app = Top(feed)
    async with app.run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: len(shown(app)) == 3 and shown(app)[1][3] == "doubted")
        first, second, third = shown(app)
        assert first[:2] == ["gate-9", "silent"]
        assert second[:2] == ["gate-3", "alive"] and second[3:] == [
            "doubted", "3.1%", "4 frames", "7.2 W", "71 °C throttled",
        ]  # fmt: skip
        assert third[0] == "gate-4" and third[2:] == ["never", "none", "–", "–", "–", "–"]
        assert "1 silent" in str(app.query_one("#summary", Static).render())
        await pilot.press("down")
        await pilot.pause()
        assert "risk 40%" in str(app.query_one("#why", Static).render())
        await pilot.press("slash", *"gate-4", "enter")
        await until(pilot, lambda: len(shown(app)) == 1)
        await pilot.press("escape")
        await until(pilot, lambda: len(shown(app)) == 3)
        feed.over.set()
        await pilot.press("q")
    assert app.return_value is None


@on_loop
async def test_a_service_that_goes_away_is_said_and_a_key_that_ends_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud_server.page.terminal._AGAIN_S", 0.0)
    gone = Feed(fleet(row("gate-3")), error=OfflineError("cannot be reached"))
    app = Top(gone)
    async with app.run_test() as pilot:
        await until(
            pilot,
            lambda: "DOES NOT ANSWER" in str(app.query_one("#summary", Static).render()),
        )
        assert shown(app)[0][0] == "gate-3", "what was known stays"
        await until(pilot, lambda: gone.opened > 1)
        await pilot.press("q")
    ended = Top(Feed(fleet(), error=UnauthenticatedError("the key was taken away")))
    async with ended.run_test() as pilot:
        await until(pilot, lambda: ended.return_value is not None)
    assert isinstance(ended.return_value, UnauthenticatedError)


@on_loop
async def test_the_command_prints_the_fleet_once_and_needs_a_terminal_else(
    paths: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with secured(paths, tmp_path / "svc") as it:
        it.premises.code()
        key = tmp_path / "key"
        key.write_text(it.premises.key("acme", "anna"))
        await it.settled()
        url = f"https://127.0.0.1:{it.ports['api_port']}"
        flags = ["--url", url, "--key-file", str(key), "--directory", str(tmp_path / "svc")]
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["top", *flags, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [one["device"] for one in found["rows"]] == ["gate-3"]
        assert await asyncio.to_thread(main, ["top", *flags]) != 0
        assert "--json" in capsys.readouterr().err
        key.write_text("nbk_wrong")
        assert await asyncio.to_thread(main, ["top", *flags, "--json"]) != 0
