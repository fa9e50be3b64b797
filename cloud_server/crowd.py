"""Eviction order of a full store: the least recently used name of the largest owner goes first.

Owners are nested, such as (tenant, device): the largest device of the largest tenant loses a name.
So an owner that floods a store evicts its own names. Among owners of equal size, the least recently
used one loses.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
_NONE: Any = {}  # never written to, like the next two
_NOTHING: Any = []
_NO_NAMES: Any = OrderedDict()
Path = tuple[str, ...]
"""Path of an owner, outermost first; all paths in a store have the same length."""


class _Owner(Generic[Key]):
    """A tenant, a device, a session.

    Attributes:
        cost: cost of all its names together.
        used: last use of any of them (a count).
        owners: the owners within it, by name.
        names: cost by name, least recently used first; only in an innermost owner.
        order: heap of `(-cost, used, name)` of the owners within. An entry is out of date if the
        owner has shrunk or was used since. An owner that has grown has a newer entry.
    """

    __slots__ = ("cost", "names", "order", "owners", "used")

    def __init__(self, innermost: bool) -> None:
        self.cost = self.used = 0
        self.owners: dict[str, _Owner[Key]] = _NONE if innermost else {}
        self.names: OrderedDict[Key, int] = OrderedDict() if innermost else _NO_NAMES
        self.order: list[tuple[int, int, str]] = _NOTHING if innermost else []

    def largest(self) -> _Owner[Key]:
        """The largest owner within; among equals, the least recently used."""
        while True:
            cost, used, name = self.order[0]
            owner = self.owners.get(name)
            if owner is None:
                heapq.heappop(self.order)
            elif (cost, used) != (-owner.cost, owner.used):
                heapq.heapreplace(self.order, (-owner.cost, owner.used, name))
            else:
                return owner

    def grown(self, name: str) -> None:
        """Note that an owner within has grown."""
        if len(self.order) > 2 * len(self.owners):
            self.order = [(-o.cost, o.used, key) for key, o in self.owners.items()]
            heapq.heapify(self.order)
        else:
            owner = self.owners[name]
            heapq.heappush(self.order, (-owner.cost, owner.used, name))


class Crowd(Generic[Key]):
    """Names of nested owners in order of last use. Calls take logarithmic time."""

    def __init__(self) -> None:
        self._all: _Owner[Key] = _Owner(innermost=False)
        self._path_of: dict[Key, Path] = {}
        self._uses = itertools.count(1)

    def __len__(self) -> int:
        return len(self._path_of)

    def __contains__(self, key: object) -> bool:
        return key in self._path_of

    @property
    def cost(self) -> int:
        """Cost of all names together."""
        return self._all.cost

    def add(self, path: Path, key: Key, cost: int = 1) -> None:
        """Add a name to an owner."""
        self._path_of[key] = path
        owner, way = self._all, [self._all]
        for depth, name in enumerate(path, start=1):
            inner = owner.owners.get(name)
            if inner is None:
                inner = owner.owners[name] = _Owner(innermost=depth == len(path))
            owner = inner
            way.append(owner)
        owner.names[key] = cost
        use = next(self._uses)
        for owner in way:
            owner.cost += cost
            owner.used = use
        for outer, name in zip(way, path, strict=False):
            outer.grown(name)

    def touch(self, key: Key) -> None:
        """Note that a name was used."""
        owner, use = self._all, next(self._uses)
        for name in self._path_of[key]:
            owner = owner.owners[name]
            owner.used = use
        owner.names.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Remove a name."""
        path = self._path_of.pop(key)
        owner, way = self._all, [self._all]
        for name in path:
            owner = owner.owners[name]
            way.append(owner)
        cost = owner.names.pop(key)
        for owner in way:
            owner.cost -= cost
        for outer, name in reversed(list(zip(way, path, strict=False))):
            inner = outer.owners[name]
            if not inner.owners and not inner.names:
                del outer.owners[name]

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

    def _find(self, path: Path) -> _Owner[Key] | None:
        owner: _Owner[Key] | None = self._all
        for name in path:
            owner = owner.owners.get(name) if owner is not None else None
        return owner
