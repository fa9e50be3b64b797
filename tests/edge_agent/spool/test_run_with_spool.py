"""An agent with a spool: frames outlive outages, restarts and crashes; each has one record."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder
from tests.fakes.fake_run import capture
from tests.fakes.fake_spool import SpoolRun, nowhere, with_server


def names(records: list[dict[str, Any]]) -> Counter[str]:
    return Counter(record["capture"] for record in records if record["error"] is None)


def test_every_capture_is_answered_once_and_the_spool_is_empty(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial)
        summary = await run.run([capture(name) for name in "abcdef"])
        assert (summary.captures, summary.answered, summary.failed) == (6, 6, 0)
        assert names(run.records) == Counter("abcdef")
        assert run.value("spool_frames") == 0
        assert run.records[0]["answer"] == "about x" and run.records[0]["attempts"] == 1

    with_server(test, FakeBridge(make_encoder()))


def test_frames_made_without_a_network_are_answered_after_a_restart(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run([capture("first")])
        away = SpoolRun(tmp_path, nowhere)
        waiting = lambda: away.value("spool_frames") == 5  # noqa: E731
        summary = await away.until([capture(name) for name in "abcde"], waiting)
        assert (summary.captures, summary.answered) == (5, 0)
        back = SpoolRun(tmp_path, served.dial)
        summary = await back.run([capture("f")])
        assert (summary.captures, summary.answered) == (1, 6)
        assert names(back.records) == Counter(["first", *"abcdef"])
        assert len({record["request_id"] for record in back.records}) == 7
        assert served.negotiations == 1  # the session outlived the agent

    with_server(test, FakeBridge(make_encoder()))
