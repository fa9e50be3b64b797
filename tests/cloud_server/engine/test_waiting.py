"""The order in which an engine takes up what waits."""

from __future__ import annotations

from cloud_server.engine.jobs import Job
from cloud_server.engine.waiting import Waiting


def job(id: int, rank: int = 1, session: str = "", step_rows: int = 0) -> Job:
    session = session or f"s{id}"
    return Job(id, session, id, f"{id:016x}", "what ?", 3, 0, rank=rank, step_rows=step_rows)


def order(*jobs: Job) -> list[int]:
    waiting = Waiting()
    for one in jobs:
        waiting.add(one)
    return [take(waiting) for _ in jobs]


def take(waiting: Waiting, rows: int = 0) -> int:
    (one,) = waiting.take(rows, most=1, free=1)
    return one.id


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
        taken.append(take(waiting))
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
    assert [take(waiting), take(waiting)] == [1, 3] and not len(waiting)


def test_a_step_takes_no_more_jobs_and_no_more_questions_than_there_is_room_for() -> None:
    waiting = Waiting()
    for number in range(6):
        waiting.add(job(number))
    assert [one.id for one in waiting.take(0, most=2, free=5)] == [0, 1]
    assert [one.id for one in waiting.take(0, most=5, free=1)] == [2]
    assert waiting.take(4, most=5, free=0) == [] and len(waiting) == 3


def test_jobs_that_only_fill_a_step_leave_a_full_one_to_the_others() -> None:
    waiting = Waiting()
    for number in range(4):
        waiting.add(job(number, session="greedy", step_rows=3))
    waiting.add(job(10))
    assert [one.id for one in waiting.take(3, most=8, free=8)] == [10]
    assert [one.id for one in waiting.take(1, most=8, free=8)] == [0, 1]
    assert [one.id for one in waiting.take(0, most=8, free=8)] == [2, 3]


def test_jobs_that_only_fill_a_step_are_passed_over_four_times_at_most() -> None:
    waiting = Waiting()
    waiting.add(job(0, session="greedy", step_rows=1))
    for number in range(1, 20):
        waiting.add(job(number, session="greedy", step_rows=1))
        waiting.add(job(100 + number))
    steps = [[one.id for one in waiting.take(2, most=1, free=1)] for _ in range(10)]
    assert steps == [*([n] for n in range(101, 105)), [0], *([n] for n in range(105, 109)), [1]]


def test_a_session_keeps_its_order_when_one_of_its_jobs_is_passed_over() -> None:
    waiting = Waiting()
    waiting.add(job(1, session="a"))
    waiting.add(job(2, session="a", step_rows=1))
    waiting.add(job(3, session="a"))
    waiting.add(job(4, session="b"))
    assert [one.id for one in waiting.take(0, most=8, free=8)] == [4, 1]
    waiting.add(job(5, 0, session="a"))
    assert [one.id for one in waiting.take(1, most=8, free=8)] == [2, 3, 5]
