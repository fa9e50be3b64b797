"""The jobs that wait for a step: alarms go first, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter, deque

from cloud_server.engine.jobs import Job

_OLDEST_EVERY = 4
"""Of so many jobs taken, one is that which has waited longest."""


class Waiting:
    """Jobs in the order in which they came, taken by rank.

    A session's jobs keep their order: a delta frame never overtakes its base.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._ranks: Counter[int] = Counter()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """A job has come."""
        self._jobs.append(job)
        self._ranks[job.rank] += 1

    @property
    def next(self) -> Job:
        """The job that `take` gives; there is one."""
        best = min(rank for rank, count in self._ranks.items() if count)
        if self._jobs[0].rank == best or self._taken % _OLDEST_EVERY == _OLDEST_EVERY - 1:
            return self._jobs[0]
        session = next(job.session for job in self._jobs if job.rank == best)
        return next(job for job in self._jobs if job.session == session)

    def take(self) -> Job:
        """Take the next job."""
        job = self.next
        self._taken += 1
        self._remove(job)
        return job

    def drop(self, id: int) -> bool:
        """Drop a job by its id; returns whether it was here."""
        for job in self._jobs:
            if job.id == id:
                self._remove(job)
                return True
        return False

    def _remove(self, job: Job) -> None:
        if self._jobs[0] is job:
            self._jobs.popleft()
        else:
            self._jobs.remove(job)
        self._ranks[job.rank] -= 1
