"""Orders for devices: one function for each verb.

An order waits until its outcome is known or it expires. Each order that is given replaces a token,
by which every front end notices it within seconds. Callers write with `Store.write(quiet=True)`:
directories need not be told.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from cloud_server.state import devices
from cloud_server.state.store import Transaction
from cloud_server.state.tables import OrderChangeRow, OrderRow
from protos.errors import ConflictError, MissingError, OverloadedError
from protos.neuralbridge.v1 import bridge_pb2 as pb

LIFE_S = 7 * 86400.0
"""How long an order waits for its device."""
MOST_WAITING = 64
"""Orders of one device that may wait at once."""
_MOST_ENDED = 128
"""Orders that have ended and are still shown, for each device."""
_MOST_SHOWN = 1000
_PORTION = 500


@dataclass(frozen=True)
class DeviceOrder:
    """An order; times are seconds since 1970.

    Attributes:
        id: 32 hexadecimal digits.
        kind: `configure`, `restart`, `send_logs`, `capture`, `update`.
        asked: its fields.
        state: `waiting`, `sent`, `done`, `refused`, `expired`, `replaced`, `cancelled`.
        cause: what the device said, or why it ended.
        given_by: who gave it, as the audit log names them.
    """

    id: str
    kind: str
    asked: dict[str, Any]
    state: str
    cause: str
    given_s: float
    given_by: str
    expires_s: float
    sent_s: float | None
    ended_s: float | None


def give(
    tx: Transaction, tenant: str, name: str, order: pb.Order, life_s: float = LIFE_S
) -> DeviceOrder:
    """Give a device an order; writes the audit log.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        name: the device.
        order: without an id.
        life_s: how long it waits, seconds.

    Raises:
        MissingError: there is no such tenant or device.
        OverloadedError: too many orders of this device wait.
    """
    device = devices.find(tx.session, tenant, name)
    kind = str(order.WhichOneof("order"))
    given = put(tx, device.id, order, life_s)
    tx.audit(f"device.{kind}", tenant, name, order=given.id, **given.asked)
    return given


def put(tx: Transaction, device_id: str, order: pb.Order, life_s: float = LIFE_S) -> DeviceOrder:
    """See `give`; without the audit log, by the device's id. Settings replace earlier ones."""
    kind = str(order.WhichOneof("order"))
    session = tx.session
    waiting = select(OrderRow).where(OrderRow.device_id == device_id, OrderRow.ended_s.is_(None))
    if kind == "configure":
        for row in session.scalars(waiting.where(OrderRow.kind == kind)):
            row.ended_s, row.outcome = tx.now_s, "replaced"
            row.cause = "newer settings were given"
        session.flush()
    open_now = waiting.where(OrderRow.expires_s > tx.now_s).subquery()
    if (session.scalar(select(func.count()).select_from(open_now)) or 0) >= MOST_WAITING:
        raise OverloadedError(
            f"{MOST_WAITING} orders wait for this device: cancel some (cloud-server devices orders "
            "NAME --cancel ID), or wait until it connects",
            cause="orders",
        )
    id = secrets.token_bytes(16)
    sent = pb.Order(id=id)
    sent.MergeFrom(order)
    row = OrderRow(
        id=id.hex(),
        device_id=device_id,
        kind=kind,
        body=sent.SerializeToString(),
        shown=json.dumps(_asked(order)),
        given_s=tx.now_s,
        given_by=tx.actor,
        expires_s=tx.now_s + life_s,
        outcome="",
        cause="",
    )
    session.add(row)
    session.flush()
    _forget_old(session, device_id)
    _replace_token(session)
    return _order(row, tx.now_s)


def of(session: Session, tenant: str, name: str, now_s: float) -> list[DeviceOrder]:
    """A device's orders, the newest first.

    Raises:
        MissingError: there is no such tenant or device.
    """
    device = devices.find(session, tenant, name)
    rows = session.scalars(
        select(OrderRow)
        .where(OrderRow.device_id == device.id)
        .order_by(OrderRow.given_s.desc(), OrderRow.id)
        .limit(_MOST_SHOWN)
    )
    return [_order(row, now_s) for row in rows]


