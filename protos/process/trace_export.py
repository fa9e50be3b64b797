"""Sends the traces worth keeping to an OpenTelemetry collector (OTLP over HTTP).

A thread turns a kept trace into OpenTelemetry's spans; its SDK sends them in batches. A collector
that is slow or gone costs traces, never requests: every queue is bounded, and closing takes no
longer than `CLOSE_S`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from protos.errors import ConfigError
from protos.process.logs import Logger
from protos.process.settings import installed_version
from protos.process.trace import Rules, Trace
from protos.process.trace_settings import TraceSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CLOSE_S = 1.0
"""Longest time that `close` takes, seconds."""
_MOST_WAITING = 256  # kept traces that wait for the thread
_MOST_SPANS, _BATCH = 2048, 512
_MOST_PER_S = 50.0
"""Kept traces a second; in a flood of slow or refused requests the rest is only counted."""
_EVERY_MS = 1000.0
_SEND_S = 2.0  # for one batch, attempts included
_PATH = "/v1/traces"


class Traces:
    """Makes traces and sends those worth keeping.

    Args:
        settings: where to, and which ones.
        name: service name of this process, as OpenTelemetry has it.
        log: a bound logger.
        counted: called with why a trace was kept (`WHY`), or with `dropped`.
        resource: further attributes of this process.

    Raises:
        ConfigError: OpenTelemetry's SDK is not installed.
    """

    def __init__(
        self,
        settings: TraceSettings,
        name: str,
        log: Logger,
        counted: Callable[[str], None] = lambda _: None,
        resource: Mapping[str, str] | None = None,
    ) -> None:
        self.rules = Rules(settings.trace_share, settings.trace_slow_s, settings.trace_risk)
        self._name, self._log, self._counted = name, log, counted
        self._resource = dict(resource or {})
        self._sender = _Sender(settings.otlp_endpoint, self._resource_of)
        self._waiting: deque[tuple[Trace, int]] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._left, self._at = _MOST_PER_S, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def end(self, trace: Trace, took_s: float, refused: bool = False) -> None:
        """A request has ended: send its trace, or forget it.

        Args:
            trace: its spans are noted.
            took_s: how long it took, seconds.
            refused: whether it ended with an error.
        """
        why = self.rules.why(trace.id, took_s, refused, trace.risk)
        if not why:
            return
        now = time.monotonic()
        self._left = min(_MOST_PER_S, self._left + (now - self._at) * _MOST_PER_S)
        self._at = now
        with self._news:
            full = self._left < 1.0 or len(self._waiting) >= _MOST_WAITING or self._closed
            if not full:
                self._left -= 1.0
                self._waiting.append((trace, time.time_ns() - time.monotonic_ns()))
                self._news.notify()
        self._counted("dropped" if full else why)

    def close(self) -> None:
        """Send what waits, in `CLOSE_S` at most; the rest is lost."""
        until = time.monotonic() + CLOSE_S
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(CLOSE_S)
        closing = threading.Thread(target=self._sender.close, name="traces-end", daemon=True)
        closing.start()
        closing.join(max(0.0, until - time.monotonic()))
        if closing.is_alive():
            self._log.warning("traces_lost", cause="the collector did not take them in time")
            self._sender.give_up()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                trace, offset_ns = self._waiting.popleft()
            try:
                self._sender.send(trace, offset_ns)
            except Exception as error:  # a fault here must not end a request's process
                self._log.warning("trace_lost", cause=repr(error))

    def _resource_of(self, by: str) -> dict[str, str]:
        name = f"{self._name}-{by}" if by else self._name
        return {
            "service.name": name,
            "service.namespace": "neural_bridge",
            "service.version": installed_version(),
            **self._resource,
        }


class _Sender:
    """OpenTelemetry's SDK, fed with finished traces; `send` is for one thread.

    Args:
        endpoint: URL of the collector.
        resource_of: attributes of a process, by its short name.
    """

    def __init__(self, endpoint: str, resource_of: Callable[[str], dict[str, str]]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import IdGenerator
        except ImportError as error:
            raise ConfigError(
                "traces need OpenTelemetry's SDK: pip install 'neural-bridge[otlp]', or leave out "
                f"--otlp-endpoint ({error})"
            ) from error

        class Ids(IdGenerator):
            """Gives the ids that were derived."""

            trace, span = 0, 0

            def generate_trace_id(self) -> int:
                return self.trace

            def generate_span_id(self) -> int:
                return self.span

        self._ids, self._resource_of = Ids(), resource_of
        address = endpoint.rstrip("/")
        address = address if address.endswith(_PATH) else address + _PATH
        self._exporter: Any = OTLPSpanExporter(endpoint=address, timeout=_SEND_S)
        self._processor: Any = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_MOST_SPANS,
            schedule_delay_millis=_EVERY_MS,
            max_export_batch_size=_BATCH,
        )
        self._providers: dict[str, TracerProvider] = {}

    def send(self, trace: Trace, offset_ns: int) -> None:
        """Give a trace's spans to the SDK.

        Args:
            trace: a finished one.
            offset_ns: from the host's monotonic clock to the time since 1970.
        """
        from opentelemetry import trace as api

        def context(span: bytes, remote: bool) -> Any:
            ids = int.from_bytes(trace.id, "big"), int.from_bytes(span, "big")
            made = api.SpanContext(*ids, remote, api.TraceFlags(api.TraceFlags.SAMPLED))
            return api.set_span_in_context(api.NonRecordingSpan(made))

        for one in trace.spans:
            self._ids.trace = int.from_bytes(trace.id, "big")
            self._ids.span = int.from_bytes(trace.span_id(one.name), "big")
            above = None
            if one.parent:
                above = context(trace.span_id(one.parent), False)
            elif trace.parent is not None:
                above = context(trace.parent, True)
            begun = (
                self._provider(one.by)
                .get_tracer("neural_bridge")
                .start_span(
                    one.name,
                    context=above,
                    kind=api.SpanKind.SERVER if above and not one.parent else api.SpanKind.INTERNAL,
                    attributes=dict(one.attributes),
                    start_time=one.begin_ns + offset_ns,
                )
            )
            if error := one.attributes.get("error.type"):
                begun.set_status(api.Status(api.StatusCode.ERROR, str(error)))
            begun.end(one.end_ns + offset_ns)

    def close(self) -> None:
        """Send what waits; may take long."""
        self._processor.shutdown()

    def give_up(self) -> None:
        """Send nothing more."""
        with contextlib.suppress(Exception):  # of a thread that is sending
            self._exporter.shutdown()

    def _provider(self, by: str) -> TracerProvider:
        if by not in self._providers:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            made = TracerProvider(
                sampler=ALWAYS_ON,
                resource=Resource.create(dict(self._resource_of(by))),
                shutdown_on_exit=False,
                id_generator=self._ids,
            )
            made.add_span_processor(self._processor)
            self._providers[by] = made
        return self._providers[by]
