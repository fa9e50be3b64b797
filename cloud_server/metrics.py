"""What the service counts and times, under the names Prometheus sees.

Knows names, units and buckets: base unit last (`_seconds`, `_bytes`), `_total` only on counters.
Knows nothing of who counts. Only the front end has one; the engine's figures arrive with its
messages.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "neural_bridge_cloud_"
STAGES = ("queue", "decode", "project", "inject", "prefill", "generate", "compress")
OVERLOADS = ("credit", "share", "queue", "pushed_out", "pictures", "negotiations")
LEFT = ("cancelled", "deadline", "lost", "never_back")
_SECONDS = (
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)
_BYTES = (16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576)
_RATIO = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (1, 2, 4, 8, 12, 16, 24, 36, 64, 128, 256, 1024)


class Metrics:
    """Every metric of one service, in a registry of its own (so that tests may have many)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.stage_seconds = self._histogram(
            "stage_seconds", "Time one frame or question spent in one stage", _SECONDS, "stage"
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.first_token_seconds = self._histogram(
            "first_token_seconds",
            "Last byte of a request received, to the first token of its answer leaving",
            _SECONDS,
        )
        self.answer_seconds = self._histogram(
            "answer_seconds", "Last byte of a request received, to its answer leaving", _SECONDS
        )
        self.frames = self._counter("frames_total", "Intact frames received, by point", "point")
        self.fallbacks = self._counter(
            "fallbacks_total",
            "Pictures received in the place of frames (distortion, unfamiliar, degenerate)",
            "cause",
        )
        self.warnings = self._counter(
            "warnings_total",
            "Pictures received that show nothing to answer from (degenerate)",
            "cause",
        )
        self.frame_kinds = self._counter(
            "frame_kinds_total", "Intact frames received, by kind: key or delta", "kind"
        )
        self.questions = self._counter(
            "questions_total", "Questions received, by the call they came with", "call"
        )
        self.received_bytes = self._counter(
            "received_bytes_total", "Message bytes received, bad frames included", "call"
        )
        self.payload_bytes = self._histogram(
            "payload_bytes", "Payload of one frame", _BYTES, "point"
        )
        self.kept_tokens = self._histogram("kept_tokens", "Image tokens kept in one frame", _TOKENS)
        self.quantization_error = self._histogram(
            "quantization_error_ratio", "Relative L2 error of the quantized latents", _RATIO
        )
        self.dropped_attention = self._histogram(
            "dropped_attention_ratio", "Attention mass of the dropped tokens", _RATIO
        )
        self.latent_residual = self._histogram(
            "latent_residual_ratio", "Share of the normalised cache outside the latents", _RATIO
        )
        self.unfamiliarity = self._histogram(
            "unfamiliarity_ratio",
            "Distance from the calibration statistics (Mahalanobis, per root latent)",
            (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
        )
        self.feedbacks = self._counter(
            "feedbacks_total", "States sent back to an edge, by point", "point"
        )
        self.sent_back_bytes = self._histogram(
            "sent_back_bytes", "Payload of one state sent back", _BYTES, "point"
        )
        self.answers = self._counter("answers_total", "Questions answered, by bundle", "bundle")
        self.answers_from_memory = self._counter(
            "answers_from_memory_total", "Repeated request ids answered without computing"
        )
        self.joined = self._counter(
            "joined_requests_total", "Repeated request ids that joined their running computation"
        )
        self.generated_tokens = self._counter("generated_tokens_total", "Answer tokens generated")
        self.refusals = self._counter(
            "refusals_total", "Requests and calls refused, by error name", "reason"
        )
        self.overloads = self._counter(
            "overloads_total", "Requests and calls refused as overload, by what was full", "cause"
        )
        for cause in OVERLOADS:
            self.overloads.labels(cause)
        self.left = self._counter(
            "left_requests_total", "Requests that nobody waited for any more, by how", "how"
        )
        for how in LEFT:
            self.left.labels(how)
        self.sessions_dropped = self._counter(
            "sessions_dropped_total", "Sessions that others pushed out, or whose bundle went"
        )
        self.negotiations = self._counter(
            "negotiations_total", "Sessions opened, by bundle", "bundle"
        )
        self.bundle_doubtful = Gauge(
            PREFIX + "bundle_doubtful",
            "1 for a served bundle whose certificate does not say that its map beats its controls",
            ("bundle", "verdict"),
            registry=self.registry,
        )
        self.log_lines_dropped = self._counter(
            "log_lines_dropped_total",
            "Log lines that standard error did not take, by process: frontend or engine",
            "process",
        )
        for process in ("frontend", "engine"):
            self.log_lines_dropped.labels(process)
        self.engine_restarts = self._counter(
            "engine_restarts_total", "Engine processes started after the first"
        )
        self.canaries = self._counter(
            "canaries_total",
            "Questions of our own to the engine, by outcome: answered, overtaken (others were "
            "answered meanwhile), refused, failed or late",
            "outcome",
        )
        self.answering = self._gauge(
            "answering", "1 while the last question, a device's or our own, was answered"
        )
        self.engine_up = self._gauge("engine_up", "1 while the engine takes requests")
        self.queue_depth = self._gauge("queue_depth", "Requests held for the engine, unanswered")
        self.left_queue = self._gauge(
            "left_queue_depth", "Requests whose callers are gone and may come back"
        )
        self.running = self._gauge("running_requests", "Questions in the engine's running batch")
        self.sessions = self._gauge("sessions", "Sessions held")
        self.fresh_sessions = self._gauge(
            "fresh_sessions", "Sessions held that have brought no good frame yet"
        )
        self.scenes = self._gauge("scenes", "Scenes that the engine holds")
        self.scene_bytes = self._gauge("scene_memory_bytes", "Memory of the scenes held")
        self.pool_bytes = self._gauge(
            "pool_memory_bytes", "Memory set aside for scenes and latents, used or free"
        )
        self.resident_bytes = self._gauge(
            "resident_memory_bytes",
            "Memory of one process that is in RAM: front_end, engine or spare",
            "process",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)
