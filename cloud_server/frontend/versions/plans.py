"""The plan: which versions of bundles are wanted, from the database or the settings."""

from __future__ import annotations

import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cloud_server.engine.jobs import Offer
from cloud_server.state import bundles
from cloud_server.state.store import Store
from projector.bundle.load import Bundle
from protos.errors import BridgeError, ConfigError, ConflictError
from protos.process.logs import Logger


@dataclass(frozen=True)
class Wanted:
    """A version and its wanted state (`cloud_server.state.bundles`).

    Attributes:
        path: its folder.
        order_no: increases with each change.
        served: whether a front end served it since it was wanted.
    """

    digest: str
    bundle_id: str
    version: int
    source: str
    path: str
    wanted: str
    share: float
    unjudged: bool
    order_no: int
    served: bool = False


class Plan(ABC):
    """The wanted versions, and the receiver of reports. Methods may block: use a thread."""

    @abstractmethod
    def begin(self) -> tuple[Path, ...]:
        """The folders of the bundles that engines start with.

        Raises:
            ConfigError: there are none.
            StateError: the database cannot be used.
        """

    @abstractmethod
    def versions(self) -> list[Wanted]:
        """Every version.

        Raises:
            StateError: the database cannot be used.
        """

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> None:
        """Take the bundles' folders of settings that were read again.

        Args:
            paths: the folders.
        """

    @abstractmethod
    def take_back(self, digest: str, why: str) -> None:
        """Roll a version back, because it was refused or is worse than the one before.

        Raises:
            StateError: the database cannot be used.
        """

    @abstractmethod
    def report(self, said: Sequence[bundles.Said], served: Sequence[str] = ()) -> None:
        """Report the state of each version in this front end.

        Args:
            said: the states.
            served: digests of versions that were judged and serve now for the first time.

        Raises:
            StateError: the database cannot be used.
        """

    def began_with(self, offer: Offer) -> Wanted | None:
        """An engine started with a version that is not in `versions`; None not to serve it."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Withdraw this front end's reports."""


def front_end_name() -> str:
    """This process's name in reports: host and process id."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}"


class DatabasePlan(Plan):
    """The plan in the database; `cloud-server bundles` changes it for every front end.

    Args:
        store: the database.
        front_end: this front end's name.
        first: folders of bundles for edge models without a version in the database.
        log: a bound logger.
    """

    def __init__(self, store: Store, front_end: str, first: Sequence[Path], log: Logger) -> None:
        self._store, self._front_end, self._first, self._log = store, front_end, first, log

    def begin(self) -> tuple[Path, ...]:
        """See `Plan`; adds the settings' bundles for models without a version in the database."""
        for path in self._first:
            self._begin_with(path)
        versions = self.versions()
        begun = [self._proven(one, versions) for one in versions if one.wanted == "active"]
        paths = tuple(Path(one.path) for one in begun)
        if not paths:
            raise ConfigError(
                "no bundle: give --bundles, or add a version and activate it (cloud-server bundles "
                "add, cloud-server bundles activate)"
            )
        return paths

    def _proven(self, active: Wanted, versions: Sequence[Wanted]) -> Wanted:
        """The version to begin with: the one before, if nobody knows yet whether this one works."""
        before = [
            one
            for one in versions
            if (one.source, one.wanted) == (active.source, "replaced")
            and one.served
            and Path(one.path).is_dir()
        ]
        if active.served or not before:
            return active
        chosen = max(before, key=lambda one: one.order_no)
        self._log.warning(
            "a version was not judged before the service ended: the one before serves until it is",
            bundle=active.bundle_id,
            version=active.version,
            serves=chosen.version,
        )
        return chosen

    def _begin_with(self, path: Path) -> None:
        info = Bundle.peek(path)
        with self._store.read() as session:
            rows = bundles.every(session)
        served = [row for row in rows if row.source == info.source.fingerprint]
        if any(row.wanted == "active" for row in served):
            if not any(row.digest == info.digest for row in served):
                self._log.warning(
                    "a bundle of the settings is not served: the database has a version for its "
                    "edge model (cloud-server bundles add)",
                    path=str(path),
                )
            return
        with self._store.write(f"front end {self._front_end}") as tx:
            if not any(row.digest == info.digest for row in served):
                bundles.add(
                    tx,
                    digest=info.digest,
                    bundle_id=info.id,
                    version=info.version,
                    source=info.source.fingerprint,
                    path=str(path.absolute()),
                )
            bundles.activate(tx, info.digest, unjudged=True)

    def versions(self) -> list[Wanted]:
        """See `Plan`."""
        with self._store.read() as session:
            return [
                Wanted(
                    row.digest,
                    row.bundle_id,
                    row.version,
                    row.source,
                    row.path,
                    row.wanted,
                    row.share,
                    row.unjudged,
                    row.order_no,
                    row.served,
                )
                for row in bundles.every(session)
            ]

    def read(self, paths: Sequence[Path]) -> None:
        """See `Plan`; ignored, because the database is the plan."""

    def take_back(self, digest: str, why: str) -> None:
        """See `Plan`."""
        with self._store.write(f"front end {self._front_end}") as tx:
            try:
                bundles.rollback(tx, digest, why, alone=True)
            except ConflictError:
                return  # another front end was faster

    def report(self, said: Sequence[bundles.Said], served: Sequence[str] = ()) -> None:
        """See `Plan`."""
        with self._store.write(f"front end {self._front_end}", quiet=True) as tx:
            bundles.withdraw(tx, self._front_end)
            for one in said:
                bundles.report(tx, replace(one, front_end=self._front_end))
            for digest in served:
                bundles.served(tx, digest)

    def close(self) -> None:
        """See `Plan`."""
        with self._store.write(f"front end {self._front_end}", quiet=True) as tx:
            bundles.withdraw(tx, self._front_end)


