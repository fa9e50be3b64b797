"""Times of captures made before the clock was set: right once the time is known."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from edge_agent.capture_time import corrected
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder
from tests.fakes.fake_run import Run, capture
from tests.fakes.fake_spool import SpoolRun, nowhere, with_server

NOW_S = 1_900_000_000.0


@pytest.mark.parametrize(
    ("captured_at", "age_s", "now_s", "is_at"),
    [
        (100.0, 40.0, NOW_S, NOW_S - 40.0),
        (100.0, 40.0, 140.0, 100.0),  # the time is still unknown
        (100.0, None, NOW_S, 100.0),  # a file's own date
        (100.0, -5.0, NOW_S, NOW_S),  # never in the future
        (NOW_S - 9, 40.0, NOW_S, NOW_S - 9),  # the clock was set then
    ],
)
def test_only_the_times_of_an_unset_clock_are_corrected(
    captured_at: float, age_s: float | None, now_s: float, is_at: float
) -> None:
    assert corrected(captured_at, age_s, now_s) == is_at


def test_a_frame_that_waited_on_the_disk_over_a_restart_gets_its_time(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        before = SpoolRun(tmp_path, served.dial)
        await before.run([capture("first")])  # meets the service
        away = SpoolRun(tmp_path, nowhere)
        old = dataclasses.replace(capture("in-1970"), captured_at=77.0)
        done = lambda: away.agent.summary.captures == 1 and not away.waits  # noqa: E731
        await away.until([old], done)
        after = SpoolRun(tmp_path, served.dial)
        agent = after.make(_Nothing())
        assert agent.outgoing is not None
        agent.outgoing.now = lambda: NOW_S
        await agent.run()
        after.close()
        times = {record["capture"]: record["captured_at"] for record in after.records}
        assert NOW_S - 600 < times["in-1970"] <= NOW_S

    with_server(test, FakeBridge(make_encoder()))


def test_a_camera_s_picture_in_memory_gets_its_time(tmp_path: Path) -> None:
    old = dataclasses.replace(
        capture("in-1970"), captured_at=77.0, captured_monotonic_s=time.monotonic() - 50
    )
    run = Run([old], tmp_path, now=lambda: NOW_S, questions=("x",))
    run()
    (record,) = run.records
    assert NOW_S - 650 < record.captured_at <= NOW_S - 50


class _Nothing:
    """A source that gives nothing."""

    def __iter__(self) -> _Nothing:
        return self

    def __next__(self) -> None:
        raise StopIteration

    def __len__(self) -> int:
        return 0
