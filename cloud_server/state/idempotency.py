"""Answers to changes that came with an idempotency key; a repeated request gets the same answer."""

from __future__ import annotations

from sqlalchemy import delete

from cloud_server.state.store import Transaction
from cloud_server.state.tables import IdempotencyRow
from protos.errors import ConflictError

KEPT_S = 86400.0
"""How long an answer is kept."""
OTHER_REQUEST = "this Idempotency-Key was used before, for another request: use a new one"


def find(tx: Transaction, name: str, request_sha256: str) -> bytes | None:
    """The sealed answer that a key got; None if the key is new.

    Args:
        tx: the transaction; writers take turns, so a key that is new stays new until it ends.
        name: names caller and key, 64 hexadecimal digits.
        request_sha256: of the request.

    Raises:
        ConflictError: the key came with another request.
    """
    tx.session.execute(
        delete(IdempotencyRow).where(IdempotencyRow.made_s < tx.now_s - KEPT_S),
        execution_options={"synchronize_session": False},
    )
    row = tx.session.get(IdempotencyRow, name)
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise ConflictError(OTHER_REQUEST)
    return row.answer


def keep(tx: Transaction, name: str, request_sha256: str, answer: bytes) -> None:
    """Keep the sealed answer to a request, in the transaction of its change.

    Args:
        tx: the transaction.
        name: see `find`.
        request_sha256: of the request.
        answer: sealed, because it may show a secret that is shown once.
    """
    tx.session.add(
        IdempotencyRow(name=name, request_sha256=request_sha256, answer=answer, made_s=tx.now_s)
    )
