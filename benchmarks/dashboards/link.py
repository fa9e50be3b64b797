"""Link: what travels between devices and the service."""

from __future__ import annotations

from benchmarks.dashboards.panel import (
    AGENT,
    SERVICE,
    Dashboard,
    Panel,
    in_an_hour,
    mean,
    or_none,
    quantile,
    quantiles,
    rate,
    total,
    worst,
)

C, E = SERVICE, AGENT

BOARD = Dashboard(
    "Link",
    "What travels between devices and the service, and what waits.",
    {
        "Frames": [
            Panel(
                "Frames received",
                "ops",
                "As many as the cameras give, by operating point. A move to cheaper points: "
                "links are "
                "thin. picture: the guard wants the picture.",
                {"{{point}}": rate("frames_total", "point")},
                of_total=True,
            ),
            Panel(
                "Payload of a frame",
                "bytes",
                "Some 33 bytes for the reference pair. 95 of 100 frames are below the upper line.",
                {
                    "mean": mean("payload_bytes"),
                    "95th percentile": quantile(0.95, "payload_bytes"),
                },
            ),
            Panel(
                "Tokens kept in a frame",
                "short",
                "Flat for a steady scene and link.",
                quantiles("kept_tokens"),
            ),
            Panel(
                "Key and delta frames",
                "ops",
                "Mostly deltas on fixed cameras. Only keys: devices reconnect often.",
                {"{{kind}}": rate("frame_kinds_total", "kind")},
                of_total=True,
            ),
            Panel(
                "Requests in one message",
                "ops",
                "1 for devices whose consumers wait for answers; more with --linger-ms.",
                {"{{requests}}": or_none(rate("parcels_total", "requests"))},
            ),
            Panel(
                "Frames that wait on devices",
                "short",
                "A few. It grows while a link or this service takes less than devices make.",
                {"together": total("device_spool_frames")},
            ),
            Panel(
                "Oldest frame that waits on a device",
                "s",
                "Seconds; minutes after an outage.",
                {"on any device": total("device_spool_oldest_age_seconds", how="max")},
            ),
        ],
        "Bytes and calls": [
            Panel(
                "Message bytes received",
                "Bps",
                "Follows the frames. Pictures and crops are hundreds of frames each.",
                {"{{call}}": rate("received_bytes_total", "call")},
                of_total=True,
            ),
            Panel(
                "Updates and states sent",
                "Bps",
                "0, except while devices fetch an update.",
                {
                    "updates": rate("update_bytes_total"),
                    "states": or_none(rate("sent_back_bytes_sum")),
                },
            ),
            Panel(
                "States sent back",
                "ops",
                "0, unless devices use feedback.",
                {"{{point}}": or_none(rate("feedbacks_total", "point"))},
            ),
            Panel(
                "Crops",
                "bytes",
                "No line, unless crops are switched on on both sides.",
                {"mean": or_none(mean("crop_bytes"))},
            ),
            Panel(
                "Requests that came again",
                "ops",
                "Near 0. Devices send again after a break; nothing is computed twice.",
                {
                    "answered from memory": rate("answers_from_memory_total"),
                    "joined their first": rate("joined_requests_total"),
                },
            ),
            Panel(
                "Open calls and connections",
                "short",
                "Two or three calls a device, one connection an application.",
                {"calls": total("open_calls"), "HTTP": total("http_connections")},
            ),
            Panel(
                "HTTP requests",
                "ops",
                "Mostly 200. 429: quotas. 503: no engine or too much load.",
                {
                    "{{method}} {{status}}": or_none(rate("http_requests_total", "method, status")),
                },
                of_total=True,
            ),
        ],
    },
    agents=[
        Panel(
            "Frames and bytes sent",
            "ops",
            "As many frames as captures, by point.",
            {
                "{{point}}": rate("frames_sent_total", "point", E),
                "coded {{kind}}": rate("frames_coded_total", "kind", E),
            },
        ),
        Panel(
            "Message bytes sent",
            "Bps",
            "Follows the frames.",
            {
                "sent": rate("sent_bytes_total", "", E),
                "shadowed pictures": rate("shadow_bytes_total", "", E),
                "updates fetched": rate("update_bytes_total", "", E),
            },
        ),
        Panel(
            "Payload of a frame",
            "bytes",
            "Some 33 bytes for the reference pair.",
            {
                "mean": mean("payload_bytes", half=E),
                "95th percentile": quantile(0.95, "payload_bytes", half=E),
            },
        ),
        Panel(
            "Tokens kept",
            "short",
            "Flat for a steady scene and link.",
            quantiles("kept_tokens", E),
        ),
        Panel(
            "Messages, by their frames",
            "ops",
            "More frames a message with --linger-ms.",
            {"{{frames}}": or_none(rate("messages_sent_total", "frames", E))},
        ),
        Panel(
            "Wait for others of the same message",
            "s",
            "Below --linger-ms.",
            {"mean": or_none(mean("linger_seconds", half=E))},
        ),
        Panel(
            "Frames on the disk",
            "short",
            "A few.",
            {"{{instance}}": worst("spool_frames")},
        ),
        Panel(
            "Bytes and age on the disk",
            "short",
            "Far below --spool-bytes; seconds.",
            {
                "bytes, {{instance}}": worst("spool_bytes"),
                "age in s, {{instance}}": worst("spool_oldest_age_seconds"),
            },
        ),
        Panel(
            "Frames lost or set aside",
            "short",
            "0. thinned: the spool was full and kept every other old frame.",
            {
                "dropped in an hour, {{cause}}": f"sum by (cause) "
                f"(increase({E}spool_dropped_total[1h]))",
                "set aside in an hour": in_an_hour("spool_set_aside_total"),
                "not written in an hour, {{error}}": "sum by (error) "
                f"(increase({E}spool_failures_total[1h])) or vector(0)",
            },
        ),
        Panel(
            "Streams",
            "short",
            "0. Many: NAT or a proxy cuts idle connections.",
            {
                "opened anew in an hour": in_an_hour("reconnects_total"),
                "sessions in an hour": in_an_hour("negotiations_total"),
                "other server in an hour": in_an_hour("server_switches_total"),
                "encoders in an hour": in_an_hour("encoder_fetches_total"),
            },
        ),
        Panel(
            "Connected, server, keepalive",
            "short",
            "1; rank 0 is the preferred server; keepalive in seconds as learnt.",
            {
                "connected, {{instance}}": worst("connected"),
                "rank, {{instance}}": worst("server_rank"),
                "keepalive, {{instance}}": worst("keepalive_interval_seconds"),
            },
        ),
        Panel(
            "Operating point",
            "short",
            "One point is 1. Many switches: a link that comes and goes. A point that the "
            "bundle lacks: the device uses the default.",
            {
                "{{point}}": f"sum by (point) ({E}point)",
                "switches in an hour": in_an_hour("point_switches_total"),
                "devices whose point the bundle lacks": f"sum({E}point_fallback)",
            },
        ),
        Panel(
            "Round trip",
            "s",
            "Tens of milliseconds on a good link.",
            {"{{instance}}": worst("uplink_round_trip_seconds")},
        ),
        Panel(
            "Rate of the uplink",
            "Bps",
            "Infinite while no frame was large enough to tell.",
            {"{{instance}}": f"min by (instance) ({E}uplink_bytes_per_second)"},
        ),
        Panel(
            "Sent again, events twice",
            "ops",
            "Near 0.",
            {
                "again, {{cause}}": or_none(rate("retries_total", "cause", E)),
                "events twice": rate("duplicate_events_total", "", E),
            },
        ),
        Panel(
            "States and crops",
            "ops",
            "0, unless feedback or crops are used.",
            {
                "states, {{point}}": or_none(rate("feedbacks_total", "point", E)),
                "state bytes": or_none(rate("received_back_bytes_sum", "", E)),
                "crops, {{outcome}}": rate("crops_total", "outcome", E),
                "crop bytes": rate("crop_bytes_sum", "", E),
            },
        ),
    ],
)
