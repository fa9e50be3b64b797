"""The service's database: open it, read it, change it in audited transactions.

Writers take turns: a transaction takes SQLite's write lock, or a row lock of PostgreSQL, when it
begins. So a verb may read first and write then. Each change replaces a token, by which
`LiveDirectory` notices it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, select, update
from sqlalchemy.orm import Session

from cloud_server.state import connect, migrate
from cloud_server.state.journal import Event, Journal, Kind, Shut
from cloud_server.state.reapply import missing_in_journal, reapply
from cloud_server.state.tables import AuditRow, ChangeRow
from cloud_server.state.trouble import typed
from protos.errors import StateError

_LONGEST_AUDITED = 200


class Transaction:
    """A transaction that changes the database, wholly or not at all.

    Attributes:
        session: runs statements.
        actor: who changes something, as the audit log names it.
        now_s: seconds since 1970; the same for the whole transaction.
    """

    def __init__(self, session: Session, actor: str, now_s: float) -> None:
        self.session, self.actor, self.now_s = session, actor, now_s
        self.shut: list[Shut] = []

    def audit(self, action: str, tenant: str, subject: str, **detail: object) -> None:
        """Write a line of the audit log.

        Args:
            action: what is done, `device.add`.
            tenant: name of the tenant that it concerns.
            subject: name of the thing.
            detail: further fields; no secrets.
        """
        short = {
            name: value[:_LONGEST_AUDITED] if isinstance(value, str) else value
            for name, value in detail.items()
        }
        self.session.add(
            AuditRow(
                at_s=self.now_s,
                actor=self.actor,
                action=action,
                tenant=tenant,
                subject=subject,
                detail=json.dumps(short, sort_keys=True),
            )
        )

    def journal(self, event: Event, kind: Kind, id: str, name: str) -> None:
        """Add an event to the journal: something is disabled, enabled, revoked or removed."""
        self.shut.append(Shut(event, kind, id, name, self.now_s))


class Store:
    """The service's database. Made by `open`; threads may share it.

    Attributes:
        named: the database's name for messages, without a password.
        journal: the journal of revocations, if it has one.
    """

    def __init__(
        self, engine: Engine, url: URL, journal: Journal | None, clock: Callable[[], float]
    ) -> None:
        self.named, self.journal = connect.named(url), journal
        self._engine, self._url, self._clock = engine, url, clock
        self._writing = engine.execution_options(writes=True)
        self._reading = (
            engine.execution_options(isolation_level="REPEATABLE READ")
            if self.is_postgresql
            else engine
        )
        self._file = connect.sqlite_file(url)
        self._inode = self._file_inode()

    @classmethod
    def open(
        cls,
        url: str,
        journal: Path | None = None,
        *,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Open a database, and migrate it if needed.

        Args:
            url: `sqlite:////folder/state.db` or `postgresql://user@host/name`.
            journal: file of the journal of revocations.
            create: create SQLite's file and the tables if they do not exist. A service that already
            has clients must not: an empty database would lock everyone out.
            clock: seconds since 1970.

        Raises:
            ConfigError: the URL names no database that can be used.
            StateError: the database cannot be used, does not exist, or has a newer version.
        """
        checked = connect.checked_url(url)
        named = connect.named(checked)
        file = connect.sqlite_file(checked)
        absent = StateError(
            f"database {named}: there is none: make one (cloud-server init DIR), or restore a "
            "backup (cloud-server restore FILE)"
        )
        if file is not None and not create and not file.exists():
            raise absent
        engine = connect.engine_of(checked)
        try:
            with typed(named):
                with engine.connect() as connection:
                    revision = migrate.revision_of(connection)
                if revision is None and not create:
                    raise absent
                if revision != migrate.HEAD:
                    with engine.execution_options(writes=True).begin() as connection:
                        migrate.bring_up_to_date(connection)
            store = cls(engine, checked, Journal(journal) if journal else None, clock)
            store.settle_journal()
        except BaseException:
            engine.dispose()
            raise
        return store

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL; else SQLite."""
        return self._url.get_backend_name() == "postgresql"

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session with a consistent snapshot of the database.

        Raises:
            StateError: the database cannot be used.
        """
        self._follow_file()
        with typed(self.named), Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self, actor: str, *, quiet: bool = False) -> Iterator[Transaction]:
        """A transaction that writes; it commits at the end of the block, and an error undoes it.

        Args:
            actor: who changes something: `cli:anna`, `key:dashboard`, `device:gate-3`.
            quiet: for rows that are not in directories (reports, idempotency keys): directories are
            not told, and writers of PostgreSQL do not wait for each other.

        Raises:
            StateError: the database or the journal cannot be used; nothing was changed.
        """
        self._follow_file()
        with typed(self.named):
            with Session(self._writing, expire_on_commit=False) as session, session.begin():
                if not quiet:  # first, because it is PostgreSQL's lock too
                    token = secrets.token_hex(16)
                    session.execute(update(ChangeRow).values(token=token))
                tx = Transaction(session, actor, self._clock())
                yield tx
                session.flush()
                if self.journal is not None:
                    self.journal.append(tx.shut)

    def token(self) -> str:
        """The token of the last change.

        Raises:
            StateError: the database cannot be used.
        """
        with self.read() as session:
            found: str | None = session.scalar(select(ChangeRow.token))
        if found is None:
            raise StateError(f"database {self.named}: its row of changes is missing: restore it")
        return found

    def settle_journal(self) -> None:
        """Apply the journal to the database, and add to the journal what it lacks.

        A database that was copied back by hand lacks the revocations since the copy. A database
        that other machines write to has revocations that this machine's journal lacks.

        Raises:
            StateError: the database or the journal cannot be used.
        """
        if self.journal is None:
            return
        events, _ = self.journal.read()
        with self.read() as session:
            undone = reapply(session, events, self._clock(), only_look=True)
            unknown = missing_in_journal(session, events, self._clock())
        if unknown:
            self.journal.append(unknown)
        if undone:
            with self.write("journal") as tx:
                for event in reapply(tx.session, events, tx.now_s):
                    tx.audit(f"journal.{event.kind}", "", event.name, event=event.event)

    def _file_inode(self) -> int | None:
        try:
            return None if self._file is None else self._file.stat().st_ino
        except OSError:
            return None

    def _follow_file(self) -> None:
        """Reopen the database's file if it was replaced by another one."""
        if self._file is None:
            return
        now = self._file_inode()
        if now is None:
            raise StateError(
                f"database {self.named}: the file is gone: restore it (cloud-server restore FILE)"
            )
        if now != self._inode:
            self._inode = now
            self._engine.dispose()
