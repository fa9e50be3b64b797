"""What the front end tells about requests: their metrics, their series by device.

One method for each thing that happens to a request, in the order in which it happens: `frame` or
`asked` → `accepted` → `answered` → `risky` → `sent`; or `refused` at any point.
"""

from __future__ import annotations

from cloud_server.engine.jobs import Accepted, Answered
from cloud_server.frontend.answers import Computation, Owner
from cloud_server.frontend.device_series import DeviceSeries
from cloud_server.genai_metrics import GenAiMetrics
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.errors import BridgeError, OverloadedError
from protos.header import Header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import OperatingPoint


class Telemetry:
    """Counts and times requests.

    Args:
        metrics: the service's metrics.
        devices: counts by device; None for no such series.
        genai: metrics under OpenTelemetry's names; None for none.

    Attributes:
        metrics: as given.
    """

    def __init__(
        self,
        metrics: Metrics,
        devices: DeviceSeries | None = None,
        genai: GenAiMetrics | None = None,
    ) -> None:
        self.metrics, self._devices, self._genai = metrics, devices, genai

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> Telemetry:
        """What the settings ask for."""
        devices = DeviceSeries(metrics, settings.device_series) if settings.device_series else None
        genai = None
        if settings.genai_metrics:
            genai = GenAiMetrics(metrics.registry, settings.model_path.name)
        return cls(metrics, devices, genai)

    def frame(
        self, owner: Owner, point: OperatingPoint, header: Header, size: int, question: str
    ) -> None:
        """An intact frame has come.

        Args:
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

    def asked(self, call: str) -> None:
        """A question has come without a frame.

        Args:
            call: ask or http.
        """
        self.metrics.questions.labels(call).inc()

    def accepted(self, said: Accepted) -> None:
        """The engine holds a scene."""
        stages = self.metrics.stages
        stages["queue"].observe(said.queue_s)
        stages["decode"].observe(said.decode_s)
        stages["project"].observe(said.project_s)
        stages["inject"].observe(said.inject_s)
        for name in said.warnings:
            self.metrics.warnings.labels(name).inc()

    def answered(self, bundle_id: str, said: Answered, has_frame: bool) -> None:
        """The engine has answered.

        Args:
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

    def risky(self, computation: Computation, risk: float | None) -> None:
        """The risk of an answer; None if it is unknown."""
        if risk is not None:
            self.metrics.risk.observe(risk, {"request_id": computation.request_id.hex()})
        if self._devices is not None:
            self._devices.answered(computation.owner, risk)

    def sent(self, computation: Computation, answer: pb.Answer) -> None:
        """An answer has left."""
        timings, example = answer.timings, {"request_id": computation.request_id.hex()}
        first_s, total_s = timings.ttft_ms / 1e3, timings.total_ms / 1e3
        self.metrics.first_token_seconds.observe(first_s, example)
        self.metrics.answer_seconds.observe(total_s, example)
        if self._genai is not None:
            self._genai.answered(first_s, total_s, answer.tokens)

    def refused(self, error: BridgeError, owner: Owner | None = None) -> None:
        """A request or a call was refused.

        Args:
            error: why.
            owner: who made it; None if that is unknown.
        """
        self.metrics.refusals.labels(error.name).inc()
        if isinstance(error, OverloadedError):
            self.metrics.overloads.labels(error.cause or "engine").inc()
        if self._devices is not None and owner is not None:
            self._devices.refused(owner)
