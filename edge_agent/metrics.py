"""What the agent counts and times, under the names Prometheus sees."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from edge_agent.device.power import Readings
from protos.process.memory import resident_bytes
from protos.process.metrics import BYTES, RATIO, MetricSet

STAGES = ("read", "prefill", "select", "encode", "uplink", "edge_only", "feedback")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics(MetricSet):
    """Every metric of one agent, in a registry of its own (so that tests may have many)."""

    prefix = "neural_bridge_edge_"

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.stage_seconds = self.histogram(
            "stage_seconds",
            "Time spent in one stage of one frame (uplink: from sending to the terminal event; "
            "feedback: from asking for the state to injecting it)",
            _SECONDS,
            "stage",
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.log_lines_dropped = self.counter(
            "log_lines_dropped_total", "Log lines that standard error did not take"
        )
        self.captures = self.counter("captures_total", "Captures taken from the source")
        self.capture_errors = self.counter(
            "capture_errors_total", "Captures that could not be read or encoded", "error"
        )
        self.entries_skipped = self.counter(
            "source_entries_skipped_total", "Entries of the source's folder passed over", "kind"
        )
        self.camera_frames = self.counter(
            "camera_frames_total", "Pictures that a camera's process handed over", "camera"
        )
        self.camera_drops = self.counter(
            "camera_frames_dropped_total",
            "Pictures that did not become a capture (newer, no_trigger, rate, no_slot, damaged, "
            "no_key_frame, local)",
            "camera",
            "cause",
        )
        self.camera_restarts = self.counter(
            "camera_restarts_total",
            "Times that a camera's process was started again, by the state before",
            "camera",
            "cause",
        )
        self.camera_age = self.gauge(
            "camera_newest_frame_age_seconds", "Age of a camera's newest picture", "camera"
        )
        self.camera_motion = self.gauge(
            "camera_motion_seconds",
            "Time that looking for motion took in a camera's newest picture",
            "camera",
        )
        self.camera_state = self.gauge(
            "camera_state", "1 for the state that a camera is in", "camera", "state"
        )
        self.frames_sent = self.counter(
            "frames_sent_total", "Frames written to a stream, resends included", "point"
        )
        self.frames_coded = self.counter(
            "frames_coded_total", "Frames coded, by kind: key or delta", "kind"
        )
        self.sent_bytes = self.counter(
            "sent_bytes_total", "Message bytes written to a stream, resends included"
        )
        self.messages_sent = self.counter(
            "messages_sent_total",
            "Messages written to a stream, by their number of frames",
            "frames",
        )
        self.linger_seconds = self.histogram(
            "linger_seconds",
            "Time that a frame waited for others to share its message",
            (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
        )
        self.crops = self.counter(
            "crops_total",
            "Crops that the service asked for: sent, none (not held any more)",
            "outcome",
        )
        self.crop_bytes = self.histogram("crop_bytes", "File of one crop", BYTES)
        self.risk = self.histogram(
            "risk_ratio", "Probability that a frame's answer differs from the picture's", RATIO
        )
        self.confidence = self.histogram(
            "confidence_ratio", "Probability that the small model's own answer is right", RATIO
        )
        self.warnings = self.counter(
            "warnings_total", "Captures that show nothing to answer from (degenerate)", "cause"
        )
        self.fallbacks = self.counter(
            "fallbacks_total",
            "Questions whose answer is not the projected frame's (distortion, unfamiliar, "
            "degenerate, crop, late, corrupt, incompatible, offline, confident)",
            "cause",
        )
        self.answers = self.counter("answers_total", "Questions answered by the service")
        self.scenes_held = self.counter(
            "scenes_held_total", "Frames without a question that the service holds"
        )
        self.edge_only_answers = self.counter(
            "edge_only_answers_total", "Questions answered by the small model itself"
        )
        self.feedbacks = self.counter(
            "feedbacks_total", "States that the service sent back and that were injected", "point"
        )
        self.feedback_answers = self.counter(
            "feedback_answers_total",
            "Questions answered by the small model from a state that the service sent back",
        )
        self.received_back_bytes = self.histogram(
            "received_back_bytes", "Payload of one state sent back", BYTES, "point"
        )
        self.round_trip = self.histogram(
            "round_trip_ratio",
            "Squared error of the state sent back, relative to the small model's own state",
            RATIO,
        )
        self.refusals = self.counter(
            "refusals_total", "Questions that ended without an answer, by error name", "reason"
        )
        self.retries = self.counter(
            "retries_total", "Frames sent again, by cause (broken stream, refusal, late)", "cause"
        )
        self.duplicates = self.counter(
            "duplicate_events_total", "Terminal events for a question already answered"
        )
        self.reconnects = self.counter("reconnects_total", "Streams opened after the first")
        self.server_rank = self.gauge(
            "server_rank", "Place of the server in use in the order of preference; 0: the first"
        )
        self.server_switches = self.counter(
            "server_switches_total", "Times that another server than before took over"
        )
        self.keepalive = self.gauge(
            "keepalive_interval_seconds", "Interval of pings on an idle connection, as learnt"
        )
        self.negotiations = self.counter("negotiations_total", "Sessions agreed with a server")
        self.encoder_fetches = self.counter(
            "encoder_fetches_total", "Encoders fetched because the state directory had none"
        )
        self.slot = self.gauge(
            "slot_info", "1 for the slot that this agent runs from, by its update", "slot", "number"
        )
        self.update_bytes = self.counter(
            "update_bytes_total", "Bytes of updates fetched from the service"
        )
        self.update_failures = self.counter(
            "update_failures_total", "Failed attempts to ask for or fetch an update", "error"
        )
        self.certificate_end = self.gauge(
            "certificate_end_timestamp_seconds",
            "When this device's certificate expires, seconds since 1970; 0 if it is not enrolled",
        )
        self.renewals = self.counter("renewals_total", "Renewals of the certificate")
        self.renewal_failures = self.counter(
            "renewal_failures_total", "Failed attempts to renew the certificate", "error"
        )
        self.plain_text = self.gauge(
            "plain_text", "1 if frames leave this machine unencrypted (no identity, no --ca)"
        )
        self.spool_frames = self.gauge("spool_frames", "Frames that wait on the disk")
        self.spool_bytes = self.gauge("spool_bytes", "Bytes of the frames that wait on the disk")
        self.spool_age = self.gauge(
            "spool_oldest_age_seconds", "Age of the oldest frame that waits; 0 if none does"
        )
        self.spool_drops = self.counter(
            "spool_dropped_total",
            "Frames that waited and were dropped (full, thinned, age, damaged)",
            "cause",
        )
        for cause in ("full", "thinned", "age", "damaged"):
            self.spool_drops.labels(cause)
        self.spool_set_aside = self.counter(
            "spool_set_aside_total", "Damaged spools that were set aside"
        )
        self.spool_failures = self.counter(
            "spool_failures_total", "Frames that could not be written to the disk", "error"
        )
        self.model_device = self.gauge(
            "model_device", "1 for the device that runs the model", "device"
        )
        self.device_fallback = self.gauge(
            "device_fallback", "1 while the model runs on something slower than this machine has"
        )
        self.joules = self.gauge(
            "joules_per_capture", "Energy of one capture above what the device takes when idle"
        )
        self.restraint = self.gauge(
            "restraint_level", "How far captures and points are held back, 0 to 5", "cause"
        )
        self.queue_depth = self.gauge("queue_depth", "Frames kept until their terminal event")
        self.attended = self.gauge("attended", "1 while the service can give this device orders")
        self.orders = self.counter(
            "orders_total", "Orders of the service that ended, done or refused", "kind", "how"
        )
        self.reports_sent = self.counter(
            "reports_sent_total", "Reports that the service took: crash, outcome", "kind"
        )
        self.remote_revision = self.gauge(
            "remote_settings_revision", "Revision of the service's settings in force; 0: none"
        )
        self.connected = self.gauge("connected", "1 while a stream to the server is open")
        self.gauge("resident_memory_bytes", "Memory of this process that is in RAM").set_function(
            resident_bytes
        )
        self.point = self.gauge(
            "point", "1 for the operating point that the next frame is to be sent at", "point"
        )
        self.point_switches = self.counter(
            "point_switches_total", "Changes of the operating point by the controller"
        )
        self.uplink_rtt = self.gauge(
            "uplink_round_trip_seconds", "Round trip of a small frame, as estimated"
        )
        self.uplink_rate = self.gauge(
            "uplink_bytes_per_second",
            "Rate of the uplink, as estimated; +Inf while no frame was large enough to tell",
        )
        self.power = self.gauge(
            "power_watts", "Power that this machine takes; NaN if it does not measure it"
        )
        self.temperature = self.gauge(
            "temperature_celsius", "Temperature of the hottest zone; NaN if there is none"
        )
        self.throttled = self.gauge(
            "throttled", "1 while heat slows this machine's processors down"
        )

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
