"""What the front end tells about requests: their metrics, series by device, event log, traces.

One method for each thing that happens to a request, in the order in which it happens: `frame` or
`asked` → `accepted` → `answered` → `risky` → `sent`; or `refused` at any point.
"""

from __future__ import annotations

from cloud_server.engine.jobs import Accepted, Answered, Compressed
from cloud_server.frontend.answers import Computation, Owner
from cloud_server.frontend.device_series import DeviceSeries
from cloud_server.frontend.event_log import EventLog
from cloud_server.frontend.tracing import Tracing
from cloud_server.genai_metrics import GenAiMetrics
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.errors import BridgeError, OverloadedError
from protos.header import Header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import OperatingPoint
from protos.process.logs import Logger
from protos.process.trace_export import Traces


class Telemetry:
    """Counts and times requests.

    Args:
        metrics: the service's metrics.
        devices: counts by device; None for no such series.
        genai: metrics under OpenTelemetry's names; None for none.
        events: gets a line for each event; None for none.
        tracing: makes their traces; None for none.

    Attributes:
        metrics, tracing: as given.
    """

    def __init__(
        self,
        metrics: Metrics,
        devices: DeviceSeries | None = None,
        genai: GenAiMetrics | None = None,
        events: EventLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.metrics, self._devices, self._genai = metrics, devices, genai
        self._events, self.tracing = events, tracing

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics, log: Logger) -> Telemetry:
        """What the settings ask for.

        Raises:
            ConfigError: the event log cannot be written, or OpenTelemetry's SDK is missing.
        """
        devices = DeviceSeries(metrics, settings.device_series) if settings.device_series else None
        genai = None
        if settings.genai_metrics:
            genai = GenAiMetrics(metrics.registry, settings.model_path.name)
        events = None
        if settings.event_log is not None:
            dropped = metrics.event_lines_dropped.inc
            events = EventLog(settings.event_log, settings.event_log_bytes, dropped)
        tracing = None
        if settings.otlp_endpoint:
            counted = metrics.traces.labels
            sender = Traces(settings, "neural-bridge", log, lambda why: counted(why).inc())
            tracing = Tracing(sender)
        return cls(metrics, devices, genai, events, tracing)

    def close(self) -> None:
        """Write what waits; takes a few seconds at most."""
        if self.tracing is not None:
            self.tracing.close()
        if self._events is not None:
            self._events.close()

    def frame(
        self,
        request_id: bytes,
        owner: Owner,
        point: OperatingPoint,
        header: Header,
        size: int,
        question: str,
    ) -> None:
        """An intact frame has come.

        Args:
            request_id: of its request.
            owner: who sent it.
            point: its operating point.
            header: its header.
            size: bytes of its payload.
            question: empty if it is only to be held.
        """
        metrics = self.metrics
        metrics.frames.labels(point.name).inc()
        (metrics.key_frames if header.base is None else metrics.delta_frames).inc()
        metrics.payload_bytes.labels(point.name).observe(size)
        if question:
            metrics.questions_infer.inc()
        if header.cause:
            metrics.fallbacks.labels(header.cause).inc()
        if point.kind != "picture":
            metrics.observe_state(header.kept_tokens, header.distortion)
        if self._devices is not None:
            self._devices.received(owner, size)
        if self._events is not None:
            lost = header.distortion
            figures = (
                lost.quantize,
                lost.dropped_attention,
                lost.latent_residual,
                lost.unfamiliarity,
            )
            self._events.note(
                "frame",
                id=request_id.hex(),
                who="/".join(owner),
                n=header.frame_number,
                point=point.name,
                kind="key" if header.base is None else "delta",
                bytes=size,
                kept=header.kept_tokens,
                lost=None if point.kind == "picture" else figures,
                cause=header.cause,
                q=bool(question),
            )

    def asked(self, call: str, request_id: bytes) -> None:
        """A question has come without a frame.

        Args:
            call: ask or http.
            request_id: of the question.
        """
        self.metrics.questions.labels(call).inc()
        if self._events is not None:
            self._events.note("asked", id=request_id.hex(), call=call)

    def accepted(self, computation: Computation, said: Accepted) -> None:
        """The engine holds a scene."""
        stages = self.metrics.stages
        stages["queue"].observe(said.queue_s)
        stages["decode"].observe(said.decode_s)
        stages["project"].observe(said.project_s)
        stages["inject"].observe(said.inject_s)
        for name in said.warnings:
            self.metrics.warnings.labels(name).inc()
        if self._events is not None:
            self._events.note(
                "accepted",
                id=computation.request_id.hex(),
                s=(said.queue_s, said.decode_s, said.project_s, said.inject_s),
                w=said.warnings,
            )
        if self.tracing is not None and computation.trace is not None:
            self.tracing.accepted(computation, computation.trace, said)

    def answered(
        self, computation: Computation, bundle_id: str, said: Answered, has_frame: bool
    ) -> None:
        """The engine has answered.

        Args:
            computation: the question.
            bundle_id: of the scene's bundle; empty for a picture.
            said: the engine's word.
            has_frame: whether the question came with a frame, whose queue was timed already.
        """
        metrics = self.metrics
        if not has_frame:
            metrics.stages["queue"].observe(said.queue_s)
        metrics.stages["prefill"].observe(said.prefill_s)
        metrics.stages["generate"].observe(said.generate_s)
        metrics.generated_tokens.inc(said.tokens)
        metrics.answers.labels(bundle_id).inc()
        if self._events is not None:
            self._events.note(
                "answered",
                id=computation.request_id.hex(),
                bundle=bundle_id,
                tokens=said.tokens,
                s=(None if has_frame else said.queue_s, said.prefill_s, said.generate_s),
            )
        if self.tracing is not None and computation.trace is not None:
            self.tracing.answered(computation, computation.trace, said)

    def risky(self, computation: Computation, risk: float | None) -> None:
        """The risk of an answer; None if it is unknown."""
        if risk is not None:
            self.metrics.risk.observe(risk, {"request_id": computation.request_id.hex()})
        if self._devices is not None:
            self._devices.answered(computation.owner, risk)
        if self._events is not None and risk is not None:
            self._events.note("risky", id=computation.request_id.hex(), risk=risk)
        if computation.trace is not None:
            computation.trace.risk = risk

    def sent(self, computation: Computation, answer: pb.Answer) -> None:
        """An answer has left."""
        timings, example = answer.timings, {"request_id": computation.request_id.hex()}
        first_s, total_s = timings.ttft_ms / 1e3, timings.total_ms / 1e3
        self.metrics.first_token_seconds.observe(first_s, example)
        self.metrics.answer_seconds.observe(total_s, example)
        if self._genai is not None:
            self._genai.answered(first_s, total_s, answer.tokens)
        if self._events is not None:
            self._events.note("sent", id=example["request_id"], first=first_s, total=total_s)
        if self.tracing is not None and computation.trace is not None:
            self.tracing.sent(computation, computation.trace, answer)

    def failed(self, computation: Computation, error: BridgeError) -> None:
        """A request that was begun was refused; `refused` counts it."""
        if self.tracing is not None and computation.trace is not None:
            self.tracing.refused(computation, computation.trace, error)

    def fed_back(self, request_id: bytes, point: str, said: Compressed) -> None:
        """A scene's state goes back to a device.

        Args:
            request_id: of the request for it.
            point: name of its operating point.
            said: the engine's word.
        """
        metrics = self.metrics
        metrics.stages["queue"].observe(said.queue_s)
        metrics.stages["compress"].observe(said.compress_s)
        metrics.sent_back_bytes.labels(point).observe(len(said.body))
        metrics.feedbacks.labels(point).inc()
        if self._events is not None:
            self._events.note(
                "fed_back",
                id=request_id.hex(),
                point=point,
                bytes=len(said.body),
                s=(said.queue_s, said.compress_s),
            )

    def refused(
        self, error: BridgeError, request_id: bytes = b"", owner: Owner | None = None
    ) -> None:
        """A request or a call was refused.

        Args:
            error: why.
            request_id: of the request; empty if that is unknown, and for a call.
            owner: who made it; None if that is unknown.
        """
        cause = (error.cause or "engine") if isinstance(error, OverloadedError) else None
        self.metrics.refusals.labels(error.name).inc()
        if cause is not None:
            self.metrics.overloads.labels(cause).inc()
        if self._events is not None:
            self._events.note("refused", id=request_id.hex(), error=error.name, cause=cause)
        if self._devices is not None and owner is not None:
            self._devices.refused(owner)
