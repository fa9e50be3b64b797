"""Eviction order of a full store: the least recently used name of the largest owner goes first.

Owners are nested, such as (tenant, device): the largest device of the largest tenant loses a name.
So an owner that floods a store evicts its own names. Among owners of equal size, the least recently
used one loses.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Any, Generic, TypeAlias, TypeVar

Key = TypeVar("Key")
_NONE: Any = {}  # never written to, like the next three
_NOTHING: Any = []
_NO_NAMES: Any = OrderedDict()
_NOBODY: Any = set()
Path = tuple[str, ...]
"""Path of an owner, outermost first; all paths in a store have the same length."""


class _Owner(Generic[Key]):
    """A tenant, a device, a session.

    Attributes:
        cost: cost of all its names together.
        used: last use of any of them (a count).
        owners: the owners within it, by name.
        names: cost by name, least recently used first; only in an innermost owner.
        path: its path; only in an innermost owner.
        order: heap of `(-cost, used, name)` of the owners within. An entry is out of date if the
        owner has shrunk or was used since.
        name: its own.
        grown: names of owners within that have grown since `order` was last looked at.
        outer_grown: the same of the owner around it.
    """

    __slots__ = ("cost", "grown", "name", "names", "order", "outer_grown", "owners", "path", "used")

    def __init__(self, path: Path, innermost: bool, name: str, outer_grown: set[str]) -> None:
        self.path, self.name, self.outer_grown = path, name, outer_grown
        self.cost = self.used = 0
        self.owners: dict[str, _Owner[Key]] = _NONE if innermost else {}
        self.names: OrderedDict[Key, int] = OrderedDict() if innermost else _NO_NAMES
        self.order: list[tuple[int, int, str]] = _NOTHING if innermost else []
        self.grown: set[str] = _NOBODY if innermost else set()

    def largest(self) -> _Owner[Key]:
        """The largest owner within; among equals, the least recently used."""
        if len(self.order) + len(self.grown) > 2 * len(self.owners):
            self.order = [(-o.cost, o.used, name) for name, o in self.owners.items()]
            heapq.heapify(self.order)
        else:
            for name in self.grown:
                owner = self.owners[name]
                heapq.heappush(self.order, (-owner.cost, owner.used, name))
        self.grown.clear()
        while True:
            cost, used, name = self.order[0]
            found = self.owners.get(name)
            if found is None:
                heapq.heappop(self.order)
            elif (cost, used) != (-found.cost, found.used):
                heapq.heapreplace(self.order, (-found.cost, found.used, name))
            else:
                return found


_Way: TypeAlias = tuple[_Owner[Key], ...]


class Crowd(Generic[Key]):
    """Names of nested owners in order of last use. Calls take logarithmic time."""

    def __init__(self) -> None:
        self._all: _Owner[Key] = _Owner((), False, "", set())
        self._way_of: dict[Key, _Way[Key]] = {}
        self._ways: dict[Path, _Way[Key]] = {}
        self._uses = itertools.count(1)

    def __len__(self) -> int:
        return len(self._way_of)

    def __contains__(self, key: object) -> bool:
        return key in self._way_of

    @property
    def cost(self) -> int:
        """Cost of all names together."""
        return self._all.cost

    def add(self, path: Path, key: Key, cost: int = 1) -> int:
        """Add a name to an owner; returns the cost of all its names now."""
        way = self._way_of[key] = self._ways.get(path) or self._open(path)
        way[-1].names[key] = cost
        use = next(self._uses)
        for owner in way:
            owner.cost += cost
            owner.used = use
            owner.outer_grown.add(owner.name)
        return way[-1].cost

    def touch(self, key: Key) -> None:
        """Note that a name was used."""
        way, use = self._way_of[key], next(self._uses)
        for owner in way:
            owner.used = use
        way[-1].names.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Remove a name."""
        way = self._way_of.pop(key)
        cost = way[-1].names.pop(key)
        for owner in way:
            owner.cost -= cost
        if way[-1].names:
            return
        path = way[-1].path
        del self._ways[path]
        for outer, name in reversed(list(zip(way, path, strict=False))):
            inner = outer.owners[name]
            if not inner.owners and not inner.names:
                del outer.owners[name]
                outer.grown.discard(name)

    def of(self, *path: str) -> list[Key]:
        """The names of an innermost owner, least recently used first."""
        owner = self._find(path)
        return list(owner.names) if owner is not None else []

    def size(self, *path: str) -> int:
        """The cost of an owner's names."""
        owner = self._find(path)
        return owner.cost if owner is not None else 0

    def oldest(self, *path: str) -> Key:
        """The least recently used name of an innermost owner.

        Raises:
            KeyError: it has none.
        """
        owner = self._find(path)
        if owner is None or not owner.names:
            raise KeyError(path)
        return next(iter(owner.names))

    def next_to_go(self, *path: str) -> Key:
        """The least recently used name of the largest owner, in the store or within one owner.

        Raises:
            KeyError: there is none.
        """
        owner = self._find(path)
        if owner is None or not (owner.owners or owner.names):
            raise KeyError(path)
        while owner.owners:
            owner = owner.largest()
        return next(iter(owner.names))

    def _open(self, path: Path) -> _Way[Key]:
        """The owners from all to an innermost one, made where they are missing."""
        way = [self._all]
        for depth, name in enumerate(path, start=1):
            owners, innermost = way[-1].owners, depth == len(path)
            if name not in owners:
                inner: _Owner[Key] = _Owner(
                    path if innermost else (), innermost, name, way[-1].grown
                )
                owners[name] = inner
            way.append(owners[name])
        made = self._ways[path] = tuple(way)
        return made

    def _find(self, path: Path) -> _Owner[Key] | None:
        owner: _Owner[Key] | None = self._all
        for name in path:
            owner = owner.owners.get(name) if owner is not None else None
        return owner
