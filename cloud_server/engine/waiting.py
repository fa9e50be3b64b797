"""The jobs that wait for a step: alarms go first, and nobody waits for ever.

A job with `step_rows` only fills a step up, after the others. Of five steps one takes such a job
even if the step is full for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cloud_server.engine.jobs import Job

_OLDEST_EVERY = 4
"""Of so many jobs taken, one is that which has waited longest."""
_PASSED_OVER = 4
"""Steps in a row that may take none of the jobs that only fill a step up."""
_ALARM = 0


class Waiting:
    """Jobs in the order in which they came, taken by rank.

    A session's jobs keep their order: a delta frame never overtakes its base.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._taken = self._passed = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """A job has come."""
        self._jobs.append(job)

    def take(self, rows: int, most: int, free: int) -> list[Job]:
        """Take the jobs that join a step.

        Args:
            rows: rows that the step has already.
            most: most jobs to take.
            free: most jobs with a question to take.
        """
        taken: list[Job] = []
        fillers: Sequence[Job] = ()
        filled = False
        while self._jobs and len(taken) < most:
            others, fillers = self._by_session()
            overdue = bool(fillers) and not filled and self._passed >= _PASSED_OVER
            if others and not overdue:
                job: Job | None = self._first(others)
            else:
                job = self._filler(fillers, rows + len(taken), overdue)
            if job is None or (job.question and not free):
                break
            filled = filled or job in fillers
            free -= bool(job.question)
            self._taken += 1
            self._remove(job)
            taken.append(job)
        self._passed = self._passed + 1 if fillers and not filled else 0
        return taken

    def drop(self, id: int) -> bool:
        """Drop a job by its id; returns whether it was here."""
        for job in self._jobs:
            if job.id == id:
                self._remove(job)
                return True
        return False

    def _by_session(self) -> tuple[Sequence[Job], Sequence[Job]]:
        """The jobs, and those of sessions that only fill a step up (unless an alarm is there)."""
        fill = {job.session for job in self._jobs if job.step_rows}
        if not fill:
            return self._jobs, ()
        fill -= {job.session for job in self._jobs if job.rank == _ALARM}
        others = [job for job in self._jobs if job.session not in fill]
        return others, [job for job in self._jobs if job.session in fill]

    def _first(self, jobs: Sequence[Job]) -> Job:
        best = min(job.rank for job in jobs)
        if jobs[0].rank == best or self._taken % _OLDEST_EVERY == _OLDEST_EVERY - 1:
            return jobs[0]
        session = next(job.session for job in jobs if job.rank == best)
        return next(job for job in jobs if job.session == session)

    def _filler(self, jobs: Sequence[Job], rows: int, overdue: bool) -> Job | None:
        """The first job that may join a step of so many rows, each session in order."""
        asked = set[str]()
        for job in jobs:
            if job.session not in asked and (overdue or not 0 < job.step_rows <= rows):
                return job
            asked.add(job.session)
        return None

    def _remove(self, job: Job) -> None:
        if self._jobs[0] is job:
            self._jobs.popleft()
        else:
            self._jobs.remove(job)
