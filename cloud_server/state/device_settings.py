"""The settings that devices are to have from the service: one function for each verb."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.state import devices, orders
from cloud_server.state.orders import DeviceOrder
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceSettingsRow, DeviceStandingRow
from protos.errors import ConfigError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.remote import LONGEST_SETTINGS, checked_settings


@dataclass(frozen=True)
class WantedSettings:
    """What a device is to have.

    Attributes:
        revision: counts up with each change; 0: nothing was ever wanted.
        settings: by name.
        changed_s: seconds since 1970; None before the first change.
        changed_by: who, as the audit log names them.
    """

    revision: int
    settings: dict[str, Any]
    changed_s: float | None = None
    changed_by: str = ""


def show(session: Session, tenant: str, name: str) -> WantedSettings:
    """The settings that a device is to have.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = session.get(DeviceSettingsRow, devices.find(session, tenant, name).id)
    if row is None:
        return WantedSettings(0, {})
    return WantedSettings(row.revision, json.loads(row.settings), row.changed_s, row.changed_by)


def change(
    tx: Transaction,
    tenant: str,
    name: str,
    values: Mapping[str, Any],
    unset: Collection[str] = (),
    whole: bool = False,
) -> tuple[WantedSettings, DeviceOrder]:
    """Change the settings that a device is to have, and order it to take them.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        name: the device.
        values: settings by name: text, numbers, truth values, or lists of text.
        unset: names of settings that go back to the device's own.
        whole: whether `values` replaces all earlier settings.

    Raises:
        MissingError: there is no such tenant or device.
        ConfigError: a name is none that a service may ever set, or the settings are too long.
    """
    checked_settings(values)
    before = show(tx.session, tenant, name)
    kept = {} if whole else {key: one for key, one in before.settings.items() if key not in unset}
    settings = dict(sorted({**kept, **values}.items()))
    text = json.dumps(settings, ensure_ascii=False)
    if len(text.encode()) > LONGEST_SETTINGS:
        raise ConfigError(f"the settings take more than {LONGEST_SETTINGS} bytes")
    device = devices.find(tx.session, tenant, name)
    standing = tx.session.get(DeviceStandingRow, device.id)
    tried = 0 if standing is None else max(standing.tried, standing.revision)
    revision = 1 + max(before.revision, tried)
    _keep(tx, device.id, revision, text)
    order = _order(tx, device.id, revision, text)
    tx.audit("device.configure", tenant, name, order=order.id, revision=revision, settings=text)
    return WantedSettings(revision, settings, tx.now_s, tx.actor), order


def remind(tx: Transaction, device_id: str, tried: int) -> None:
    """Order a device again to take its settings, if it has tried older ones, or unknown ones.

    Args:
        tx: the transaction.
        device_id: the device.
        tried: newest revision that it has tried.
    """
    row = tx.session.get(DeviceSettingsRow, device_id)
    if row is None or row.revision == tried:
        return
    waits = orders.waiting(tx.session, [device_id], tx.now_s).get(device_id, {})
    if any(pb.Order.FromString(body).HasField("configure") for body in waits.values()):
        return
    if tried > row.revision:  # the database was restored from before that revision
        row.revision = tried + 1
    _order(tx, device_id, row.revision, row.settings)


def _keep(tx: Transaction, device_id: str, revision: int, text: str) -> None:
    row = tx.session.get(DeviceSettingsRow, device_id)
    if row is None:
        row = DeviceSettingsRow(device_id=device_id)
        tx.session.add(row)
    row.revision, row.settings = revision, text
    row.changed_s, row.changed_by = tx.now_s, tx.actor
    tx.session.flush()


def _order(tx: Transaction, device_id: str, revision: int, text: str) -> DeviceOrder:
    configure = pb.Configure(revision=revision, settings_json=text)
    return orders.put(tx, device_id, pb.Order(configure=configure))


def revisions(session: Session) -> dict[str, int]:
    """The wanted revision of each device that has one, by the device's id."""
    query = select(DeviceSettingsRow.device_id, DeviceSettingsRow.revision)
    return dict(session.execute(query).tuples().all())
