"""Signed updates of devices' software: which there are, and where their files lie.

The service never signs one. `cloud-server updates add` checks the signature against public keys
that the operator names, and keeps the file in DIRECTORY/updates under its digest.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import OfferRow, UpdateRow
from protos.errors import ConflictError, MissingError
from protos.update import SUFFIX, Manifest

FOLDER = "updates"
"""Folder of the files in the service's directory."""
_SHORTEST = 4


def file_of(directory: Path, digest: str) -> Path:
    """Where an update's file lies.

    Args:
        directory: the service's.
        digest: the update's.
    """
    return directory / FOLDER / f"{digest}{SUFFIX}"


def add(
    tx: Transaction, manifest: Manifest, *, digest: str, size_bytes: int, signer: str
) -> UpdateRow:
    """Add an update; it is offered to nobody yet.

    Args:
        tx: the transaction.
        manifest: its signed list.
        digest: of that list.
        size_bytes: of the file.
        signer: name of the trusted key that signed it.

    Raises:
        ConflictError: it is there already.
    """
    row = tx.session.get(UpdateRow, digest)
    if row is not None and not row.retired:
        raise ConflictError(f"update {digest[:12]}… was added before (cloud-server updates list)")
    made = UpdateRow(
        digest=digest,
        number=manifest.number,
        version=manifest.version,
        machine=manifest.machine,
        python=manifest.python,
        jetpack=manifest.jetpack,
        kinds=",".join(manifest.kinds),
        size_bytes=size_bytes,
        signer=signer,
        added_s=tx.now_s,
        added_by=tx.actor,
        retired=False,
    )
    made = tx.session.merge(made)
    tx.session.flush()
    tx.audit("update.add", "", digest, number=manifest.number, version=manifest.version)
    return made


def every(session: Session, retired: bool = True) -> list[UpdateRow]:
    """Every update, the newest first.

    Args:
        session: reads.
        retired: those that were retired as well.
    """
    query = select(UpdateRow).order_by(UpdateRow.number.desc(), UpdateRow.digest)
    if not retired:
        query = query.where(~UpdateRow.retired)
    return list(session.scalars(query))


def find(session: Session, name: str) -> UpdateRow:
    """An update by its number, its version, its digest or a prefix of that.

    Raises:
        MissingError: there is none.
        ConflictError: there are several.
    """
    rows = every(session, retired=False)
    found = [row for row in rows if name in (str(row.number), row.version)]
    if not found and len(name) >= _SHORTEST:
        found = [row for row in rows if row.digest.startswith(name.lower())]
    if not found:
        near = hint(name, (row.version for row in rows))
        raise MissingError(
            f"no update is called '{name[:80]}'{near}: give its number, its version or at least "
            f"{_SHORTEST} digits of its digest (cloud-server updates list)"
        )
    if len(found) > 1:
        several = " or ".join(f"{row.digest[:12]} ({what_for(row)})" for row in found)
        raise ConflictError(f"'{name[:80]}' may be {several}: give the digits")
    return found[0]


def retire(tx: Transaction, name: str) -> UpdateRow:
    """Retire an update: its file may be removed, and nobody is offered it any more.

    Raises:
        MissingError, ConflictError: as `find`.
        ConflictError: it is offered still.
    """
    row = find(tx.session, name)
    query = select(OfferRow).where(OfferRow.digest == row.digest, OfferRow.state != "withdrawn")
    if tx.session.scalar(query.limit(1)) is not None:
        raise ConflictError(
            f"update {row.number} is offered still: cloud-server updates withdraw {row.number}"
        )
    row.retired = True
    tx.audit("update.retire", "", row.digest, number=row.number, version=row.version)
    return row


def what_for(row: UpdateRow) -> str:
    """The devices that an update is for, in words."""
    parts = [
        "" if row.machine == "any" else row.machine,
        "" if row.python == "any" else f"Python {row.python}",
        "" if row.jetpack == "any" else f"JetPack {row.jetpack}",
    ]
    return ", ".join(part for part in parts if part) or "every device"
