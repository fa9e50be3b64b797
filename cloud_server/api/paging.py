"""Pages of a list. A cursor names the previous page's last entry, so new entries shift no page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from protos import identity

NAME = f"^{identity.NAME.pattern}$"
"""Name of a tenant, device or key."""
_CURSOR = "`next_cursor` of the page before"
NameCursor = Annotated[str | None, Query(description=_CURSOR, pattern=NAME)]
"""Cursor of a list that is sorted by name."""
SceneCursor = Annotated[
    str | None, Query(description=_CURSOR, pattern=r"^[0-9]{1,20}-[0-9a-f]{32}$")
]
LineCursor = Annotated[str | None, Query(description=_CURSOR, pattern=r"^[0-9]{1,15}$")]
Limit = Annotated[int, Query(ge=1, le=100, description="entries of a page")]
Entry = TypeVar("Entry")
Found = TypeVar("Found")


class Page(BaseModel, Generic[Entry]):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[Entry]
    has_more: bool
    next_cursor: str | None = Field(description="null on the last page")


def page(
    found: Sequence[Found],
    tell: Callable[[Found], Entry],
    cursor_of: Callable[[Found], str],
    limit: int,
) -> Page[Entry]:
    """The first part of a list.

    Args:
        found: the entries after the cursor; one more than `limit` if there is a next page.
        tell: turns an entry into an entry of the answer.
        cursor_of: the cursor of an entry.
        limit: entries of a page.
    """
    taken, more = found[:limit], len(found) > limit
    return Page(
        data=[tell(one) for one in taken],
        has_more=more,
        next_cursor=cursor_of(taken[-1]) if more else None,
    )
