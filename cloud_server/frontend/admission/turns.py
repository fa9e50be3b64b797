"""Fair turns: between tenants, between the devices of a tenant, between the sessions of a device.

    all ── tenant ── device ── session ── queue of alarms, of normal requests, of the background

Start-time fair queueing (Goyal, Vin, Cheng 1996) at each level: the one that got least, by weight,
is next. Alarms go first while their sender is at most a few requests ahead of its fair share; then
they wait for their turn. Background requests get one turn in 16 while others wait.

While others were active lately, nobody has more requests in the engine than its share of the batch.
And requests of a greedy device, which has much more under way than its neighbours, only fill a step
up: they join while it has fewer rows than the shares of all who wait. So its neighbours' steps stay
short.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from protos.calls import PRIORITIES

ALARM, NORMAL, BACKGROUND = range(3)
"""Classes in the order in which they are served."""
RANKS = tuple(("alarm", "normal", "background").index(name) for name in PRIORITIES)
"""The class of each priority on the wire (`PRIORITIES`)."""
_ALARMS_AHEAD = 4.0
"""How many requests an alarm's sender may be ahead of its fair share."""
_ALARMS_MORE = 2
"""Alarms that the engine gets beyond their sender's share of the batch."""
_BACKGROUND_TURNS = 16
_RANKS, _BACKGROUND_FIRST = (ALARM, NORMAL, BACKGROUND), (BACKGROUND, ALARM, NORMAL)
_GREEDY = 4.0
"""Greedy is who has more under way than so many times one more than its neighbours on average."""


class Lane(NamedTuple):
    """Tenant, device and session whose turn and place a request takes.

    Attributes:
        session: its id, hex.
    """

    tenant: str
    device: str
    session: str


@dataclass(eq=False)
class Item:
    """An item that waits for its turn.

    Attributes:
        rank: its class.
        bytes: its memory.
        charged: whether its turn was counted already, when it was first sent to the engine.
        step_rows: it joins a step only while it has fewer rows than this; 0 for any step.
        way: the nodes from the root to its session, while it waits or is in the engine.
    """

    lane: Lane
    rank: int
    bytes: int
    way: tuple[_Node[Any], ...] = field(default=(), init=False, repr=False)
    charged: bool = field(default=False, init=False)
    step_rows: int = field(default=0, init=False)


Given = TypeVar("Given", bound=Item)


class _Node(Generic[Given]):
    """A node of the tree: the root, a tenant, a device or a session.

    Attributes:
        start: how much it got, by weight (virtual time).
        clock: the virtual time of its child nodes.
        waiting: requests that wait, by class; `waits` in all.
        places: requests that wait or are in the engine.
        given: requests in the engine.
        recent: child nodes that were active lately, and until when each counts as active.
        active, eager: total weight of the nodes in `recent`, and of the child nodes that wait.
        order: heaps of `(start, count, node)` of child nodes that wait, by class. An entry is out
        of date if `start` has grown since or nothing waits any more.
        queues: a session's queues, by class.
    """

    __slots__ = (
        "active",
        "bytes",
        "clock",
        "eager",
        "given",
        "listed",
        "name",
        "nodes",
        "order",
        "outer",
        "places",
        "queues",
        "recent",
        "start",
        "turns",
        "waiting",
        "waits",
        "weight",
    )

    def __init__(self, outer: _Node[Given] | None, name: str) -> None:
        self.outer, self.name, self.weight = outer, name, 1.0
        self.start = self.clock = self.active = self.eager = 0.0
        self.waiting, self.listed = [0, 0, 0], [False, False, False]
        self.waits = self.places = self.bytes = self.given = self.turns = 0
        self.nodes: dict[str, _Node[Given]] = {}
        self.recent: OrderedDict[_Node[Given], float] = OrderedDict()
        self.order: tuple[list[tuple[float, int, _Node[Given]]], ...] = ([], [], [])
        self.queues: tuple[OrderedDict[Given, None], ...] = ()

    def lists(self, rank: int) -> bool:
        """Whether it belongs into its parent's heap of a class; alarms count as normal ones too."""
        if rank == NORMAL:
            return self.waiting[ALARM] + self.waiting[NORMAL] > 0
        return self.waiting[rank] > 0