def cancel(tx: Transaction, tenant: str, name: str, begins: str) -> DeviceOrder:
    """Take back an order that waits; its device may have carried it out already.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        name: the device.
        begins: the order's id, or its first digits.

    Raises:
        MissingError: there is no such tenant, device or waiting order.
        ConflictError: several waiting orders begin so.
    """
    device = devices.find(tx.session, tenant, name)
    rows = tx.session.scalars(
        select(OrderRow).where(OrderRow.device_id == device.id, OrderRow.ended_s.is_(None))
    )
    found = [row for row in rows if begins and row.id.startswith(begins.lower())]
    if not found:
        raise MissingError(
            f"no order {begins[:80]!r} of device '{name}' waits (cloud-server devices orders "
            f"{name})"
        )
    if len(found) > 1:
        raise ConflictError(f"{len(found)} orders begin with {begins[:80]!r}: give more digits")
    row = found[0]
    row.ended_s, row.outcome, row.cause = tx.now_s, "cancelled", f"by {tx.actor}"
    tx.audit("device.cancel", tenant, name, order=row.id, kind=row.kind)
    return _order(row, tx.now_s)


def waiting(
    session: Session, device_ids: Collection[str], now_s: float
) -> dict[str, dict[str, bytes]]:
    """The orders that wait for some devices: device to order id to message, the oldest first."""
    found: dict[str, dict[str, bytes]] = {}
    every = sorted(device_ids)
    for start in range(0, len(every), _PORTION):
        query = (
            select(OrderRow.device_id, OrderRow.id, OrderRow.body)
            .where(
                OrderRow.device_id.in_(every[start : start + _PORTION]),
                OrderRow.ended_s.is_(None),
                OrderRow.expires_s > now_s,
            )
            .order_by(OrderRow.given_s, OrderRow.id)
        )
        for device_id, id, body in session.execute(query).tuples():
            found.setdefault(device_id, {})[id] = body
    return found


def sent(tx: Transaction, ids: Collection[str]) -> None:
    """Some orders went to their device."""
    tx.session.execute(
        update(OrderRow)
        .where(OrderRow.id.in_(sorted(ids)), OrderRow.ended_s.is_(None))
        .values(sent_s=tx.now_s),
        execution_options={"synchronize_session": False},
    )


def ended(tx: Transaction, device_id: str, id: str, done: bool, cause: str) -> str:
    """A device says how an order ended; the first word counts.

    Returns:
        The order's kind.

    Raises:
        MissingError: this device has no such order.
    """
    row = tx.session.get(OrderRow, id)
    if row is None or row.device_id != device_id:
        raise MissingError("there is no such order for this device")
    if row.outcome not in ("done", "refused"):
        row.ended_s, row.outcome = tx.now_s, "done" if done else "refused"
        row.cause = cause
    return row.kind


def kind_of(session: Session, device_id: str, id: str) -> str:
    """The kind of one of a device's orders; empty if it has no such order."""
    row = session.get(OrderRow, id)
    return "" if row is None or row.device_id != device_id else row.kind


def token(session: Session) -> str:
    """Changes whenever an order was given; empty before the first."""
    return session.scalar(select(OrderChangeRow.token)) or ""


def _replace_token(session: Session) -> None:
    row = session.get(OrderChangeRow, 1)
    if row is None:
        session.add(OrderChangeRow(id=1, token=secrets.token_hex(16)))
    else:
        row.token = secrets.token_hex(16)


def _forget_old(session: Session, device_id: str) -> None:
    old = session.scalars(
        select(OrderRow.id)
        .where(OrderRow.device_id == device_id)
        .order_by(OrderRow.given_s.desc())
        .offset(MOST_WAITING + _MOST_ENDED)
    ).all()
    if old:
        session.execute(
            delete(OrderRow).where(OrderRow.id.in_(old)),
            execution_options={"synchronize_session": False},
        )


def _order(row: OrderRow, now_s: float) -> DeviceOrder:
    state, cause = row.outcome, row.cause
    if not state and row.expires_s <= now_s:
        state, cause = "expired", "the device said nothing of it in time"
    return DeviceOrder(
        row.id,
        row.kind,
        json.loads(row.shown),
        state or ("waiting" if row.sent_s is None else "sent"),
        cause,
        row.given_s,
        row.given_by,
        row.expires_s,
        row.sent_s,
        row.ended_s,
    )


def _asked(order: pb.Order) -> dict[str, Any]:
    """The fields of an order, for people."""
    kind = str(order.WhichOneof("order"))
    fields: dict[str, Any] = json_format.MessageToDict(
        getattr(order, kind), preserving_proto_field_name=True
    )
    return fields
