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
        path: its path; only in an innermost owner.
        order: heap of `(-cost, used, name)` of the owners within. An entry is out of date if the
        owner has shrunk or was used since. An owner that has grown has a newer entry.
    """

    __slots__ = ("cost", "names", "order", "owners", "path", "used")

    def __init__(self, path: Path, innermost: bool) -> None:
        self.path = path
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


_Way: TypeAlias = tuple[_Owner[Key], ...]


class Crowd(Generic[Key]):
    """Names of nested owners in order of last use. Calls take logarithmic time."""

    def __init__(self) -> None:
        self._all: _Owner[Key] = _Owner((), innermost=False)
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

    def add(self, path: Path, key: Key, cost: int = 1) -> None:
        """Add a name to an owner."""
        way = self._way_of[key] = self._ways.get(path) or self._open(path)
        way[-1].names[key] = cost
        use = next(self._uses)
        for owner in way:
            owner.cost += cost
            owner.used = use
        for outer, name in zip(way, path, strict=False):
            outer.grown(name)

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
                owners[name] = _Owner(path if innermost else (), innermost)
            way.append(owners[name])
        made = self._ways[path] = tuple(way)
        return made

    def _find(self, path: Path) -> _Owner[Key] | None:
        owner: _Owner[Key] | None = self._all
        for name in path:
            owner = owner.owners.get(name) if owner is not None else None
        return owner
