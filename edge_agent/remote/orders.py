"""Carries out the service's orders, each once, as far as this device's settings allow it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from edge_agent.device import log_ring
from edge_agent.device.reload import CHANGEABLE, Reload
from edge_agent.metrics import Metrics
from edge_agent.remote import order_book
from edge_agent.remote.kept import RemoteSettings, short
from edge_agent.remote.order_book import OrderBook
from edge_agent.remote.overlay import Overlaid, overlaid
from edge_agent.remote.report import pieces_of
from edge_agent.settings import Settings
from protos.errors import BridgeError, ConfigError, ConflictError, MissingError
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.logs import Logger
from protos.remote import LONGEST_SETTINGS
from protos.strict_json import read_json

Send: TypeAlias = Callable[[bridge_pb2.ReportBody], Awaitable[None]]
Handler: TypeAlias = Callable[[str, Any, Send], Awaitable[bridge_pb2.Outcome | None]]
"""Carries out one kind of order: takes its id, its message, and what sends reports. Returns how it
ended, or None if the next start tells. Raises a retryable error to be called again."""
_HARMLESS = ("send_logs", "capture")
"""Orders that are carried out also if the disk does not keep them: twice does no harm."""
_MOST_LINES, _MOST_LOG_BYTES = 5000, 1 << 20
_USUAL_LINES = 1000


@dataclass
class Orders:
    """Carries out the orders of one agent.

    Attributes:
        remote: the service's settings.
        book: orders that are known.
        reload: changes what can change while the agent runs.
        logs: folder of the log; None without one.
        end: ends the agent once what is in flight has ended.
        capture: has a camera's next picture taken; empty for every camera.
        metrics: what is counted.
        log: structured logger.
        handlers: by kind of order; others may add theirs.
    """

    remote: RemoteSettings
    book: OrderBook
    reload: Reload
    logs: Path | None
    end: Callable[[], None]
    capture: Callable[[str], None]
    metrics: Metrics
    log: Logger
    handlers: dict[str, Handler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.handlers = {
            "configure": self._configure,
            "restart": self._restart,
            "send_logs": self._send_logs,
            "capture": self._capture,
            **self.handlers,
        }
        for known in self.book.begun_before():
            self._after_start(known)

    @property
    def now(self) -> Settings:
        """The settings in use."""
        return self.reload.now

    async def take(self, order: bridge_pb2.Order, send: Send) -> None:
        """Carry out one order, unless it is known."""
        id, kind = order.id.hex(), order.WhichOneof("order") or ""
        if len(order.id) != 16:
            return
        if self.book.knows(id):
            self.book.tell_again(id)
            return
        try:
            self.book.begin(id, kind)
        except BridgeError as error:
            self.log.error("order_not_kept", order=id, kind=kind, cause=error.message)
            if isinstance(error, ConflictError):
                return  # until the service knows how others ended
            if kind not in _HARMLESS:
                await send(bridge_pb2.ReportBody(outcome=order_book.refused(id, error)))
                return
            self.book.note(id, kind)
        self.log.warning("order", order=id, kind=kind)
        try:
            handler = self.handlers.get(kind)
            if handler is None:
                raise order_book.unknown(kind)
            outcome = await handler(id, getattr(order, kind), send)
        except BridgeError as error:
            if error.retryable:
                self.book.forget(id)  # it comes again
                raise
            outcome = order_book.refused(id, error)
        except Exception as error:
            self.log.error("order_failed", order=id, kind=kind, cause=repr(error))
            outcome = order_book.refused(id, BridgeError(f"{type(error).__name__}: {error}"))
        if outcome is not None:
            self._ended(id, kind, outcome)

    def confirm(self) -> None:
        """The service hears the agent: settings on trial are in force."""
        try:
            trial = self.remote.confirm()
        except BridgeError as error:
            self.log.warning("remote_settings_not_kept", cause=error.message)
            return
        self.metrics.remote_revision.set(self.remote.revision)
        if trial is not None:
            taken = () if self.remote.shown is None else self.remote.shown.taken
            self.log.warning("remote_settings", revision=trial.revision, taken=sorted(taken))
            if self.book.knows(trial.order):
                self._ended(trial.order, "configure", self._configured(trial.order))

    def give_up(self, cause: str) -> None:
        """Settings on trial do not work: go back to those before, which takes a start."""
        try:
            self.remote.back(cause)
        except BridgeError as error:
            self.log.warning("remote_settings_not_kept", cause=error.message)
        self.log.error("remote_settings_taken_back", cause=cause)
        self._start_again()

    def _after_start(self, known: order_book.Known) -> None:
        """Settle an order that an earlier process began."""
        trial, failed = self.remote.trial, self.remote.failed
        if known.kind == "restart":
            self._ended(known.id, known.kind, order_book.done(known.id, "the agent started again"))
        elif failed is not None and failed.order == known.id:
            error = ConfigError(f"revision {failed.revision} is taken back: {failed.cause}")
            outcome = order_book.refused(known.id, error)
            outcome.settings.CopyFrom(self.remote.standing())
            self._ended(known.id, known.kind, outcome)
        elif trial is None or trial.order != known.id:
            self.book.forget(known.id)  # nothing was done: it comes again

    def _ended(self, id: str, kind: str, outcome: bridge_pb2.Outcome) -> None:
        how = "done" if outcome.HasField("done") else "refused"
        self.metrics.orders.labels(kind or "unknown", how).inc()
        self.log.warning(
            "order_ended", order=id, kind=kind, how=how,
            cause=outcome.done or outcome.refused.message,
        )  # fmt: skip
        self.book.end(id, outcome)

    # ------------------------------------------------------------------ kinds of orders

    async def _restart(self, id: str, asked: bridge_pb2.Restart, send: Send) -> None:
        self.now.remote.require("restart")
        self._start_again()

    async def _send_logs(
        self, id: str, asked: bridge_pb2.SendLogs, send: Send
    ) -> bridge_pb2.Outcome:
        self.now.remote.require("logs")
        if self.logs is None:
            raise MissingError("this agent keeps no log on its disk (log_bytes = 0)")
        lines = await asyncio.to_thread(
            log_ring.tail,
            self.logs,
            min(asked.lines or _USUAL_LINES, _MOST_LINES),
            asked.since_s,
            _MOST_LOG_BYTES,
        )
        for piece in pieces_of(bytes.fromhex(id), lines):
            await send(bridge_pb2.ReportBody(log=piece))
        return order_book.done(id, f"{len(lines)} lines")

    async def _capture(
        self, id: str, asked: bridge_pb2.TakePicture, send: Send
    ) -> bridge_pb2.Outcome:
        self.now.remote.require("capture")
        self.capture(asked.camera)
        return order_book.done(id, "asked for the next picture")

    async def _configure(
        self, id: str, asked: bridge_pb2.Configure, send: Send
    ) -> bridge_pb2.Outcome | None:
        values = read_json(asked.settings_json, LONGEST_SETTINGS, "the settings of an order")
        if not isinstance(values, dict):
            raise ConfigError("the settings of an order are a JSON object")
        if asked.revision < self.remote.revision:
            raise ConflictError(
                f"revision {asked.revision} is older than {self.remote.revision}, in force here"
            )
        before = self.remote.shown
        made = overlaid(self.remote.own(), values)
        self.reload.require_usable(made.settings)
        names = {*values, *(() if before is None else (*before.taken, *before.refused))}
        differ = {
            name
            for name in names & set(Settings.model_fields)
            if getattr(made.settings, name) != getattr(self.now, name)
        }
        if differ - set(CHANGEABLE):
            self.remote.attempt(asked.revision, values, id)
            self._start_again()
            return None
        self.reload.take(made.settings)  # raises before anything changes
        self.remote.take(asked.revision, values)
        self.remote.shown = made
        self.metrics.remote_revision.set(asked.revision)
        return self._configured(id)

    def _configured(self, id: str) -> bridge_pb2.Outcome:
        """How an order `configure` ended: refused if anything of it was."""
        shown = self.remote.shown or Overlaid(self.now, (), {})
        if not shown.refused:
            outcome = order_book.done(id, f"took {', '.join(sorted(shown.taken)) or 'none'}")
        else:
            first = next(iter(shown.refused.values()))
            told = "; ".join(error.message for error in shown.refused.values())
            taken = ", ".join(sorted(shown.taken)) or "none"
            outcome = order_book.refused(id, type(first)(short(f"{told} (taken: {taken})")))
        outcome.settings.CopyFrom(self.remote.standing())
        return outcome

    def _start_again(self) -> None:
        self.remote.wants_restart = True
        self.end()
