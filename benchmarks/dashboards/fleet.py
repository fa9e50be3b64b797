"""Fleet: which devices are there, what they run, how they are."""

from __future__ import annotations

from benchmarks.dashboards.panel import (
    AGENT,
    SERVICE,
    Dashboard,
    Panel,
    in_an_hour,
    or_none,
    rate,
    total,
    worst,
)

C, E = SERVICE, AGENT

BOARD = Dashboard(
    "Fleet",
    "Who is there, what they run, how they are. The devices by name are on the live page.",
    {
        "Now": [
            Panel(
                "Devices",
                "short",
                "All known devices take orders, so silent is 0. Devices that were away "
                "briefly come "
                "back by themselves within minutes.",
                {
                    "known": total("known_devices", how="max"),
                    "here": total("attending"),
                    "silent": f"max ({C}known_devices) - sum ({C}attending)",
                    "have told their vitals": total("reporting_devices"),
                },
                number=True,
                span=12,
            ),
            Panel(
                "Oldest frame that waits",
                "s",
                "Seconds; minutes while a device catches up after an outage.",
                {"on any device": total("device_spool_oldest_age_seconds", how="max")},
                number=True,
                span=6,
            ),
            Panel(
                "Devices slowed down by heat",
                "short",
                "0. More at noon in summer: such devices hold captures back.",
                {"slowed down": total("throttled_devices")},
                number=True,
                span=6,
            ),
        ],
        "Devices": [
            Panel(
                "Devices that take orders",
                "short",
                "Flat, at the number of known devices. A step down at one moment: a site, the "
                "network or "
                "this service.",
                {
                    "known": total("known_devices", how="max"),
                    "{{instance}}": total("attending", "instance"),
                },
            ),
            Panel(
                "Sessions",
                "short",
                "One for each device that sends frames. Fresh ones have brought no good "
                "frame: many of "
                "them are devices that come and go.",
                {"held": total("sessions"), "fresh": total("fresh_sessions")},
            ),
            Panel(
                "Sessions opened and dropped",
                "ops",
                "Near 0. Devices open one when they start and after an outage. Dropped ones "
                "made room "
                "for others or lost their bundle.",
                {
                    "opened, {{bundle}}": rate("negotiations_total", "bundle"),
                    "dropped": rate("sessions_dropped_total"),
                },
            ),
            Panel(
                "Hottest device",
                "celsius",
                "Below 80 °C for most boards. Higher: shade, air, a lower power mode.",
                {"hottest": total("device_temperature_celsius", how="max")},
            ),
            Panel(
                "Power of all devices",
                "watt",
                "Follows the number of captures. Devices that do not measure it are left out.",
                {"together": total("device_power_watts")},
            ),
            Panel(
                "Devices that heat slows down",
                "short",
                "0.",
                {"slowed down": total("throttled_devices")},
            ),
        ],
        "Versions and care": [
            Panel(
                "Devices whose camera drifts",
                "short",
                "0. Else what they see no longer fits the map of their bundle.",
                {"{{bundle}}": worst("drift_devices", "bundle", C)},
            ),
            Panel(
                "Versions",
                "short",
                "One version of the service. Agents of one version, or of two during a "
                "staged update.",
                {
                    "service {{version}}": f"count by (version) ({C}build_info)",
                    "agents {{version}}": total("agent_devices", "version"),
                },
            ),
            Panel(
                "Open sessions by version of a bundle",
                "short",
                "One version for each bundle. Two while devices move to a new one.",
                {"{{digest}}": total("bundle_sessions", "digest")},
            ),
            Panel(
                "Bundles refused and rolled back",
                "short",
                "0. Else the log says why a version does not serve.",
                {
                    "refused in an hour": in_an_hour("bundle_refusals_total", half=C),
                    "rolled back in an hour": in_an_hour("bundle_rollbacks_total", half=C),
                },
            ),
            Panel(
                "Updates offered",
                "short",
                "Devices move from offered to fetched, trial, kept. Failed ones halt the update.",
                {
                    "{{number}} {{state}}": or_none(f"max by (number, state) ({C}update_devices)"),
                    "{{number}} halted": or_none(f"max by (number) ({C}update_halted)"),
                },
            ),
            Panel(
                "Orders and reports",
                "ops",
                "Vitals come all the time. Crash reports: look at them with cloud-server devices "
                "reports NAME.",
                {
                    "order {{kind}}": rate("orders_sent_total", "kind"),
                    "report {{kind}}": rate("device_reports_total", "kind"),
                },
            ),
            Panel(
                "Enrolments and renewals",
                "ops",
                "Near 0. Many refused ones: someone guesses codes, or devices use old ones.",
                {"{{outcome}}": rate("enrolments_total", "outcome")},
            ),
            Panel(
                "Certificates expire in",
                "s",
                "The service renews its own with 30 days left; the intermediate and the "
                "root need a "
                "person.",
                {
                    "{{certificate}}": f"min by (certificate) "
                    f"({C}certificate_end_timestamp_seconds) "
                    "- time()",
                    "the first of devices": f"min "
                    f"({C}device_certificate_end_timestamp_seconds) - time()",
                },
            ),
            Panel(
                "Age of what is known of callers",
                "s",
                "About a second. It grows while the database cannot be read; then the last "
                "known state "
                "is used.",
                {"{{instance}}": total("directory_stale_seconds", "instance", how="max")},
            ),
            Panel(
                "Served in plain text",
                "bool_yes_no",
                "No, except on one machine for trying things out.",
                {"{{instance}}": total("insecure", "instance", how="max")},
            ),
        ],
    },
    by_name=[
        Panel(
            "Age of the newest good frame",
            "s",
            "About the pause between two captures. It grows without end: silent, or all its "
            "frames are refused.",
            {
                "{{tenant}}/{{device}}": "time() - max by (tenant, device) "
                f"({C}device_newest_frame_timestamp_seconds > 0)",
            },
        ),
        Panel(
            "Frames and payload of each device",
            "ops",
            "As many frames as its camera gives.",
            {
                "{{tenant}}/{{device}}": rate("device_frames_total", "tenant, device"),
                "bytes, {{tenant}}/{{device}}": rate(
                    "device_payload_bytes_total", "tenant, device"
                ),
            },
        ),
        Panel(
            "Answers and refusals of each device",
            "ops",
            "Refused: near 0. One device alone: its clock, its bundle, its quota.",
            {
                "{{tenant}}/{{device}}": rate("device_answers_total", "tenant, device"),
                "refused, {{tenant}}/{{device}}": rate("device_refusals_total", "tenant, device"),
            },
        ),
    ],
    agents=[
        Panel(
            "Captures",
            "ops",
            "As many as the source gives or its trigger lets through. Errors and skipped "
            "entries: 0.",
            {
                "taken, {{instance}}": rate("captures_total", "instance", E),
                "error {{error}}": or_none(rate("capture_errors_total", "error", E)),
                "skipped {{kind}}": or_none(rate("source_entries_skipped_total", "kind", E)),
            },
        ),
        Panel(
            "Cameras",
            "short",
            "Each camera is seeing. Another state has its line in docs/device.md, Cameras.",
            {
                "{{camera}} {{state}}": f"max by (camera, state) ({E}camera_state == 1) "
                "or vector(0)",
                "restarts in an hour, {{camera}} {{cause}}": "sum by (camera, cause) "
                f"(increase({E}camera_restarts_total[1h])) or vector(0)",
            },
        ),
        Panel(
            "Age of the newest picture",
            "s",
            "Below a second or two for a running camera. Looking for motion: a few milliseconds.",
            {
                "{{camera}}": or_none(worst("camera_newest_frame_age_seconds", "camera")),
                "motion, {{camera}}": or_none(worst("camera_motion_seconds", "camera")),
            },
        ),
        Panel(
            "Pictures of cameras",
            "ops",
            "Pictures handed over; dropped ones by cause. newer and no_trigger are normal.",
            {
                "{{camera}}": or_none(rate("camera_frames_total", "camera", E)),
                "dropped {{cause}}": or_none(rate("camera_frames_dropped_total", "cause", E)),
            },
        ),
        Panel(
            "Heat",
            "celsius",
            "Below 80 °C for most boards.",
            {"{{instance}}": worst("temperature_celsius")},
        ),
        Panel(
            "Power",
            "watt",
            "Follows the number of captures. No line: the board does not measure it.",
            {"{{instance}}": worst("power_watts")},
        ),
        Panel(
            "Energy of one capture",
            "joule",
            "Flat. No line: the board does not measure it.",
            {"{{instance}}": worst("capture_joules")},
        ),
        Panel(
            "Slowed down, held back",
            "short",
            "0. Level 5 holds back most.",
            {
                "throttled, {{instance}}": worst("throttled"),
                "held back, {{cause}}": or_none(worst("restraint_level", "cause")),
            },
        ),
        Panel(
            "What runs the model",
            "short",
            "One processor; fallback is 0.",
            {
                "{{device}}": f"sum by (device) ({E}model_device)",
                "fallback, {{instance}}": worst("device_fallback"),
            },
        ),
        Panel(
            "Memory",
            "bytes",
            "Flat after the first minutes.",
            {"{{instance}}": worst("resident_memory_bytes")},
        ),
        Panel(
            "Versions and slots",
            "short",
            "One version, one slot; each a 1.",
            {
                "{{version}}": f"sum by (version) ({E}build_info)",
                "slot {{slot}}, update {{number}}": f"sum by (slot, number) ({E}slot_info) "
                "or vector(0)",
            },
        ),
        Panel(
            "Updates and renewals",
            "short",
            "Failures are 0.",
            {
                "renewed in a day": f"sum (increase({E}renewals_total[1d]))",
                "renewal failed, {{error}}": f"sum by (error) "
                f"(increase({E}renewal_failures_total[1d])) "
                "or vector(0)",
                "update failed, {{error}}": f"sum by (error) "
                f"(increase({E}update_failures_total[1d])) "
                "or vector(0)",
            },
        ),
        Panel(
            "Certificate expires in",
            "s",
            "Above a third of its life. No line: not enrolled.",
            {
                "{{instance}}": f"min by (instance) ({E}certificate_end_timestamp_seconds > "
                "0) - time()",
            },
        ),
        Panel(
            "Connection, care and trust",
            "short",
            "connected and takes orders are 1, plain text is 0.",
            {
                "connected, {{instance}}": worst("connected"),
                "takes orders, {{instance}}": worst("attended"),
                "plain text, {{instance}}": worst("plain_text"),
                "settings' revision, {{instance}}": worst("remote_settings_revision"),
            },
        ),
        Panel(
            "Orders, reports and log lines",
            "ops",
            "Vitals go up all the time. Dropped log lines: 0.",
            {
                "order {{kind}} {{how}}": or_none(rate("orders_total", "kind, how", E)),
                "report {{kind}}": rate("reports_sent_total", "kind", E),
                "log lines dropped": rate("log_lines_dropped_total", "", E),
            },
        ),
        Panel(
            "Oldest frame that waits on the disk",
            "s",
            "Seconds; minutes after an outage.",
            {"{{instance}}": worst("spool_oldest_age_seconds")},
        ),
    ],
)
