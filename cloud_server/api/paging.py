"""Pages of a list: a cursor names the last entry of the page before; new entries shift nothing."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from cloud_server.api.failures import FieldError

MOST = 100
Cursor = Annotated[
    str | None, Query(description="`next_cursor` of the page before", max_length=512)
]
Limit = Annotated[int, Query(ge=1, le=MOST, description="entries of a page")]
Entry = TypeVar("Entry")
Found = TypeVar("Found")
Key = tuple[float | str, ...]
"""What a list is sorted by."""


class Page(BaseModel, Generic[Entry]):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[Entry]
    has_more: bool
    next_cursor: str | None = Field(description="null on the last page")


def page(
    found: Sequence[Found],
    key: Callable[[Found], Key],
    tell: Callable[[Found], Entry],
    cursor: str | None,
    limit: int,
) -> Page[Entry]:
    """The part of a list behind a cursor.

    Args:
        found: the whole list, in ascending order of `key`.
        key: unlike for each entry.
        tell: makes an entry of the answer.
        cursor: None for the first page.
        limit: entries of a page.

    Raises:
        FieldError: the cursor is none of this list.
    """
    if cursor is not None:
        after = _read(cursor)
        try:
            found = [one for one in found if key(one) > after]
        except TypeError as error:
            raise _no_cursor() from error
    taken = found[:limit]
    more = len(found) > limit
    return Page(
        data=[tell(one) for one in taken],
        has_more=more,
        next_cursor=_written(key(taken[-1])) if more else None,
    )


def _written(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _read(cursor: str) -> Key:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        key = json.loads(raw)
    except (binascii.Error, ValueError) as error:
        raise _no_cursor() from error
    if not isinstance(key, list) or not all(type(one) in (int, float, str) for one in key):
        raise _no_cursor()
    return tuple(key)


def _no_cursor() -> FieldError:
    return FieldError("cursor", "this is no cursor of this list: give `next_cursor` as it came")
