"""Polite devices beside a greedy one: real turns and a real engine's queue, in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from cloud_server.engine.jobs import Job
from cloud_server.engine.waiting import Waiting
from cloud_server.frontend.admission.turns import NORMAL, Item, Lane, Turns

BATCH = 32
HOP_MS = 0.7
"""Way from the front end to the engine, and back."""
PREFILL_MS, PREFILL_ROW_MS, TOKEN_MS, TOKEN_ROW_MS = 6.0, 2.3, 2.2, 0.12
"""Cost of a step and of each row in it, measured with the reference model on one core."""
PER_MS = 0.098
"""Requests of all polite devices; 0.3 of what the engine can do."""


@dataclass(eq=False)
class Asked(Item):
    """A request and when it was due."""

    due: float = 0.0
    greedy: bool = field(default=False, kw_only=True)


class World:
    """Devices, turns, and an engine that answers each question with one token."""

    def __init__(self, tenants: int, greedy: int, seconds: float, seed: int = 0) -> None:
        self.now, self.seconds = 0.0, seconds
        self.turns: Turns[Asked] = Turns(lambda *_: 1.0, 5.0, lambda: self.now / 1e3)
        self.turns.step, self.turns.batch, self.turns.ahead = BATCH, BATCH, BATCH
        self.waiting, self.running, self.busy = Waiting(), list[Asked](), False
        self.asked: dict[int, Asked] = {}
        self.polite_ms, self.greedy_ended = list[float](), 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        rng, due = Random(seed), 0.0
        while (due := due + rng.expovariate(PER_MS)) < seconds * 1e3:
            device = rng.randrange(8)
            self.due(due, Lane(f"t{device % tenants}", f"d{device}", ""), False)
        for number in range(greedy):
            self.due(0.0, Lane("t0", "greedy", f"s{number % 4}"), True)
        while self._events and self.now < seconds * 1e3:
            self.now, _, act = heapq.heappop(self._events)
            act()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._ids), act))

    def due(self, when: float, lane: Lane, greedy: bool) -> None:
        self.at(when, lambda: self.add(Asked(lane, NORMAL, 100, when, greedy=greedy)))

    def add(self, asked: Asked) -> None:
        self.turns.add(asked)
        self.give()

    def give(self) -> None:
        while (asked := self.turns.next(lambda _: True)) is not None:
            number, rows = next(self._ids), asked.step_rows
            self.asked[number] = asked
            session = "/".join(asked.lane)
            job = Job(number, session, number, "", "what ?", 1, 0, step_rows=rows)
            self.at(self.now + HOP_MS, lambda job=job: self.reach(job))  # type: ignore[misc]

    def reach(self, job: Job) -> None:
        self.waiting.add(job)
        if not self.busy:
            self.step()

    def step(self) -> None:
        room = BATCH - len(self.running)
        group = self.waiting.take(len(self.running), BATCH, room)
        self.running += [self.asked.pop(job.id) for job in group]
        self.busy = bool(self.running)
        if self.busy:
            lasts = TOKEN_MS + TOKEN_ROW_MS * len(self.running)
            lasts += (PREFILL_MS + PREFILL_ROW_MS * len(group)) if group else 0.0
            self.at(self.now + lasts, self.stepped)

    def stepped(self) -> None:
        for asked in self.running:
            self.at(self.now + HOP_MS, lambda asked=asked: self.end(asked))  # type: ignore[misc]
        self.running.clear()
        self.step()

    def end(self, asked: Asked) -> None:
        self.turns.remove(asked)
        if asked.greedy:
            self.greedy_ended += 1
            self.due(self.now + 2 * HOP_MS, asked.lane, True)
        else:
            self.polite_ms.append(self.now + HOP_MS - asked.due)
        self.give()

    @property
    def p95_ms(self) -> float:
        return float(np.quantile(self.polite_ms, 0.95))


@pytest.mark.slow
def test_a_greedy_device_lengthens_its_neighbours_p95_by_less_than_a_fifth() -> None:
    for tenants in (1, 4):
        alone, beside = World(tenants, 0, 60.0), World(tenants, 64, 60.0)
        assert len(beside.polite_ms) > 0.99 * len(alone.polite_ms)
        assert beside.p95_ms < 1.2 * alone.p95_ms


def test_a_greedy_device_still_gets_what_the_others_leave() -> None:
    polite = len(World(1, 0, 20.0).polite_ms)
    assert World(1, 64, 20.0).greedy_ended > 0.7 * polite
