"""Which name goes when a store is full: the longest unused one of the largest group.

So a caller that floods a store pushes out its own entries. Groups of equal size go by last use. All
methods but `group` take constant time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Group = TypeVar("Group")


class Crowd(Generic[Group, Key]):
    """Names in groups, in the order of their last use."""

    def __init__(self) -> None:
        self._group_of: dict[Key, Group] = {}
        self._members: dict[Group, OrderedDict[Key, None]] = {}
        self._sizes: dict[int, OrderedDict[Group, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, key: object) -> bool:
        return key in self._group_of

    def add(self, group: Group, key: Key) -> None:
        """Take a new name into a group."""
        members = self._members.setdefault(group, OrderedDict())
        self._group_of[key] = group
        members[key] = None
        self._resized(group, len(members) - 1, len(members))

    def touch(self, key: Key) -> None:
        """A name is used."""
        group = self._group_of[key]
        members = self._members[group]
        members.move_to_end(key)
        self._sizes[len(members)].move_to_end(group)

    def remove(self, key: Key) -> None:
        """Remove a name."""
        group = self._group_of.pop(key)
        members = self._members[group]
        del members[key]
        if not members:
            del self._members[group]
        self._resized(group, len(members) + 1, len(members))

    def group(self, group: Group) -> list[Key]:
        """A group's names, the longest unused first (in time that grows with their count)."""
        return list(self._members.get(group, ()))

    def size(self, group: Group) -> int:
        """How many names a group has."""
        return len(self._members.get(group, ()))

    def oldest(self, group: Group) -> Key:
        """The longest unused name of a group.

        Raises:
            KeyError: the group has none.
        """
        return next(iter(self._members[group]))

    def next_to_go(self) -> Key:
        """The longest unused name of the largest group.

        Raises:
            KeyError: there is none.
        """
        return self.oldest(next(iter(self._sizes[self._largest])))

    def _resized(self, group: Group, before: int, now: int) -> None:
        if before:
            of_size = self._sizes[before]
            del of_size[group]
            if not of_size:
                del self._sizes[before]
        if now:
            self._sizes.setdefault(now, OrderedDict())[group] = None
        self._largest = max(self._largest, now)
        while self._largest and self._largest not in self._sizes:
            self._largest -= 1
