"""`/v1/devices/{name}/…`: orders for a device, its reports, and the settings that it is to have."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.attempt import Attempted
from cloud_server.api.admin.management import Change, Management, Named, OfTenant
from cloud_server.api.visit import caller_of
from cloud_server.api.whole import WHOLE
from cloud_server.state import device_reports, device_settings, devices, orders
from cloud_server.state.device_reports import DeviceReport
from cloud_server.state.orders import DeviceOrder
from cloud_server.state.store import Transaction
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.remote import LONGEST_CAMERA, SETTABLE

Text = Annotated[str, Field(max_length=256)]
Value = Text | bool | int | float | Annotated[list[Text], Field(max_length=16)]
"""Value of a setting."""
Begins = Annotated[str, Path(pattern="^[0-9a-f]{4,64}$", description="an id, or its first digits")]


class OrderEntry(BaseModel):
    """An order; times are seconds since 1970."""

    id: str
    kind: str = Field(description="configure, restart, send_logs, capture or update")
    asked: dict[str, Any]
    state: str = Field(description="waiting, sent, done, refused, expired, replaced or cancelled")
    cause: str = Field(description="what the device said, or why it ended")
    given_s: float
    given_by: str
    expires_s: float
    sent_s: float | None
    ended_s: float | None

    @classmethod
    def of(cls, one: DeviceOrder) -> OrderEntry:
        """From the database's."""
        return cls(**vars(one))


class OrderEntries(BaseModel):
    """A device's orders, the newest first."""

    data: list[OrderEntry]


class OrderLog(BaseModel):
    """The lines of the log that a device sent for an order."""

    lines: list[str]


class Logs(Change):
    """Which lines of its log a device sends."""

    lines: Annotated[int, Field(ge=1, le=100_000), WHOLE] = 200
    since_s: float = Field(0.0, ge=0, le=1e11, description="seconds since 1970")


class RestartOrder(Change):
    """The agent is to start again."""

    restart: Literal[True]

    def message(self) -> pb.Order:
        """The order as it travels."""
        return pb.Order(restart=pb.Restart())


class LogOrder(Change):
    """The device is to send the newest lines of its log."""

    send_logs: Logs

    def message(self) -> pb.Order:
        """The order as it travels."""
        asked = pb.SendLogs(lines=self.send_logs.lines, since_s=self.send_logs.since_s)
        return pb.Order(send_logs=asked)


class CaptureOrder(Change):
    """A camera is to take a picture."""

    capture: str = Field(max_length=LONGEST_CAMERA, description="the camera; empty for every one")

    def message(self) -> pb.Order:
        """The order as it travels."""
        return pb.Order(capture=pb.TakePicture(camera=self.capture))


class ReportEntry(BaseModel):
    """A report of a device; times are seconds since 1970."""

    id: str
    kind: str = Field(description="exception, fault, killed or power for a crash; log")
    at_s: float = Field(description="by the device's clock")
    received_s: float
    size: int
    order: str = Field(description="the order that asked for it; empty for a crash")

    @classmethod
    def of(cls, one: DeviceReport) -> ReportEntry:
        """From the database's."""
        return cls(**{name: getattr(one, name) for name in cls.model_fields})


class ReportEntries(BaseModel):
    """A device's reports, the newest first."""

    data: list[ReportEntry]


class ReportWithContent(ReportEntry):
    """A report and what is in it."""

    crash: dict[str, Any] | None
    lines: list[str]

    @classmethod
    def of(cls, one: DeviceReport) -> ReportWithContent:
        """From the database's."""
        return cls(**{**vars(one), "lines": list(one.lines)})


class SettingsChange(Change):
    """Settings that a device is to have."""

    settings: dict[Literal[SETTABLE], Value] = Field(  # type: ignore[valid-type]
        default_factory=dict, description="by name, as in the agent's settings file"
    )
    unset: list[str] = Field(default_factory=list, max_length=64)
    whole: bool = Field(False, description="whether `settings` replaces all earlier ones")


class SettingsEntry(BaseModel):
    """The settings that a device is to have, and those that it has."""

    revision: int = Field(description="counts up with each change; 0 before the first")
    settings: dict[str, Any]
    in_force: int = Field(description="the revision that the device has in force")
    tried: int = Field(description="the newest revision that the device has tried")
    refused: list[dict[str, Any]] = Field(description="what it did not take: name, code, message")


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/devices/{name}", tags=["management"])

    @made.get("/orders")
    def list_orders(request: Request, name: Named, tenant: OfTenant = None) -> OrderEntries:
        """List a device's orders, the newest first."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            found = orders.of(session, of, name, time.time())
        return OrderEntries(data=[OrderEntry.of(one) for one in found])

    @made.post("/orders", status_code=201)
    def give_order(
        attempt: Attempted,
        name: Named,
        body: RestartOrder | LogOrder | CaptureOrder,
        tenant: OfTenant = None,
    ) -> OrderEntry:
        """Give a device an order; it waits until the device is connected."""
        message = body.message()
        return management.change_of(
            attempt,
            tenant,
            OrderEntry,
            lambda tx, of: OrderEntry.of(orders.give(tx, of, name, message)),
        )

    @made.delete("/orders/{id}")
    def cancel_order(
        attempt: Attempted, name: Named, id: Begins, tenant: OfTenant = None
    ) -> OrderEntry:
        """Take back an order that waits."""
        return management.change_of(
            attempt,
            tenant,
            OrderEntry,
            lambda tx, of: OrderEntry.of(orders.cancel(tx, of, name, id)),
        )

    @made.get("/orders/{id}/log")
    def read_log(request: Request, name: Named, id: Begins, tenant: OfTenant = None) -> OrderLog:
        """Read the lines of the log that a device sent for an order."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            device = devices.find(session, of, name)
            return OrderLog(lines=device_reports.log_of(session, device.id, id))

    @made.get("/reports")
    def list_reports(request: Request, name: Named, tenant: OfTenant = None) -> ReportEntries:
        """List a device's crash reports and pieces of its log, the newest first."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            found = device_reports.of(session, of, name)
        return ReportEntries(data=[ReportEntry.of(one) for one in found])

    @made.get("/reports/{id}")
    def show_report(
        request: Request, name: Named, id: Begins, tenant: OfTenant = None
    ) -> ReportWithContent:
        """Show one of a device's reports."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            return ReportWithContent.of(device_reports.find(session, of, name, id))

    @made.get("/settings")
    def show_settings(request: Request, name: Named, tenant: OfTenant = None) -> SettingsEntry:
        """Show the settings that a device is to have from the service, and those that it has."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            wanted = device_settings.show(session, of, name)
            stands = device_reports.standing(session, of, name)
        return SettingsEntry(
            revision=wanted.revision,
            settings=wanted.settings,
            in_force=0 if stands is None else stands.revision,
            tried=0 if stands is None else stands.tried,
            refused=[] if stands is None else stands.refused,
        )

    @made.patch("/settings")
    def change_settings(
        attempt: Attempted, name: Named, body: SettingsChange, tenant: OfTenant = None
    ) -> OrderEntry:
        """Change the settings that a device is to have; the device has the last word on each."""

        def act(tx: Transaction, of: str) -> OrderEntry:
            _, order = device_settings.change(tx, of, name, body.settings, body.unset, body.whole)
            return OrderEntry.of(order)

        return management.change_of(attempt, tenant, OrderEntry, act)

    return made
