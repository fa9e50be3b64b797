"""Reports of devices, and how devices stand: one function for each verb.

What is kept is bounded for each device and each tenant; the oldest reports go first. Callers write
with `Store.write(quiet=True)`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from cloud_server.state import devices
from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceReportRow, DeviceRow, DeviceStandingRow, TenantRow
from protos.errors import ConflictError, FrameMalformedError, MissingError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.strict_json import read_json

MOST_OF_DEVICE, MOST_BYTES_OF_DEVICE = 64, 4 << 20
MOST_BYTES_OF_TENANT = 256 << 20
LONGEST_CRASH = 64 << 10
LONGEST_PIECE = 512 << 10
"""Bytes of text in one piece of a log."""


@dataclass(frozen=True)
class DeviceReport:
    """A crash report, or a piece of a log.

    Attributes:
        id: SHA-256 of its bytes, in hexadecimal digits.
        kind: `exception`, `fault`, `killed` or `power` for a crash; `log`.
        at_s: when it was made, by the device's clock; seconds since 1970.
        received_s: seconds since 1970.
        size: bytes.
        order: id of the order that asked for it; empty for a crash.
        crash: the crash report.
        lines: the piece of the log, one line of JSON each.
    """

    id: str
    kind: str
    at_s: float
    received_s: float
    size: int
    order: str
    crash: dict[str, Any] | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class DeviceStanding:
    """What a device said of itself when it last began to take orders.

    Attributes:
        attended_s: when that was, seconds since 1970.
        left_s: when it stopped; None if it has not, as far as is known.
        front_end: the front end that it did so at.
        agent_version: of its agent.
        running: what it runs: kind, name, version, sha256, slot.
        revision: of the service's settings, in force.
        tried: newest revision that it tried.
        refused: settings that it did not take: name, code, message.
    """

    attended_s: float
    left_s: float | None
    front_end: str
    agent_version: str
    running: list[dict[str, str]]
    revision: int
    tried: int
    refused: list[dict[str, Any]]


def lines_of(piece: pb.LogPiece) -> tuple[str, ...]:
    """The lines of a piece of a log.

    Raises:
        FrameMalformedError: they do not decompress within the bound.
    """
    text = _decompressed(piece.lines, LONGEST_PIECE, "a piece of a log")
    return tuple(text.decode(errors="replace").splitlines())


def crash_of(crash: pb.Crash) -> dict[str, Any]:
    """A crash report.

    Raises:
        FrameMalformedError: it is no JSON object, compressed, within the bound.
    """
    text = _decompressed(crash.json, LONGEST_CRASH, "a crash report")
    found = read_json(text, LONGEST_CRASH, "a crash report")
    if not isinstance(found, dict):
        raise FrameMalformedError("a crash report is a JSON object")
    return found


def _decompressed(data: bytes, most: int, what: str) -> bytes:
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(data, most)
    except zlib.error as error:
        raise FrameMalformedError(f"{what} does not decompress: {error}") from error
    if not reader.eof:
        raise FrameMalformedError(f"{what} has more than {most} bytes, or ends too early")
    return text


def keep(tx: Transaction, device_id: str, digest: str, kind: str, order: str, body: bytes) -> bool:
    """Keep a report, once.

    Args:
        tx: the transaction.
        device_id: the device.
        digest: SHA-256 of the body, in hexadecimal digits.
        kind: of the report.
        order: id of the order that asked for it; empty for a crash.
        body: a `ReportBody`, checked.

    Returns:
        Whether it is new.
    """
    session = tx.session
    if session.get(DeviceReportRow, (device_id, digest)) is not None:
        return False
    session.add(
        DeviceReportRow(
            device_id=device_id,
            digest=digest,
            kind=kind,
            order_id=order,
            received_s=tx.now_s,
            size=len(body),
            body=body,
        )
    )
    session.flush()
    _forget_oldest(session, device_id)
    return True


def of(session: Session, tenant: str, name: str) -> list[DeviceReport]:
    """A device's reports, the newest first; without their contents.

    Raises:
        MissingError: there is no such tenant or device.
    """
    device = devices.find(session, tenant, name)
    return [_report(row) for row in _rows(session, device.id)]


def find(session: Session, tenant: str, name: str, begins: str) -> DeviceReport:
    """One of a device's reports, with its content.

    Args:
        session: reads.
        tenant: the device's tenant, by name.
        name: the device.
        begins: the report's id, or its first digits.

    Raises:
        MissingError: there is no such tenant, device or report.
        ConflictError: several reports begin so.
    """
    device = devices.find(session, tenant, name)
    rows = list(_rows(session, device.id))
    found = [row for row in rows if begins and row.digest.startswith(begins.lower())]
    if not found:
        near = hint(begins, [row.digest[:12] for row in rows])
        raise MissingError(
            f"device '{name}' has no report {begins[:80]!r}{near} (cloud-server devices reports "
            f"{name})"
        )
    if len(found) > 1:
        raise ConflictError(f"{len(found)} reports begin with {begins[:80]!r}: give more digits")
    return _report(found[0], whole=True)


def log_of(session: Session, device_id: str, order: str) -> list[str]:
    """The lines that a device sent for an order, as far as they are there."""
    rows = session.scalars(
        select(DeviceReportRow).where(
            DeviceReportRow.device_id == device_id, DeviceReportRow.order_id == order
        )
    )
    pieces = sorted(
        (pb.ReportBody.FromString(row.body).log for row in rows), key=lambda piece: piece.index
    )
    return [line for piece in pieces for line in lines_of(piece)]


def attends(tx: Transaction, device_id: str, front_end: str, request: pb.AttendRequest) -> None:
    """A device begins to take orders."""
    row = tx.session.get(DeviceStandingRow, device_id)
    if row is None:
        row = DeviceStandingRow(device_id=device_id)
        tx.session.add(row)
    row.attended_s, row.left_s, row.front_end = tx.now_s, None, front_end[:128]
    row.agent_version = request.agent_version
    row.running = json.dumps(
        [
            {field: getattr(one, field) for field in ("kind", "name", "version", "sha256", "slot")}
            for one in request.running
        ]
    )
    _settle(row, request.settings)
    tx.session.flush()


def settled(tx: Transaction, device_id: str, settings: pb.Settings) -> None:
    """A device says how the service's settings stand on it."""
    row = tx.session.get(DeviceStandingRow, device_id)
    if row is not None:
        _settle(row, settings)


