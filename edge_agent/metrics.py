"""What the agent counts and times, under the names Prometheus sees.

Knows names, units and buckets: base unit last (`_seconds`, `_bytes`), `_total` only on counters.
Knows nothing of who counts.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protos.process.memory import resident_bytes

PREFIX = "neural_bridge_edge_"
STAGES = ("read", "prefill", "select", "encode", "uplink", "edge_only", "feedback")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BYTES = (16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576)
_RATIO = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (1, 2, 4, 8, 12, 16, 24, 36, 64, 128, 256, 1024)


class Metrics:
    """Every metric of one agent, in a registry of its own (so that tests may have many)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.stage_seconds = Histogram(
            PREFIX + "stage_seconds",
            "Time spent in one stage of one frame (uplink: sent until its terminal event; "
            "feedback: asked for the state until it is injected)",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.log_lines_dropped = self._counter(
            "log_lines_dropped_total", "Log lines that standard error did not take"
        )
        self.captures = self._counter("captures_total", "Captures taken from the source")
        self.capture_errors = self._counter(
            "capture_errors_total", "Captures that were no picture or could not be encoded", "error"
        )
        self.entries_skipped = self._counter(
            "source_entries_skipped_total", "Entries of the source's folder passed over", "kind"
        )
        self.frames_sent = self._counter(
            "frames_sent_total", "Frames written to a stream, resends included", "point"
        )
        self.frames_coded = self._counter(
            "frames_coded_total", "Frames coded, by kind: key or delta", "kind"
        )
        self.sent_bytes = self._counter(
            "sent_bytes_total", "Message bytes written to a stream, resends included"
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
        self.risk = self._histogram(
            "risk_ratio", "Probability that a frame is answered otherwise than its picture", _RATIO
        )
        self.warnings = self._counter(
            "warnings_total", "Captures that show nothing to answer from (degenerate)", "cause"
        )
        self.fallbacks = self._counter(
            "fallbacks_total",
            "Questions whose answer is not the projected frame's (distortion, unfamiliar, "
            "degenerate, late, corrupt, incompatible, offline)",
            "cause",
        )
        self.answers = self._counter("answers_total", "Questions answered by the service")
        self.edge_only_answers = self._counter(
            "edge_only_answers_total", "Questions answered by the small model itself"
        )
        self.feedbacks = self._counter(
            "feedbacks_total", "States that the service sent back and that were injected", "point"
        )
        self.feedback_answers = self._counter(
            "feedback_answers_total",
            "Questions answered by the small model from a state that the service sent back",
        )
        self.received_back_bytes = self._histogram(
            "received_back_bytes", "Payload of one state sent back", _BYTES, "point"
        )
        self.round_trip = self._histogram(
            "round_trip_ratio",
            "Squared error of the state sent back, of the small model's own state",
            _RATIO,
        )
        self.refusals = self._counter(
            "refusals_total", "Questions that ended without an answer, by error name", "reason"
        )
        self.retries = self._counter(
            "retries_total", "Frames sent again, by cause (broken stream, refusal, late)", "cause"
        )
        self.duplicates = self._counter(
            "duplicate_events_total", "Terminal events for a question already answered"
        )
        self.reconnects = self._counter("reconnects_total", "Streams opened after the first")
        self.negotiations = self._counter("negotiations_total", "Sessions agreed with a server")
        self.encoder_fetches = self._counter(
            "encoder_fetches_total", "Encoders fetched, not found in the state directory"
        )
        self.queue_depth = self._gauge("queue_depth", "Frames kept until their terminal event")
        self.connected = self._gauge("connected", "1 while a stream to the server is open")
        self._gauge("resident_memory_bytes", "Memory of this process that is in RAM").set_function(
            resident_bytes
        )
        self.point = self._gauge(
            "point", "1 for the operating point that the next frame is to be sent at", "point"
        )
        self.point_switches = self._counter(
            "point_switches_total", "Changes of the operating point by the controller"
        )
        self.uplink_rtt = self._gauge(
            "uplink_round_trip_seconds", "Round trip of a small frame, as estimated"
        )
        self.uplink_rate = self._gauge(
            "uplink_bytes_per_second",
            "Rate of the uplink, as estimated; +Inf while no frame was large enough to tell",
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)