class Turns(Generic[Given]):
    """Requests that wait, and how many requests of each caller are in the engine.

    Args:
        weight_of: the weight of a tenant (device None) or of a device.
        window_s: how long a caller counts as active after a request; 0 turns shares off, so that
        whoever waits gets all that is free.
        clock: seconds.

    Attributes:
        batch: requests that the engines work on together.
        ahead: further requests that they may get in advance.
        step: requests that one engine works on together.
    """

    def __init__(
        self,
        weight_of: Callable[[str, str | None], float],
        window_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._weight_of, self.batch, self.ahead, self.step = weight_of, 1, 0, 1
        self._window_s, self._clock = window_s, clock
        self._all: _Node[Given] = _Node(None, "")
        self._counts = itertools.count()

    @property
    def places(self) -> int:
        """Requests that wait or are in the engine."""
        return self._all.places

    @property
    def bytes(self) -> int:
        """Memory of all requests."""
        return self._all.bytes

    @property
    def given(self) -> int:
        """Requests in the engine."""
        return self._all.given

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._all.waits

    def taken(self, lane: Lane) -> tuple[int, int, int]:
        """Places of a tenant, of its device and of its session."""
        tenant = self._all.nodes.get(lane.tenant)
        device = None if tenant is None else tenant.nodes.get(lane.device)
        session = None if device is None else device.nodes.get(lane.session)
        return (
            0 if tenant is None else tenant.places,
            0 if device is None else device.places,
            0 if session is None else session.places,
        )

    # ------------------------------------------------------------------ in and out

    def add(self, item: Given, first: bool = False) -> None:
        """Put a request into its session's queue.

        Args:
            item: the request.
            first: whether it was in the queue before; then it goes before the session's others. If
            the session has no others, the session goes behind those that stayed.
        """
        now, node, rank = self._clock(), self._all, item.rank
        way = [node]
        for depth, name in enumerate(item.lane):
            inner = node.nodes.get(name)
            if inner is None:
                inner = node.nodes[name] = _Node(node, name)
                if depth == 2:
                    inner.queues = (OrderedDict(), OrderedDict(), OrderedDict())
            if not inner.places:
                self._weigh(inner, item.lane, depth)
            self._seen(inner, now)
            way.append(inner)
            node = inner
        item.way = tuple(way)
        queue = node.queues[rank]
        queue[item] = None
        if first:
            queue.move_to_end(item, last=False)
        for node in way:
            outer = node.outer
            if outer is not None and not node.waits:
                late = 1.0 / node.weight if first else 0.0
                node.start = max(node.start, outer.clock + late)
                outer.eager += node.weight
            node.waiting[rank] += 1
            node.waits += 1
            node.places += 1
            node.bytes += item.bytes
            if outer is not None and (rank == ALARM or not node.listed[rank]):
                self._list(outer, node, rank)

    def remove(self, item: Given) -> None:
        """Remove a request from the queue, or from those in the engine."""
        way, item.way = item.way, ()
        waited = way[-1].queues[item.rank].pop(item, False) is None
        for node in way:
            node.places -= 1
            node.bytes -= item.bytes
            if waited:
                self._waits_no_more(node, item.rank)
            else:
                node.given -= 1

    def back(self, item: Given) -> None:
        """Count a request as in the engine although it did not wait."""
        now = self._clock()
        self.add(item)
        del item.way[-1].queues[item.rank][item]
        for node in item.way:
            self._waits_no_more(node, item.rank)
            node.given += 1
            self._seen(node, now)

    # ------------------------------------------------------------------ turns

    def next(self, may_go: Callable[[Given], bool]) -> Given | None:
        """The request whose turn it is; from now on it counts as in the engine.

        Args:
            may_go: whether the engine can take a request now.
        """
        everyone = self._all
        if not everyone.waits or everyone.given >= self.batch + self.ahead:
            return None
        now = self._clock()
        item = self._pick(everyone, self.batch, 0.0, may_go, now)
        if item is None:  # everyone who waits has its share of the batch
            item = self._pick(everyone, self.batch, self.ahead, may_go, now)
        if item is None:
            return None
        item.step_rows = self._step_rows(item)
        for node in item.way:
            outer = node.outer
            if outer is not None and not item.charged:
                node.start = max(node.start, outer.clock)
                if item.rank != ALARM or len(outer.nodes) == 1:
                    outer.clock = node.start
                node.start += 1.0 / node.weight
            node.turns += 1
            self._waits_no_more(node, item.rank)
            node.given += 1
        del node.queues[item.rank][item]
        item.charged = True
        return item

    def ahead_of(self, lane: Lane, rank: int) -> float:
        """Estimated number of requests that go before a new one of this class."""
        nodes = list(self._path(lane))
        need = 1.0
        if len(nodes) == 4:
            need += sum(nodes[3].waiting[: rank + 1])
        for depth in (2, 1, 0):
            if depth >= len(nodes):
                continue
            outer = nodes[depth]
            inner = nodes[depth + 1] if depth + 1 < len(nodes) else None
            weight = inner.weight if inner is not None else 1.0
            eager = outer.eager + (0.0 if inner is not None and inner.waits else weight)
            need = min(need * eager / weight, sum(outer.waiting[: rank + 1]) + 1.0)
        return need - 1.0

    def gives_way(self, item: Given, most_places: int, most_bytes: int) -> Given | None:
        """The request that a new one replaces; None if the new one must be refused.

        The caller that holds most, by weight, loses its newest request of the lowest class, if it
        holds more than the new one's caller would. Within a session, a higher class replaces a
        lower one.
        """

        def fill(node: _Node[Given], places: int = 0, size: int = 0) -> float:
            share = max((node.places + places) / most_places, (node.bytes + size) / most_bytes)
            return share / node.weight

        node = self._all
        for name in item.lane:
            most = max((n for n in node.nodes.values() if n.waits), key=fill, default=None)
            mine = node.nodes.get(name)
            own = fill(mine if mine is not None else _Node(node, ""), 1, item.bytes)
            if most is not None and most is not mine and fill(most) > own:
                while most.nodes:
                    most = max((n for n in most.nodes.values() if n.waits), key=fill)
                return self._newest(most, ALARM)
            if mine is None:
                return None
            node = mine
        return self._newest(node, item.rank + 1)

    def _newest(self, session: _Node[Given], least: int) -> Given | None:
        for queue in reversed(session.queues[least:]):
            if queue:
                return next(reversed(queue))
        return None

    def _pick(
        self,
        outer: _Node[Given],
        batch: float,
        ahead: float,
        may_go: Callable[[Given], bool],
        now: float,
    ) -> Given | None:
        """The next request within a node whose share of the engine's places is not used up."""
        turn = outer.turns % _BACKGROUND_TURNS
        ranks = _RANKS if turn < _BACKGROUND_TURNS - 1 else _BACKGROUND_FIRST
        if outer.queues:
            for rank in ranks:
                for item in outer.queues[rank]:
                    if may_go(item):
                        return item
            return None
        self._expire(outer, now)
        for rank in ranks:
            if rank == NORMAL or outer.waiting[rank]:
                found = self._pick_of(outer, rank, batch, ahead, may_go, now)
                if found is not None:
                    return found
        return None

    def _pick_of(
        self,
        outer: _Node[Given],
        rank: int,
        batch: float,
        ahead: float,
        may_go: Callable[[Given], bool],
        now: float,
    ) -> Given | None:
        heap = outer.order[rank]
        aside: list[tuple[float, int, _Node[Given]]] = []
        found = None
        while heap and found is None:
            start, count, node = heap[0]
            if not node.lists(rank):
                heapq.heappop(heap)
                node.listed[rank] = False
            elif start != node.start:
                heapq.heapreplace(heap, (node.start, count, node))
            else:
                early = (node.start - outer.clock) * node.weight
                if rank != ALARM or early < _ALARMS_AHEAD:
                    most = self._share(outer, node, batch, ahead)
                    more = _ALARMS_MORE if node.waiting[ALARM] and early < _ALARMS_AHEAD else 0
                    if node.given < max(1, int(sum(most) + 1e-9)) + more:
                        found = self._pick(node, *most, may_go, now)
                if found is None:
                    aside.append(heapq.heappop(heap))
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def _share(
        self, outer: _Node[Given], node: _Node[Given], batch: float, ahead: float
    ) -> tuple[float, float]:
        """A node's share of the batch, and of the requests sent in advance.

        The share of the latter counts only nodes that wait: requests of one that waits alone would
        block the others.
        """
        others = outer.active - node.weight
        if others <= 1e-9 or not self._window_s:
            return batch, ahead
        share = node.weight / outer.active
        eager = outer.eager - (node.weight if node.waits else 0.0)
        return batch * share, ahead * share * min(1.0, eager / others)

    def _step_rows(self, item: Given) -> int:
        """The rows up to which an item may fill a step; 0 for any number.

        Bounded are items of a tenant or device that has much more under way than its neighbours:
        they fill a step up to the shares of all who wait, together.
        """
        if item.rank == ALARM or not self._window_s:
            return 0
        share = 1.0
        for node in item.way[1:3]:
            outer = node.outer
            if outer is None or node.waits < 2 or outer.active - node.weight <= 1e-9:
                continue
            others = (outer.places - node.places) / (outer.active - node.weight)
            if node.places / node.weight > _GREEDY * (others + 1.0):
                share *= min(1.0, outer.eager / outer.active)
        return max(1, int(self.step * share + 1e-9)) if share < 1.0 - 1e-9 else 0

    # ------------------------------------------------------------------ nodes

    def _path(self, lane: Lane) -> Iterator[_Node[Given]]:
        """The existing nodes from the root to the session."""
        node: _Node[Given] | None = self._all
        yield self._all
        for name in lane:
            node = node.nodes.get(name) if node is not None else None
            if node is None:
                return
            yield node

    def _weigh(self, node: _Node[Given], lane: Lane, depth: int) -> None:
        """Update a node's weight, which may have changed."""
        weight = 1.0
        if depth < 2:
            weight = max(1e-3, self._weight_of(lane.tenant, lane.device if depth else None))
        if weight != node.weight and node.outer is not None:
            if node in node.outer.recent:
                node.outer.active += weight - node.weight
            node.weight = weight

    def _list(self, outer: _Node[Given], node: _Node[Given], rank: int) -> None:
        """Put a node into its parent's heap of a class; alarms go into that of normal ones too."""
        for one in (ALARM, NORMAL) if rank == ALARM else (rank,):
            if not node.listed[one]:
                node.listed[one] = True
                heap = outer.order[one]
                heapq.heappush(heap, (node.start, next(self._counts), node))
                if len(heap) > 2 * len(outer.nodes) + 16:  # most are of nodes that are gone
                    for _, _, listed in heap:
                        listed.listed[one] = listed.lists(one)
                    heap[:] = [entry for entry in heap if entry[2].listed[one]]
                    heapq.heapify(heap)

    def _waits_no_more(self, node: _Node[Given], rank: int) -> None:
        node.waiting[rank] -= 1
        node.waits -= 1
        outer = node.outer
        if outer is not None and not node.waits:
            outer.eager = outer.eager - node.weight if outer.waits else 0.0

    def _seen(self, node: _Node[Given], now: float) -> None:
        outer = node.outer
        if outer is None:
            return
        if node not in outer.recent:
            outer.active += node.weight
        outer.recent[node] = now + self._window_s
        outer.recent.move_to_end(node)

    def _expire(self, outer: _Node[Given], now: float) -> None:
        """Forget child nodes that have no requests and were not active lately."""
        for _ in range(len(outer.recent)):
            node = next(iter(outer.recent))
            if outer.recent[node] > now:
                break
            if node.places:
                outer.recent[node] = now + self._window_s
                outer.recent.move_to_end(node)
                continue
            del outer.recent[node], outer.nodes[node.name]
            outer.active = outer.active - node.weight if outer.recent else 0.0
