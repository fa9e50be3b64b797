"""Shared by all management routes: who may manage what, and transactions in the caller's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from cloud_server.api.admin.attempt import Attempt
from cloud_server.api.paging import NAME
from cloud_server.identity.caller import Caller
from cloud_server.state import idempotency
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.store import Store, Transaction
from protos.errors import ForbiddenError, MissingError

Named = Annotated[str, Path(pattern=NAME)]
OfTenant = Annotated[
    str | None,
    Query(pattern=NAME, description="the tenant; the caller's own by default"),
]


Answer = TypeVar("Answer", bound=BaseModel)


class Change(BaseModel):
    """The body of a change; unknown fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Enabled(Change):
    """Whether a tenant, device or key is enabled."""

    enabled: bool


class Removed(BaseModel):
    """The name of what was removed."""

    removed: str


class Management:
    """The database, with the rights of the caller.

    Args:
        store: the database.
        live: the directory that calls are checked against; told of each change.
    """

    def __init__(self, store: Store, live: LiveDirectory) -> None:
        self._store, self._live = store, live

    def tenant(self, caller: Caller, named: str | None) -> str:
        """The tenant that a caller manages.

        Args:
            caller: who manages.
            named: None for the caller's own.

        Raises:
            ForbiddenError: its key may not manage, or is limited to some devices.
            MissingError: the tenant is another's or does not exist; the error is the same.
        """
        caller.require("manage")
        if caller.devices is not None:
            raise ForbiddenError(
                f"key '{caller.name}' is for some devices only: managing takes a key for all"
            )
        if named is None or named == caller.tenant or caller.of_service:
            return named or caller.tenant
        raise MissingError(f"there is no tenant '{named}' (cloud-server tenants list)")

    def require_service(self, caller: Caller) -> None:
        """Check that a caller manages the whole service.

        Raises:
            ForbiddenError: it does not.
        """
        self.tenant(caller, None)
        if not caller.of_service:
            raise ForbiddenError("only operators of the whole service may do this")

    @contextmanager
    def seeing(self, caller: Caller, named: str | None) -> Iterator[tuple[Session, str]]:
        """See `tenant` and `read`: a session, and the tenant that the caller manages."""
        of = self.tenant(caller, named)
        with self.read() as session:
            yield session, of

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session with a consistent snapshot of the database.

        Raises:
            StateError: the database cannot be used.
        """
        with self._store.read() as session:
            yield session

    def change(
        self,
        attempt: Attempt,
        answers: type[Answer],
        act: Callable[[Transaction], Answer],
    ) -> Answer:
        """Change something in the caller's name; calls are checked against the result at once.

        A request that comes again with its idempotency key changes nothing, and gets the answer
        that it got before.

        Args:
            attempt: the request; its caller may do this.
            answers: class of the answer.
            act: makes the change, in a transaction.

        Raises:
            ConflictError: the idempotency key came with another request.
            StateError: the database cannot be used; nothing was changed.
        """
        caller = attempt.caller
        with self._store.write(f"key:{caller.tenant}/{caller.name}") as tx:
            known = attempt.name and idempotency.find(tx, attempt.name, attempt.request_sha256)
            if known:
                return answers.model_validate_json(attempt.repeated(known))
            made = act(tx)
            if attempt.name:
                sealed = attempt.seal(made.model_dump_json().encode())
                idempotency.keep(tx, attempt.name, attempt.request_sha256, sealed)
        self._live.wake()
        return made

    def change_of(
        self,
        attempt: Attempt,
        named: str | None,
        answers: type[Answer],
        act: Callable[[Transaction, str], Answer],
    ) -> Answer:
        """See `tenant` and `change`; `act` is given the tenant too."""
        of = self.tenant(attempt.caller, named)
        return self.change(attempt, answers, lambda tx: act(tx, of))
