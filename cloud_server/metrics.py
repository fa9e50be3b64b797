"""What the service counts and times, under the names Prometheus sees.

Only the front end counts; the engine's figures arrive with its messages.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from protos.process.metrics import BYTES, RATIO, MetricSet

STAGES = ("queue", "decode", "project", "inject", "prefill", "generate", "compress")
OVERLOADS = (
    "credit",
    "share",
    "concurrent",
    "requests_quota",
    "bytes_quota",
    "wait",
    "queue",
    "pushed_out",
    "outbox",
    "pictures",
    "negotiations",
    "enrolments",
    "attend",
    "reports",
    "orders",
)
ENROLMENTS = ("enrolled", "renewed", "refused")
REPORTS = ("crash", "log", "done", "refused")
LEFT = ("cancelled", "deadline", "lost", "never_back", "stopped")
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


class Metrics(MetricSet):
    """Every metric of one service, in a registry of its own (so that tests may have many)."""

    prefix = "neural_bridge_cloud_"

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.stage_seconds = self.histogram(
            "stage_seconds", "Time one frame or question spent in one stage", _SECONDS, "stage"
        )
        self.stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        self.first_token_seconds = self.histogram(
            "first_token_seconds",
            "From a request's last byte received to its answer's first token sent",
            _SECONDS,
        )
        self.answer_seconds = self.histogram(
            "answer_seconds", "From a request's last byte received to its answer sent", _SECONDS
        )
        self.risk = self.histogram(
            "risk_ratio",
            "Risk by the service's guard: probability that the picture's answer would differ",
            RATIO,
        )
        self.frames = self.counter("frames_total", "Intact frames received, by point", "point")
        self.fallbacks = self.counter(
            "fallbacks_total",
            "Pictures received instead of frames (distortion, unfamiliar, degenerate)",
            "cause",
        )
        self.warnings = self.counter(
            "warnings_total",
            "Pictures received that show nothing to answer from (degenerate)",
            "cause",
        )
        self.frame_kinds = self.counter(
            "frame_kinds_total", "Intact frames received, by kind: key or delta", "kind"
        )
        self.key_frames = self.frame_kinds.labels("key")
        self.delta_frames = self.frame_kinds.labels("delta")
        self.questions = self.counter(
            "questions_total", "Questions received, by the call they came with", "call"
        )
        self.questions_infer = self.questions.labels("infer")
        self.received_bytes = self.counter(
            "received_bytes_total", "Message bytes received, bad frames included", "call"
        )
        self.received_infer = self.received_bytes.labels("infer")
        self.parcels = self.counter(
            "parcels_total", "Messages of several requests, by their number", "requests"
        )
        self.crops = self.counter(
            "crops_total",
            "Crops by outcome: used, not_better, none (the device has none), late, failed; spread "
            "(not asked: the question looks at too much of the picture); refused, unasked",
            "outcome",
        )
        self.crop_bytes = self.histogram("crop_bytes", "File of one crop", BYTES)
        self.feedbacks = self.counter(
            "feedbacks_total", "States sent back to an edge, by point", "point"
        )
        self.sent_back_bytes = self.histogram(
            "sent_back_bytes", "Payload of one state sent back", BYTES, "point"
        )
        self.answers = self.counter("answers_total", "Questions answered, by bundle", "bundle")
        self.answers_from_memory = self.counter(
            "answers_from_memory_total", "Repeated request ids answered without computing"
        )
        self.joined = self.counter(
            "joined_requests_total", "Repeated request ids that joined their running computation"
        )
        self.generated_tokens = self.counter("generated_tokens_total", "Answer tokens generated")
        self.refusals = self.counter(
            "refusals_total", "Requests and calls refused, by error name", "reason"
        )
        self.overloads = self.counter(
            "overloads_total", "Requests and calls refused as overload, by what was full", "cause"
        )
        for cause in OVERLOADS:
            self.overloads.labels(cause)
        self.left = self.counter(
            "left_requests_total", "Requests that nobody waited for any more, by how", "how"
        )
        for how in LEFT:
            self.left.labels(how)
        self.sessions_dropped = self.counter(
            "sessions_dropped_total", "Sessions pushed out by others, or whose bundle is gone"
        )
        self.negotiations = self.counter(
            "negotiations_total", "Sessions opened, by bundle", "bundle"
        )
        self.bundle_doubtful = self.gauge(
            "bundle_doubtful",
            "1 for a served bundle whose certificate does not say that its map beats its controls",
            "bundle",
            "verdict",
        )
        self.http_requests = self.counter(
            "http_requests_total",
            "HTTP requests answered, by method and status",
            "method",
            "status",
        )
        self.bundle_sessions = self.gauge(
            "bundle_sessions", "Open sessions on a version of a bundle", "digest"
        )
        self.bundle_refusals = self.counter(
            "bundle_refusals_total", "Versions of bundles that were refused before they served"
        )
        self.bundle_rollbacks = self.counter(
            "bundle_rollbacks_total", "Versions of bundles that the service rolled back by itself"
        )
        self.update_devices = self.gauge(
            "update_devices",
            "Devices that an update was offered to, by its state there: offered, fetched, trial, "
            "kept or failed",
            "tenant",
            "number",
            "digest",
            "state",
        )
        self.update_halted = self.gauge(
            "update_halted",
            "1 for an update that halted because it failed on too many devices",
            "tenant",
            "number",
            "digest",
        )
        self.update_bytes = self.counter("update_bytes_total", "Bytes of updates sent to devices")
        self.attending = self.gauge("attending", "Devices that take orders at this front end")
        self.orders_sent = self.counter(
            "orders_sent_total", "Orders that went down to devices, by kind", "kind"
        )
        self.reports = self.counter(
            "device_reports_total",
            "Reports of devices: crash, log, and orders that were done or refused",
            "kind",
        )
        for kind in REPORTS:
            self.reports.labels(kind)
        self.log_lines_dropped = self.counter(
            "log_lines_dropped_total",
            "Log lines that standard error did not take, by process: frontend or engine",
            "process",
        )
        for process in ("frontend", "engine"):
            self.log_lines_dropped.labels(process)
        self.engine_restarts = self.counter(
            "engine_restarts_total", "Engine processes started after the first"
        )
        self.canaries = self.counter(
            "canaries_total",
            "Questions of our own to the engine, by outcome: answered, overtaken (others were "
            "answered meanwhile), refused, failed or late",
            "outcome",
        )
        self.insecure = self.gauge(
            "insecure", "1 while everyone is served in plain text (--insecure)"
        )
        self.certificate_end = self.gauge(
            "certificate_end_timestamp_seconds",
            "When a certificate expires: server, intermediate or root",
            "certificate",
        )
        self.open_calls = self.gauge("open_calls", "Open calls of identified callers")
        self.enrolments = self.counter(
            "enrolments_total",
            "Requests for certificates, by outcome: enrolled, renewed or refused",
            "outcome",
        )
        for outcome in ENROLMENTS:
            self.enrolments.labels(outcome)
        self.answering = self.gauge(
            "answering", "1 while the last question, a device's or our own, was answered"
        )
        self.engine_ready = self.gauge("engine_ready", "1 while the engine can take jobs", "engine")
        self.engine_running = self.gauge(
            "engine_running_requests", "Questions in the engine's running batch", "engine"
        )
        self.engine_resident = self.gauge(
            "engine_resident_memory_bytes", "Resident memory of the engine's process", "engine"
        )
        self.scenes_remade = self.counter(
            "scenes_remade_total",
            "Scenes rebuilt from their frames because no engine held them any more",
        )
        self.suspects = self.gauge(
            "suspect_requests",
            "Requests that were in an engine when it ended and have not run alone yet",
        )
        self.quarantined = self.gauge(
            "quarantined_requests", "Requests that ended an engine twice and are refused"
        )
        self.engine_up = self.gauge("engine_up", "1 while the engine takes requests")
        self.queue_depth = self.gauge("queue_depth", "Requests held for the engine, unanswered")
        self.queue_wait = self.gauge(
            "queue_wait_seconds",
            "Estimated time until the requests that wait now are in an engine",
        )
        self.pace = self.gauge(
            "requests_ended_per_second", "Measured rate at which requests end while others wait"
        )
        self.left_queue = self.gauge(
            "left_queue_depth", "Requests whose callers are gone and may come back"
        )
        self.running = self.gauge("running_requests", "Questions in the engine's running batch")
        self.sessions = self.gauge("sessions", "Sessions held")
        self.fresh_sessions = self.gauge(
            "fresh_sessions", "Sessions held that have brought no good frame yet"
        )
        self.scenes = self.gauge("scenes", "Scenes that the engine holds")
        self.scene_bytes = self.gauge("scene_memory_bytes", "Memory of the scenes held")
        self.held_scenes = self.gauge(
            "held_scenes", "Scenes whose frames the front end keeps for rebuilding"
        )
        self.held_scene_bytes = self.gauge(
            "held_scene_memory_bytes", "Memory of the frames of held scenes"
        )
        self.http_connections = self.gauge("http_connections", "Open HTTP connections")
        self.http_body_bytes = self.gauge(
            "http_body_memory_bytes", "Memory of large HTTP request bodies"
        )
        self.idempotency_bytes = self.gauge(
            "idempotency_memory_bytes",
            "Memory of answers kept for repeated HTTP requests with an Idempotency-Key",
        )
        self.pool_bytes = self.gauge(
            "pool_memory_bytes", "Memory set aside for scenes and latents, used or free"
        )
        self.resident_bytes = self.gauge(
            "resident_memory_bytes",
            "Memory of one process that is in RAM: front_end, engine or spare",
            "process",
        )
        self.directory_stale = self.gauge(
            "directory_stale_seconds",
            "Time since the database was last read; the last snapshot is used meanwhile",
        )
