"""The rows of the agent's table about cameras, the spool and the machine."""

from __future__ import annotations

from edge_agent.cameras.states import STATES
from protos.errors import ERRORS
from protos.process.metric_kinds import Label
from protos.process.metric_rows import FLEET, LINK, STATE, CounterRow, GaugeRow
from protos.process.metrics import MetricSet

ERROR = Label("error", tuple(sorted(error.name for error in ERRORS.values())))
_CAMERA = Label("camera", bound="cameras of this device")
SPOOL_DROPS = ("full", "thinned", "age", "damaged")
_DROPS = ("newer", "no_trigger", "rate", "no_slot", "damaged", "no_key_frame", "local")


class DeviceMetrics(MetricSet):
    """These rows; base class of `edge_agent.metrics.Metrics`."""

    camera_frames = CounterRow(
        "camera_frames_total",
        "pictures",
        "Pictures that a camera's process handed over",
        FLEET,
        _CAMERA,
    )
    camera_drops = CounterRow(
        "camera_frames_dropped_total",
        "pictures",
        "Pictures that did not become a capture, by cause",
        FLEET,
        _CAMERA,
        Label("cause", _DROPS),
    )
    camera_restarts = CounterRow(
        "camera_restarts_total",
        "processes",
        "Times that a camera's process was started again, by the state before",
        FLEET,
        _CAMERA,
        Label("cause", tuple(STATES)),
    )
    camera_age = GaugeRow(
        "camera_newest_frame_age_seconds",
        "seconds",
        "Age of a camera's newest picture",
        FLEET,
        _CAMERA,
    )
    camera_motion = GaugeRow(
        "camera_motion_seconds",
        "seconds",
        "Time that looking for motion took in a camera's newest picture",
        FLEET,
        _CAMERA,
    )
    camera_state = GaugeRow(
        "camera_state",
        STATE,
        "1 for the state that a camera is in",
        FLEET,
        _CAMERA,
        Label("state", tuple(STATES)),
    )
    spool_frames = GaugeRow("spool_frames", "frames", "Frames that wait on the disk", LINK)
    spool_bytes = GaugeRow(
        "spool_bytes", "bytes", "Bytes of the frames that wait on the disk", LINK
    )
    spool_age = GaugeRow(
        "spool_oldest_age_seconds",
        "seconds",
        "Age of the oldest frame that waits; 0 if none does",
        (LINK, FLEET),
    )
    spool_drops = CounterRow(
        "spool_dropped_total",
        "frames",
        "Frames that waited and were dropped, by cause",
        LINK,
        Label("cause", SPOOL_DROPS),
    )
    spool_set_aside = CounterRow(
        "spool_set_aside_total", "spools", "Damaged spools that were set aside", LINK
    )
    spool_failures = CounterRow(
        "spool_failures_total",
        "frames",
        "Frames that could not be written to the disk, by error name",
        LINK,
        ERROR,
    )
    model_device = GaugeRow(
        "model_device",
        STATE,
        "1 for the device that runs the model",
        FLEET,
        Label("device", bound="processors of this machine", most=4),
    )
    device_fallback = GaugeRow(
        "device_fallback",
        STATE,
        "1 while the model runs on something slower than this machine has",
        FLEET,
    )
    joules = GaugeRow(
        "capture_joules",
        "joules",
        "Energy of one capture above what the device takes when idle",
        FLEET,
    )
    restraint = GaugeRow(
        "restraint_level",
        "level",
        "How far captures and points are held back, 0 to 5",
        FLEET,
        Label("cause", ("heat", "energy")),
    )
    power = GaugeRow(
        "power_watts",
        "watts",
        "Power that this machine takes; NaN if it does not measure it",
        FLEET,
    )
    temperature = GaugeRow(
        "temperature_celsius",
        "celsius",
        "Temperature of the hottest zone; NaN if there is none",
        FLEET,
    )
    throttled = GaugeRow(
        "throttled", STATE, "1 while heat slows this machine's processors down", FLEET
    )
    resident_memory = GaugeRow(
        "resident_memory_bytes", "bytes", "Memory of this process that is in RAM", FLEET
    )
    slot = GaugeRow(
        "slot_info",
        STATE,
        "1 for the slot that this agent runs from, by its update",
        FLEET,
        Label("slot", bound="slots of this device", most=4),
        Label("number", bound="the update in the slot", most=4),
    )
    update_bytes = CounterRow(
        "update_bytes_total", "bytes", "Bytes of updates fetched from the service", LINK
    )
    update_failures = CounterRow(
        "update_failures_total",
        "attempts",
        "Failed attempts to ask for or fetch an update, by error name",
        FLEET,
        ERROR,
    )
    certificate_end = GaugeRow(
        "certificate_end_timestamp_seconds",
        "seconds",
        "When this device's certificate expires, seconds since 1970; 0 if it is not enrolled",
        FLEET,
    )
    renewals = CounterRow("renewals_total", "certificates", "Renewals of the certificate", FLEET)
    renewal_failures = CounterRow(
        "renewal_failures_total",
        "attempts",
        "Failed attempts to renew the certificate, by error name",
        FLEET,
        ERROR,
    )
    plain_text = GaugeRow(
        "plain_text",
        STATE,
        "1 if frames leave this machine unencrypted (no identity, no --ca)",
        FLEET,
    )
    attended = GaugeRow("attended", STATE, "1 while the service can give this device orders", FLEET)
    orders = CounterRow(
        "orders_total",
        "orders",
        "Orders of the service that ended, by kind and how",
        FLEET,
        Label("kind", ("configure", "restart", "send_logs", "capture", "update", "unknown")),
        Label("how", ("done", "refused")),
    )
    reports_sent = CounterRow(
        "reports_sent_total",
        "reports",
        "Reports that the service took, by kind",
        FLEET,
        Label("kind", ("crash", "outcome", "vitals")),
    )
    remote_revision = GaugeRow(
        "remote_settings_revision",
        "revision",
        "Revision of the service's settings in force; 0: none",
        FLEET,
    )