class SettingsPlan(Plan):
    """The plan in the settings: one version for each edge model, reloaded by `read`.

    Args:
        paths: folders of bundles.
        log: a bound logger.
    """

    def __init__(self, paths: Sequence[Path], log: Logger) -> None:
        self._paths, self._log = tuple(paths), log
        self._versions: list[Wanted] = []
        self._taken_back: set[str] = set()
        self._order = 0

    def begin(self) -> tuple[Path, ...]:
        """See `Plan`."""
        return self._paths

    def read(self, paths: Sequence[Path]) -> None:
        """See `Plan`; folders may hold new bundles; a bad one changes nothing."""
        self._paths = tuple(paths)
        for path in self._paths:
            try:
                info = Bundle.peek(path)
            except BridgeError as error:
                self._log.error("bundle not taken up", path=str(path), cause=error.message)
                continue
            self._take(
                Wanted(
                    info.digest,
                    info.id,
                    info.version,
                    info.source.fingerprint,
                    str(path),
                    "active",
                    1.0,
                    False,
                    0,
                    True,
                )
            )

    def began_with(self, offer: Offer) -> Wanted:
        """See `Plan`; engines start with the bundles in the folders."""
        made = Wanted(
            offer.bundle_digest,
            offer.bundle_id,
            int(offer.bundle_version),
            offer.source_fingerprint,
            self._path_of(offer),
            "active",
            1.0,
            True,
            0,
            True,
        )
        self._take(made)
        return made

    def _path_of(self, offer: Offer) -> str:
        for path in self._paths:
            with contextlib.suppress(BridgeError):
                info = Bundle.peek(path)
                if info.source.fingerprint == offer.source_fingerprint:
                    return str(path)
        return ""

    def versions(self) -> list[Wanted]:
        """See `Plan`."""
        return list(self._versions)

    def take_back(self, digest: str, why: str) -> None:
        """See `Plan`."""
        self._taken_back.add(digest)
        gone = next((one for one in self._versions if one.digest == digest), None)
        if gone is None:
            return
        self._want(gone, "rolled_back")
        before = [v for v in self._versions if (v.source, v.wanted) == (gone.source, "replaced")]
        if before:
            self._want(max(before, key=lambda one: one.order_no), "active")

    def report(self, said: Sequence[bundles.Said], served: Sequence[str] = ()) -> None:
        """See `Plan`; reports are not stored."""

    def close(self) -> None:
        """See `Plan`; there are no reports."""

    def _take(self, new: Wanted) -> None:
        same = next((one for one in self._versions if one.digest == new.digest), None)
        if new.digest in self._taken_back or (same is not None and same.wanted == "active"):
            return
        for other in list(self._versions):
            if other.source == new.source and other.wanted == "active":
                self._want(other, "replaced")
        if same is None:
            self._versions.append(new)
        self._want(same or new, "active")

    def _want(self, version: Wanted, wanted: str) -> None:
        self._order += 1
        place = next(i for i, one in enumerate(self._versions) if one.digest == version.digest)
        self._versions[place] = replace(version, wanted=wanted, order_no=self._order)
