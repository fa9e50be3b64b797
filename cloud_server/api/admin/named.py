"""Routes that a tenant's devices and keys share: list, show, disable or enable, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from cloud_server.api.admin.attempt import Attempted
from cloud_server.api.admin.management import Enabled, Management, Named, OfTenant, Removed
from cloud_server.api.paging import Limit, NameCursor, Page, page
from cloud_server.api.visit import caller_of
from cloud_server.state.store import Transaction


class HasName(Protocol):
    """A thing with a name."""

    @property
    def name(self) -> str:
        """Its name."""


Thing = TypeVar("Thing", bound=HasName)


@dataclass(frozen=True)
class Kind(Generic[Thing]):
    """Devices or keys: their functions in the state, and their entries in answers.

    Attributes:
        word: what one is called.
        entry: class of an entry.
        tell: turns one into an entry.
        shown: class of the answer about one.
        every: finds a tenant's, sorted by name.
        show: the answer about one, by tenant and name.
        enable: allows one again.
        disable: shuts one out.
        remove: removes one for good.
    """

    word: str
    entry: type[BaseModel]
    tell: Callable[[Thing], BaseModel]
    shown: type[BaseModel]
    every: Callable[[Session, str], Sequence[Thing]]
    show: Callable[[Session, str, str], BaseModel]
    enable: Callable[[Transaction, str, str], Thing]
    disable: Callable[[Transaction, str, str], Thing]
    remove: Callable[[Transaction, str, str], None]


def router(management: Management, kind: Kind[Thing]) -> APIRouter:
    """The routes of one kind under `/v1/admin/KINDs`."""
    word = kind.word
    made = APIRouter(prefix=f"/v1/admin/{word}s", tags=["management"])

    @made.get("", response_model=Page[kind.entry], summary=f"List a tenant's {word}s, by name")  # type: ignore[name-defined]
    def list_them(
        request: Request, tenant: OfTenant = None, cursor: NameCursor = None, limit: Limit = 20
    ) -> Any:
        with management.seeing(caller_of(request), tenant) as (session, of):
            found = [one for one in kind.every(session, of) if one.name > (cursor or "")]
        return page(found, kind.tell, lambda one: one.name, limit)

    @made.get("/{name}", response_model=kind.shown, summary=f"Show one {word}")
    def show(request: Request, name: Named, tenant: OfTenant = None) -> Any:
        with management.seeing(caller_of(request), tenant) as (session, of):
            return kind.show(session, of, name)

    @made.patch("/{name}", response_model=kind.entry, summary=f"Disable or enable a {word}")
    def change(attempt: Attempted, name: Named, body: Enabled, tenant: OfTenant = None) -> Any:
        verb = kind.enable if body.enabled else kind.disable
        return management.change_of(
            attempt, tenant, kind.entry, lambda tx, of: kind.tell(verb(tx, of, name))
        )

    @made.delete("/{name}", summary=f"Remove a {word} for good")
    def remove(attempt: Attempted, name: Named, tenant: OfTenant = None) -> Removed:
        def act(tx: Transaction, of: str) -> Removed:
            kind.remove(tx, of, name)
            return Removed(removed=name)

        return management.change_of(attempt, tenant, Removed, act)

    return made
