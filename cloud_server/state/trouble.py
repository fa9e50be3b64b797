"""Turns errors of a database into `StateError`: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from protos.errors import StateError


class DamageError(StateError):
    """The database's content is damaged; only a backup helps."""


LOCK_WAIT_S = 10.0
"""Longest wait of a transaction for another one."""

_DAMAGED = "it is damaged"
_ADVICE: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("is locked", "is busy", "lock timeout", "deadlock detected"),
        f"another process has been writing to it for {LOCK_WAIT_S:.0f} seconds",
        "try again; if it stays so, look for a stopped process that holds it",
    ),
    (
        ("disk is full", "no space left", "could not extend file", "disk quota"),
        "there is no room on its disk",
        "make room, then try again",
    ),
    (
        (
            "not a database",
            "malformed",
            "is corrupt",
            "invalid page",
            "no such table",
            "no such column",
        ),
        _DAMAGED,
        "restore a backup: cloud-server restore FILE --force",
    ),
    (
        ("undefinedtable", "relation", "undefinedcolumn"),
        _DAMAGED,
        "a table is missing: restore a backup: cloud-server restore FILE --force",
    ),
    (
        ("readonly", "read-only", "permission denied", "insufficientprivilege"),
        "this user may not write to it",
        "run as the service's user, or give it the right to write",
    ),
    (
        ("unable to open",),
        "it cannot be opened",
        "check that its folder exists and that this user may use it",
    ),
    (
        ("disk i/o error",),
        "its disk cannot be written or read",
        "make room, or check the disk, then try again",
    ),
    (
        ("authentication failed", "no password supplied", "role"),
        "it refuses this user",
        "check user and password (in the URL, or PGPASSFILE)",
    ),
    (
        ("does not exist",),
        "there is no such database",
        "create it first: createdb NAME",
    ),
    (
        ("too many clients", "remaining connection slots"),
        "it takes no more connections",
        "raise max_connections of PostgreSQL, or run fewer front ends",
    ),
    (
        (
            "connection refused",
            "connection failed",
            "could not connect",
            "connection is bad",
            "connection timeout",
            "timeout expired",
            "server closed the connection",
            "terminating connection",
            "starting up",
            "shutting down",
            "connection is lost",
            "connection is closed",
            "no such file",
            "consuming input failed",
            "could not translate host",
            "failed to resolve host",
        ),
        "it cannot be reached",
        "check that PostgreSQL runs and that host and port in --database are right",
    ),
)


@contextmanager
def typed(named: str) -> Iterator[None]:
    """Turn a database's error into a typed one.

    Args:
        named: the database, without a password, for the message.

    Raises:
        StateError: the database cannot be used; the message says why and what to do.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise StateError(
            f"database {named}: every connection is in use: the database answers too slowly"
        ) from error
    except DBAPIError as error:
        said = explain(error)
        kind = DamageError if said.startswith(_DAMAGED) else StateError
        raise kind(f"database {named}: {said}") from error
    except SQLAlchemyError as error:
        raise StateError(f"database {named}: {_line(error)}") from error


def explain(error: DBAPIError) -> str:
    """What happened to a database and what to do, in a line."""
    said = _line(error.orig if error.orig is not None else error)
    searched = f"{said} {type(error.orig).__name__}".lower()
    for parts, what, todo in _ADVICE:
        if any(part in searched for part in parts):
            return f"{what}; {todo} ({said})"
    return said


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] + "…" if len(text) > 300 else text
