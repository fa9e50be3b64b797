"""The rows of the service's table about devices, bundles, callers and the database."""

from __future__ import annotations

from protos.process.metric_kinds import Label
from protos.process.metric_rows import (
    ENGINE,
    FIDELITY,
    FLEET,
    LINK,
    SLO,
    STATE,
    CollectedRow,
    CounterRow,
    GaugeRow,
)
from protos.process.metrics import BUNDLE, MetricSet

ENROLMENTS = ("enrolled", "renewed", "refused")
REPORTS = ("crash", "log", "done", "refused", "vitals")
ORDERS = ("configure", "restart", "send_logs", "capture", "update")
_TENANT = Label("tenant", bound="tenants", most=256)
_DEVICE = (
    Label("tenant", bound="its device", most=1),
    Label("device", bound="--device-series, which is off by default", most=10_001),
)
_UPDATE = (
    _TENANT,
    Label("number", bound="updates offered now", most=16),
    Label("digest", bound="updates offered now", most=1),
)
_METHOD = Label("method", ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"))


class FleetMetrics(MetricSet):
    """These rows; base class of `cloud_server.metrics.Metrics`."""

    sessions = GaugeRow("sessions", "sessions", "Sessions held", FLEET)
    fresh_sessions = GaugeRow(
        "fresh_sessions", "sessions", "Sessions held that have brought no good frame yet", FLEET
    )
    sessions_dropped = CounterRow(
        "sessions_dropped_total",
        "sessions",
        "Sessions pushed out by others, or whose bundle is gone",
        FLEET,
    )
    negotiations = CounterRow(
        "negotiations_total", "sessions", "Sessions opened, by bundle", FLEET, BUNDLE
    )
    bundle_doubtful = GaugeRow(
        "bundle_doubtful",
        STATE,
        "1 for a served bundle whose certificate does not say that its map beats its controls",
        FIDELITY,
        BUNDLE,
        Label("verdict", ("no better than its controls", "cannot be judged", "not known")),
    )
    bundle_sessions = GaugeRow(
        "bundle_sessions",
        "sessions",
        "Open sessions on a version of a bundle",
        FLEET,
        Label("digest", bound="versions of bundles that serve or wait"),
    )
    bundle_refusals = CounterRow(
        "bundle_refusals_total",
        "bundles",
        "Versions of bundles that were refused before they served",
        FLEET,
    )
    bundle_rollbacks = CounterRow(
        "bundle_rollbacks_total",
        "bundles",
        "Versions of bundles that the service rolled back by itself",
        FLEET,
    )
    update_devices = GaugeRow(
        "update_devices",
        "devices",
        "Devices that an update was offered to, by its state there",
        FLEET,
        *_UPDATE,
        Label("state", ("offered", "fetched", "trial", "kept", "failed")),
    )
    update_halted = GaugeRow(
        "update_halted",
        STATE,
        "1 for an update that halted because it failed on too many devices",
        FLEET,
        *_UPDATE,
    )
    update_bytes = CounterRow(
        "update_bytes_total", "bytes", "Bytes of updates sent to devices", LINK
    )
    attending = GaugeRow(
        "attending", "devices", "Devices that take orders at this front end", FLEET
    )
    orders_sent = CounterRow(
        "orders_sent_total",
        "orders",
        "Orders that went down to devices, by kind",
        FLEET,
        Label("kind", ORDERS),
    )
    reports = CounterRow(
        "device_reports_total",
        "reports",
        "Reports of devices: crash, log, vitals, and orders that were done or refused",
        FLEET,
        Label("kind", REPORTS),
    )
    insecure = GaugeRow(
        "insecure", STATE, "1 while everyone is served in plain text (--insecure)", FLEET
    )
    certificate_end = GaugeRow(
        "certificate_end_timestamp_seconds",
        "seconds",
        "When a certificate expires, seconds since 1970",
        FLEET,
        Label("certificate", ("server", "intermediate", "root")),
    )
    enrolments = CounterRow(
        "enrolments_total",
        "certificates",
        "Requests for certificates, by outcome",
        FLEET,
        Label("outcome", ENROLMENTS),
    )
    open_calls = GaugeRow("open_calls", "calls", "Open calls of identified callers", LINK)
    directory_stale = GaugeRow(
        "directory_stale_seconds",
        "seconds",
        "Time since the database was last read; the last snapshot is used meanwhile",
        FLEET,
    )
    http_requests = CounterRow(
        "http_requests_total",
        "requests",
        "HTTP requests answered, by method and status",
        (LINK, SLO),
        _METHOD,
        Label("status", bound="statuses of the error table and of HTTP", most=40),
    )
    http_connections = GaugeRow("http_connections", "connections", "Open HTTP connections", LINK)
    http_body_bytes = GaugeRow(
        "http_body_memory_bytes", "bytes", "Memory of large HTTP request bodies", ENGINE
    )
    idempotency_bytes = GaugeRow(
        "idempotency_memory_bytes",
        "bytes",
        "Memory of answers kept for repeated HTTP requests with an Idempotency-Key",
        ENGINE,
    )
    held_memory = CollectedRow(
        "held_memory_bytes",
        "bytes",
        "Memory in the front end for a tenant's requests, answers and so on",
        ENGINE,
        Label("store", ("requests", "answers", "sessions", "outboxes", "shadows")),
        _TENANT,
    )
    device_frames = CollectedRow(
        "device_frames_total", "frames", "Intact frames received, by device", FLEET, *_DEVICE
    )
    device_payload = CollectedRow(
        "device_payload_bytes_total", "bytes", "Payloads of frames, by device", FLEET, *_DEVICE
    )
    device_answers = CollectedRow(
        "device_answers_total", "questions", "Questions answered, by device", FLEET, *_DEVICE
    )
    device_refusals = CollectedRow(
        "device_refusals_total", "requests", "Requests refused, by device", FLEET, *_DEVICE
    )
    device_risk = CollectedRow(
        "device_risk_ratio_total",
        "ratio",
        "Sum of the risks of a device's answers; divided by those, their mean",
        FIDELITY,
        *_DEVICE,
    )
    device_newest = CollectedRow(
        "device_newest_frame_timestamp_seconds",
        "seconds",
        "When a device's newest good frame came, seconds since 1970; 0 before the first one",
        FLEET,
        *_DEVICE,
    )
