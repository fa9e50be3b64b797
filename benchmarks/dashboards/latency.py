"""Latency: how long answers take, and where the time goes."""

from __future__ import annotations

from benchmarks.dashboards.panel import (
    AGENT,
    SERVICE,
    Dashboard,
    Panel,
    quantile,
    quantiles,
    rate,
    total,
    worst,
)

C, E = SERVICE, AGENT

BOARD = Dashboard(
    "Latency",
    "How long answers take, where the time goes, and who waits.",
    {
        "Answers": [
            Panel(
                "Time to first token",
                "s",
                "The upper line stays below the objective's second. From a request's last "
                "byte to its "
                "first token.",
                quantiles("first_token_seconds"),
            ),
            Panel(
                "Time to the whole answer",
                "s",
                "Longer than to the first token by the tokens of the answer.",
                quantiles("answer_seconds"),
            ),
            Panel(
                "Stages, 95th percentile",
                "s",
                "queue grows under load; prefill and generate when the engine's machine is busy.",
                {"{{stage}}": quantile(0.95, "stage_seconds", "stage")},
            ),
        ],
        "Who waits": [
            Panel(
                "Requests that wait",
                "short",
                "Near 0; it rises and falls with bursts. Those whose callers are gone make "
                "room first.",
                {
                    "unanswered": total("queue_depth"),
                    "callers gone": total("left_queue_depth"),
                },
            ),
            Panel(
                "Estimated wait",
                "s",
                "Below a second. Above the limit, requests are refused with a hint when to "
                "come back.",
                {"{{instance}}": total("queue_wait_seconds", "instance", how="max")},
            ),
            Panel(
                "Pace while others wait",
                "ops",
                "What the engines can do. Below it at the same load: an engine is slower "
                "than before.",
                {"{{instance}}": total("requests_ended_per_second", "instance", how="max")},
            ),
            Panel(
                "Traces",
                "ops",
                "0, unless traces are exported. dropped: the collector is slow or gone.",
                {"{{why}}": rate("traces_total", "why")},
            ),
        ],
    },
    agents=[
        Panel(
            "Traces of devices",
            "ops",
            "0, unless traces are exported.",
            {"{{why}}": rate("traces_total", "why", E)},
        ),
        Panel(
            "Stages on devices, 95th percentile",
            "s",
            "prefill is most of it. uplink: from sending to the answer.",
            {"{{stage}}": quantile(0.95, "stage_seconds", "stage", E)},
        ),
        Panel(
            "Stages on devices, how often",
            "ops",
            "As often as captures come.",
            {"{{stage}}": rate("stage_seconds_count", "stage", E)},
        ),
        Panel(
            "Frames in flight",
            "short",
            "A few.",
            {"{{instance}}": worst("queue_depth")},
        ),
        Panel(
            "Round trip",
            "s",
            "Tens of milliseconds on a good link.",
            {"{{instance}}": worst("uplink_round_trip_seconds")},
        ),
    ],
)
