"""What the agent counts and times, under the names Prometheus sees: its table.

`docs/metrics.md` is made of this table: `python -m benchmarks.metrics_page`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from edge_agent.device.power import Readings
from edge_agent.device_metrics import ERROR, DeviceMetrics
from protos.process.memory import resident_bytes
from protos.process.metric_kinds import Label
from protos.process.metric_rows import (
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
from protos.process.metrics import BYTES, POINT, RATIO
from protos.process.settings import installed_version

SHADOWS = (
    "measured",
    "busy",
    "over_budget",
    "memory",
    "offline",
    "refused",
    "unserved",
    "too_large",
    "failed",
)
STAGES = ("read", "prefill", "select", "encode", "uplink", "edge_only", "feedback")
FALLBACKS = (
    "distortion",
    "unfamiliar",
    "degenerate",
    "crop",
    "late",
    "corrupt",
    "incompatible",
    "offline",
    "confident",
)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_LINGER = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)
_ERROR_OR_NOT = ERROR._replace(values=(*ERROR.values, "unknown"))


class Metrics(DeviceMetrics):
    """Every metric of one agent, in a registry of its own (so that tests may have many)."""

    prefix = "neural_bridge_edge_"

    build = GaugeRow(
        "build_info",
        STATE,
        "1, with the version of this agent",
        FLEET,
        Label("version", bound="the one that runs", most=1),
    )
    stage_seconds = HistogramRow(
        "stage_seconds",
        "seconds",
        "Time spent in one stage of one frame (uplink: from sending to the terminal event; "
        "feedback: from asking for the state to injecting it)",
        LATENCY,
        Label("stage", STAGES),
        buckets=_SECONDS,
    )
    log_lines_dropped = CounterRow(
        "log_lines_dropped_total", "lines", "Log lines that standard error did not take", FLEET
    )
    captures = CounterRow("captures_total", "captures", "Captures taken from the source", FLEET)
    capture_errors = CounterRow(
        "capture_errors_total",
        "captures",
        "Captures that could not be read or encoded, by error name",
        FLEET,
        ERROR,
    )
    entries_skipped = CounterRow(
        "source_entries_skipped_total",
        "files",
        "Entries of the source's folder passed over, by what they are",
        FLEET,
        Label("kind", bound="kinds of entries that a folder can have", most=16),
    )
    frames_sent = CounterRow(
        "frames_sent_total",
        "frames",
        "Frames written to a stream, resends included",
        LINK,
        POINT,
    )
    frames_coded = CounterRow(
        "frames_coded_total",
        "frames",
        "Frames coded, by kind",
        LINK,
        Label("kind", ("key", "delta")),
    )
    sent_bytes = CounterRow(
        "sent_bytes_total", "bytes", "Message bytes written to a stream, resends included", LINK
    )
    messages_sent = CounterRow(
        "messages_sent_total",
        "messages",
        "Messages written to a stream, by their number of frames",
        LINK,
        Label("frames", bound="frames in flight", most=256),
    )
    linger_seconds = HistogramRow(
        "linger_seconds",
        "seconds",
        "Time that a frame waited for others to share its message",
        LINK,
        buckets=_LINGER,
    )
    crops = CounterRow(
        "crops_total",
        "crops",
        "Crops that the service asked for; none: not held any more",
        LINK,
        Label("outcome", ("sent", "none")),
    )
    shadows = CounterRow(
        "shadows_total",
        "pictures",
        "Pictures of frames that chance chose for the service to measure, by outcome",
        FIDELITY,
        Label("outcome", SHADOWS),
    )
    shadow_bytes = CounterRow(
        "shadow_bytes_total", "bytes", "Files of pictures that the service measured", LINK
    )
    crop_bytes = HistogramRow("crop_bytes", "bytes", "File of one crop", LINK, buckets=BYTES)
    risk = HistogramRow(
        "risk_ratio",
        "ratio",
        "Probability that a frame's answer differs from the picture's",
        FIDELITY,
        buckets=RATIO,
        exemplars=True,
    )
    confidence = HistogramRow(
        "confidence_ratio",
        "ratio",
        "Probability that the small model's own answer is right",
        FIDELITY,
        buckets=RATIO,
    )
    warnings = CounterRow(
        "warnings_total",
        "captures",
        "Captures that show nothing to answer from",
        FIDELITY,
        Label("cause", ("degenerate",)),
    )
    fallbacks = CounterRow(
        "fallbacks_total",
        "questions",
        "Questions whose answer is not the projected frame's, by cause",
        FIDELITY,
        Label("cause", FALLBACKS),
    )
    answers = CounterRow("answers_total", "questions", "Questions answered by the service", SLO)
    scenes_held = CounterRow(
        "scenes_held_total", "frames", "Frames without a question that the service holds", SLO
    )
    edge_only_answers = CounterRow(
        "edge_only_answers_total", "questions", "Questions answered by the small model itself", SLO
    )
    feedbacks = CounterRow(
        "feedbacks_total",
        "states",
        "States that the service sent back and that were injected",
        LINK,
        POINT,
    )
    feedback_answers = CounterRow(
        "feedback_answers_total",
        "questions",
        "Questions answered by the small model from a state that the service sent back",
        SLO,
    )
    received_back_bytes = HistogramRow(
        "received_back_bytes",
        "bytes",
        "Payload of one state sent back",
        LINK,
        POINT,
        buckets=BYTES,
    )
    round_trip = HistogramRow(
        "round_trip_ratio",
        "ratio",
        "Squared error of the state sent back, relative to the small model's own state",
        FIDELITY,
        buckets=RATIO,
    )
    refusals = CounterRow(
        "refusals_total",
        "questions",
        "Questions that ended without an answer, by error name",
        SLO,
        ERROR._replace(name="reason"),
    )
    retries = CounterRow(
        "retries_total",
        "frames",
        "Frames sent again, by error name",
        LINK,
        _ERROR_OR_NOT._replace(name="cause"),
    )
    duplicates = CounterRow(
        "duplicate_events_total",
        "events",
        "Terminal events for a question already answered",
        LINK,
    )
    reconnects = CounterRow("reconnects_total", "streams", "Streams opened after the first", LINK)
    server_rank = GaugeRow(
        "server_rank",
        "rank",
        "Place of the server in use in the order of preference; 0: the first",
        LINK,
    )
    server_switches = CounterRow(
        "server_switches_total",
        "switches",
        "Times that another server than before took over",
        LINK,
    )
    keepalive = GaugeRow(
        "keepalive_interval_seconds",
        "seconds",
        "Interval of pings on an idle connection, as learnt",
        LINK,
    )
    negotiations = CounterRow(
        "negotiations_total", "sessions", "Sessions agreed with a server", LINK
    )
    encoder_fetches = CounterRow(
        "encoder_fetches_total",
        "encoders",
        "Encoders fetched because the state directory had none",
        LINK,
    )
    queue_depth = GaugeRow(
        "queue_depth", "frames", "Frames kept until their terminal event", LATENCY
    )
    connected = GaugeRow(
        "connected", STATE, "1 while a stream to the server is open", (FLEET, LINK)
    )
    point = GaugeRow(
        "point",
        STATE,
        "1 for the operating point that the next frame is to be sent at",
        LINK,
        POINT,
    )
    point_fallback = GaugeRow(
        "point_fallback",
        STATE,
        "1 while the service's bundle lacks a point of the settings, and its default is used",
        LINK,
    )
    point_switches = CounterRow(
        "point_switches_total",
        "switches",
        "Changes of the operating point by the controller",
        LINK,
    )
    uplink_rtt = GaugeRow(
        "uplink_round_trip_seconds",
        "seconds",
        "Round trip of a small frame, as estimated",
        (LINK, LATENCY),
    )
    uplink_rate = GaugeRow(
        "uplink_bytes_per_second",
        "bytes per second",
        "Rate of the uplink, as estimated; +Inf while no frame was large enough to tell",
        LINK,
    )

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.build.labels(installed_version()).set(1)
        self.resident_memory.set_function(resident_bytes)

    def watch(self, readings: Callable[[], Readings]) -> None:
        """Show the machine's readings.

        Args:
            readings: gives the newest ones.
        """
        self.power.set_function(lambda: _or_nan(readings().watts))
        self.temperature.set_function(lambda: _or_nan(readings().celsius))
        self.throttled.set_function(lambda: float(readings().throttled))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
