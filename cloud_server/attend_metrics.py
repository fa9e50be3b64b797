"""The rows of the service's table about devices that take orders: what they say of themselves.

No series is a device's own: a row shows the worst of all devices, their number or their sum.
"""

from __future__ import annotations

from protos.process.metric_kinds import Label
from protos.process.metric_rows import FLEET, LINK, CollectedRow, GaugeRow
from protos.process.metrics import MetricSet


class AttendMetrics(MetricSet):
    """These rows; a base class of `cloud_server.metrics.Metrics`."""

    known_devices = GaugeRow(
        "known_devices",
        "devices",
        "Enabled devices that have taken orders once, at any front end; NaN until the database was "
        "read",
        FLEET,
    )
    agent_devices = CollectedRow(
        "agent_devices",
        "devices",
        "Devices that take orders at this front end, by their agent's version",
        FLEET,
        Label("version", bound="versions in use", most=32),
    )
    reporting_devices = CollectedRow(
        "reporting_devices",
        "devices",
        "Devices that take orders at this front end and have told their vitals",
        FLEET,
    )
    device_spool_frames = CollectedRow(
        "device_spool_frames",
        "frames",
        "Frames that wait on the disks of these devices together",
        LINK,
    )
    device_spool_age = CollectedRow(
        "device_spool_oldest_age_seconds",
        "seconds",
        "Age of the oldest frame that waits on any of these devices, now",
        (LINK, FLEET),
    )
    device_temperature = CollectedRow(
        "device_temperature_celsius",
        "celsius",
        "Temperature of the hottest of these devices",
        FLEET,
    )
    device_power = CollectedRow(
        "device_power_watts", "watts", "Power of these devices together, as far as measured", FLEET
    )
    throttled_devices = CollectedRow(
        "throttled_devices", "devices", "Devices that heat slows down", FLEET
    )
    device_certificate_end = CollectedRow(
        "device_certificate_end_timestamp_seconds",
        "seconds",
        "When the first certificate of these devices expires, seconds since 1970",
        FLEET,
    )
