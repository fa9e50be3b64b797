"""The order in which an engine takes up what waits."""

from __future__ import annotations

from cloud_server.engine.jobs import Job
from cloud_server.engine.waiting import Waiting


def job(id: int, rank: int = 1, session: str = "") -> Job:
    return Job(id, session or f"s{id}", id, f"{id:016x}", "what ?", 3, 0, rank=rank)


def order(*jobs: Job) -> list[int]:
    waiting = Waiting()
    for one in jobs:
        waiting.add(one)
    return [waiting.take().id for _ in jobs]


def test_alarms_go_before_what_came_earlier_and_the_background_goes_last() -> None:
    assert order(job(1, 2), job(2), job(3), job(4, 0))[:2] == [4, 2]
    assert order(*map(job, range(9))) == list(range(9))


def test_whoever_waited_longest_has_a_turn_however_many_alarms_come() -> None:
    waiting = Waiting()
    for number in range(3):
        waiting.add(job(number, rank=2))
    taken = []
    for number in range(100, 124):
        waiting.add(job(number, rank=0))
        waiting.add(job(number + 100, rank=0))
        taken.append(waiting.take().id)
    assert {0, 1, 2} < set(taken[:12])
    assert sum(id >= 100 for id in taken[:12]) == 9


def test_an_alarm_takes_what_its_session_sent_before_along() -> None:
    """A delta frame needs its base, which may be of another class."""
    waits = [job(1, 1, "a"), job(2, 1, "b"), job(3, 1, "a"), job(4, 0, "b")]
    assert order(*waits) == [2, 4, 1, 3]


def test_a_job_that_was_dropped_is_not_taken_and_counts_no_more() -> None:
    waiting = Waiting()
    for one in (job(1), job(2, 0), job(3)):
        waiting.add(one)
    assert waiting.drop(2) and not waiting.drop(2) and not waiting.drop(9)
    assert [waiting.take().id, waiting.take().id] == [1, 3] and not len(waiting)