def leaves(tx: Transaction, device_id: str, front_end: str) -> None:
    """A device takes no orders from a front end any more."""
    row = tx.session.get(DeviceStandingRow, device_id)
    if row is not None and row.front_end == front_end[:128]:
        row.left_s = tx.now_s


def known(session: Session) -> int:
    """How many enabled devices of enabled tenants have taken orders once."""
    count = session.scalar(
        select(func.count())
        .select_from(DeviceStandingRow)
        .join(DeviceRow, DeviceRow.id == DeviceStandingRow.device_id)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .where(DeviceRow.disabled.is_(False), TenantRow.disabled.is_(False))
    )
    return int(count or 0)


def standings(session: Session) -> dict[str, tuple[float, float | None]]:
    """When each device began to take orders and when it stopped, by the device's id."""
    rows = session.execute(
        select(DeviceStandingRow.device_id, DeviceStandingRow.attended_s, DeviceStandingRow.left_s)
    ).tuples()
    return {id: (attended_s, left_s) for id, attended_s, left_s in rows}


def standing(session: Session, tenant: str, name: str) -> DeviceStanding | None:
    """What a device said of itself; None if it never took orders.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = session.get(DeviceStandingRow, devices.find(session, tenant, name).id)
    if row is None:
        return None
    return DeviceStanding(
        row.attended_s,
        row.left_s,
        row.front_end,
        row.agent_version,
        json.loads(row.running),
        row.revision,
        row.tried,
        json.loads(row.refused),
    )


def _settle(row: DeviceStandingRow, settings: pb.Settings) -> None:
    row.revision, row.tried = settings.revision, settings.tried
    row.refused = json.dumps(
        [{"name": one.name, "code": one.code, "message": one.message} for one in settings.refused]
    )


def _rows(session: Session, device_id: str) -> Iterator[DeviceReportRow]:
    yield from session.scalars(
        select(DeviceReportRow)
        .where(DeviceReportRow.device_id == device_id)
        .order_by(DeviceReportRow.received_s.desc(), DeviceReportRow.digest)
    )


def _report(row: DeviceReportRow, whole: bool = False) -> DeviceReport:
    body = pb.ReportBody.FromString(row.body)
    crash = lines = None
    if whole and row.kind == "log":
        lines = lines_of(body.log)
    elif whole:
        crash = crash_of(body.crash)
    return DeviceReport(
        row.digest,
        row.kind,
        body.at_s,
        row.received_s,
        row.size,
        row.order_id,
        crash,
        lines or (),
    )


def _forget_oldest(session: Session, device_id: str) -> None:
    """Keep within the bounds of the device, and of its tenant."""
    table = DeviceReportRow
    mine = select(table.digest, table.size).where(table.device_id == device_id)
    total = 0
    newest = session.execute(mine.order_by(table.received_s.desc(), table.digest)).tuples().all()
    for number, (digest, size) in enumerate(newest):
        total += size
        if number and (number >= MOST_OF_DEVICE or total > MOST_BYTES_OF_DEVICE):
            _drop(session, device_id, digest)
    tenant = select(DeviceRow.tenant_id).where(DeviceRow.id == device_id).scalar_subquery()
    siblings = select(DeviceRow.id).where(DeviceRow.tenant_id == tenant)
    of_tenant = table.device_id.in_(siblings)
    while (
        session.scalar(select(func.sum(table.size)).where(of_tenant)) or 0
    ) > MOST_BYTES_OF_TENANT:
        oldest = session.execute(
            select(table.device_id, table.digest).where(of_tenant).order_by(table.received_s)
        ).first()
        if oldest is None:
            return
        _drop(session, *oldest)


def _drop(session: Session, device_id: str, digest: str) -> None:
    session.execute(
        delete(DeviceReportRow).where(
            DeviceReportRow.device_id == device_id, DeviceReportRow.digest == digest
        )
    )
