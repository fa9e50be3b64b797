"""What the service counts and times, under the names Prometheus sees: its table.

Only the front end counts; the engine's figures arrive with its messages. `docs/metrics.md` is made
of this table: `python -m benchmarks.metrics_page`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cloud_server.attend_metrics import AttendMetrics
from cloud_server.fleet_metrics import FleetMetrics
from cloud_server.shadow_metrics import ShadowMetrics
from protos.errors import ERRORS
from protos.process.metric_kinds import Label
from protos.process.metric_rows import (
    ENGINE,
    FIDELITY,
    FLEET,
    LATENCY,
    LINK,
    SLO,
    STATE,
    CounterRow,
    GaugeRow,
    HistogramRow,
)
from protos.process.metrics import BUNDLE, BYTES, POINT, RATIO
from protos.process.settings import installed_version

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
    "engine",
    "shadows",
)
LEFT = ("cancelled", "deadline", "lost", "never_back", "stopped")
CROPS = ("used", "not_better", "none", "late", "failed", "spread", "refused", "unasked")
_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ANSWERS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
_ENGINE = Label("engine", bound="engines of this service")


class Metrics(FleetMetrics, AttendMetrics, ShadowMetrics):
    """Every metric of one service, in a registry of its own (so that tests may have many)."""

    prefix = "neural_bridge_cloud_"

    build = GaugeRow(
        "build_info",
        STATE,
        "1, with the version of this service",
        FLEET,
        Label("version", bound="the one that runs", most=1),
    )
    stage_seconds = HistogramRow(
        "stage_seconds",
        "seconds",
        "Time one frame or question spent in one stage",
        LATENCY,
        Label("stage", STAGES),
        buckets=_FAST,
    )
    first_token_seconds = HistogramRow(
        "first_token_seconds",
        "seconds",
        "From a request's last byte received to its answer's first token sent",
        (LATENCY, SLO),
        buckets=_ANSWERS,
        exemplars=True,
    )
    answer_seconds = HistogramRow(
        "answer_seconds",
        "seconds",
        "From a request's last byte received to its answer sent",
        (LATENCY, SLO),
        buckets=_ANSWERS,
        exemplars=True,
    )
    risk = HistogramRow(
        "risk_ratio",
        "ratio",
        "Risk by the service's guard: probability that the picture's answer would differ",
        (FIDELITY, SLO),
        buckets=RATIO,
        exemplars=True,
    )
    frames = CounterRow("frames_total", "frames", "Intact frames received, by point", LINK, POINT)
    fallbacks = CounterRow(
        "fallbacks_total",
        "frames",
        "Pictures received instead of frames",
        FIDELITY,
        Label("cause", ("distortion", "unfamiliar", "degenerate")),
    )
    warnings = CounterRow(
        "warnings_total",
        "frames",
        "Pictures received that show nothing to answer from",
        FIDELITY,
        Label("cause", ("degenerate",)),
    )
    frame_kinds = CounterRow(
        "frame_kinds_total",
        "frames",
        "Intact frames received, by kind",
        LINK,
        Label("kind", ("key", "delta")),
    )
    questions = CounterRow(
        "questions_total",
        "questions",
        "Questions received, by the call they came with",
        SLO,
        Label("call", ("infer", "ask", "http")),
    )
    received_bytes = CounterRow(
        "received_bytes_total",
        "bytes",
        "Message bytes received, bad frames included",
        LINK,
        Label("call", ("infer", "ask", "feedback", "attend", "report", "shadow")),
    )
    parcels = CounterRow(
        "parcels_total",
        "messages",
        "Messages of several requests, by their number",
        LINK,
        Label("requests", bound="frames in flight", most=256),
    )
    crops = CounterRow(
        "crops_total",
        "crops",
        "Crops by outcome; none: the device has none; spread: not asked, because the question "
        "looks at too much of the picture",
        FIDELITY,
        Label("outcome", CROPS),
    )
    crop_bytes = HistogramRow("crop_bytes", "bytes", "File of one crop", LINK, buckets=BYTES)
    feedbacks = CounterRow(
        "feedbacks_total", "states", "States sent back to an edge, by point", LINK, POINT
    )
    sent_back_bytes = HistogramRow(
        "sent_back_bytes", "bytes", "Payload of one state sent back", LINK, POINT, buckets=BYTES
    )
    answers = CounterRow("answers_total", "questions", "Questions answered, by bundle", SLO, BUNDLE)
    answers_from_memory = CounterRow(
        "answers_from_memory_total",
        "requests",
        "Repeated request ids answered without computing",
        LINK,
    )
    joined = CounterRow(
        "joined_requests_total",
        "requests",
        "Repeated request ids that joined their running computation",
        LINK,
    )
    generated_tokens = CounterRow(
        "generated_tokens_total", "tokens", "Answer tokens generated", ENGINE
    )
    refusals = CounterRow(
        "refusals_total",
        "requests",
        "Requests and calls refused, by error name",
        SLO,
        Label("reason", tuple(sorted(error.name for error in ERRORS.values()))),
    )
    overloads = CounterRow(
        "overloads_total",
        "requests",
        "Requests and calls refused as overload, by what was full",
        SLO,
        Label("cause", OVERLOADS),
    )
    left = CounterRow(
        "left_requests_total",
        "requests",
        "Requests that nobody waited for any more, by how",
        SLO,
        Label("how", LEFT),
    )
    log_lines_dropped = CounterRow(
        "log_lines_dropped_total",
        "lines",
        "Log lines that standard error did not take, by process",
        ENGINE,
        Label("process", ("frontend", "engine")),
    )
    event_lines_dropped = CounterRow(
        "event_lines_dropped_total",
        "lines",
        "Lines of the event log that could not be written",
        ENGINE,
    )
    engine_restarts = CounterRow(
        "engine_restarts_total", "processes", "Engine processes started after the first", ENGINE
    )
    canaries = CounterRow(
        "canaries_total",
        "questions",
        "Questions of our own to the engine, by outcome; overtaken: others were answered meanwhile",
        SLO,
        Label("outcome", ("answered", "overtaken", "refused", "failed", "late")),
    )
    answering = GaugeRow(
        "answering", STATE, "1 while the last question, a device's or our own, was answered", SLO
    )
    engine_up = GaugeRow("engine_up", STATE, "1 while the engine takes requests", ENGINE)
    engine_ready = GaugeRow(
        "engine_ready", STATE, "1 while the engine can take jobs", ENGINE, _ENGINE
    )
    engine_running = GaugeRow(
        "engine_running_requests",
        "requests",
        "Questions in the engine's running batch",
        ENGINE,
        _ENGINE,
    )
    engine_resident = GaugeRow(
        "engine_resident_memory_bytes",
        "bytes",
        "Resident memory of the engine's process",
        ENGINE,
        _ENGINE,
    )
    scenes_remade = CounterRow(
        "scenes_remade_total",
        "scenes",
        "Scenes rebuilt from their frames because no engine held them any more",
        ENGINE,
    )
    suspects = GaugeRow(
        "suspect_requests",
        "requests",
        "Requests that were in an engine when it ended and have not run alone yet",
        ENGINE,
    )
    quarantined = GaugeRow(
        "quarantined_requests",
        "requests",
        "Requests that ended an engine twice and are refused",
        ENGINE,
    )
    queue_depth = GaugeRow(
        "queue_depth", "requests", "Requests held for the engine, unanswered", LATENCY
    )
    queue_wait = GaugeRow(
        "queue_wait_seconds",
        "seconds",
        "Estimated time until the requests that wait now are in an engine",
        LATENCY,
    )
    pace = GaugeRow(
        "requests_ended_per_second",
        "requests per second",
        "Measured rate at which requests end while others wait",
        LATENCY,
    )
    left_queue = GaugeRow(
        "left_queue_depth",
        "requests",
        "Requests whose callers are gone and may come back",
        LATENCY,
    )
    running = GaugeRow(
        "running_requests", "requests", "Questions in the running batches of all engines", ENGINE
    )
    scenes = GaugeRow("scenes", "scenes", "Scenes that the engine holds", ENGINE)
    scene_bytes = GaugeRow("scene_memory_bytes", "bytes", "Memory of the scenes held", ENGINE)
    held_scenes = GaugeRow(
        "held_scenes", "scenes", "Scenes whose frames the front end keeps for rebuilding", ENGINE
    )
    held_scene_bytes = GaugeRow(
        "held_scene_memory_bytes", "bytes", "Memory of the frames of held scenes", ENGINE
    )
    pool_bytes = GaugeRow(
        "pool_memory_bytes",
        "bytes",
        "Memory set aside for scenes and latents, used or free",
        ENGINE,
    )
    resident_bytes = GaugeRow(
        "resident_memory_bytes",
        "bytes",
        "Memory of the processes of a kind that is in RAM",
        ENGINE,
        Label("process", ("front_end", "engine", "spare")),
    )

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        self.key_frames = self.frame_kinds.labels("key")
        self.delta_frames = self.frame_kinds.labels("delta")
        self.questions_infer = self.questions.labels("infer")
        self.received_infer = self.received_bytes.labels("infer")
        self.build.labels(installed_version()).set(1)
