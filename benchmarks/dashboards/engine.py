"""Engine: the processes that run the large model, and the memory of the service."""

from __future__ import annotations

from benchmarks.dashboards.panel import SERVICE, Dashboard, Panel, or_none, rate, total

C = SERVICE

BOARD = Dashboard(
    "Engine",
    "The processes that run the large model, what they hold, and the memory of the service.",
    {
        "Engines": [
            Panel(
                "Engines ready",
                "short",
                "All of them are 1. up: this front end takes requests.",
                {
                    "{{instance}} engine {{engine}}": f"max by (instance, engine) "
                    f"({C}engine_ready)",
                    "{{instance}} up": total("engine_up", "instance", how="max"),
                },
            ),
            Panel(
                "Engines started anew",
                "short",
                "0. The log's 'engine lost' says why.",
                {
                    "in 15 minutes, {{instance}}": f"sum by (instance) "
                    f"(increase({C}engine_restarts_total[15m]))"
                },
            ),
            Panel(
                "Requests that end engines",
                "short",
                "0. Suspects run alone next; those that end an engine twice are refused "
                "from then on.",
                {
                    "suspects": total("suspect_requests"),
                    "in quarantine": total("quarantined_requests"),
                },
            ),
            Panel(
                "Questions in the running batches",
                "short",
                "As many as come at once, up to the engine's limit.",
                {
                    "all": total("running_requests"),
                    "{{instance}} engine {{engine}}": f"sum by (instance, engine) "
                    f"({C}engine_running_requests)",
                },
            ),
            Panel(
                "Tokens generated",
                "ops",
                "Follows the questions.",
                {"tokens": rate("generated_tokens_total")},
            ),
            Panel(
                "Log lines lost",
                "ops",
                "0. Whoever reads standard error is too slow or gone.",
                {
                    "{{process}}": rate("log_lines_dropped_total", "process"),
                    "event log": rate("event_lines_dropped_total"),
                },
            ),
        ],
        "Scenes": [
            Panel(
                "Scenes held",
                "short",
                "Grows to its bound, then stays. kept: frames from which a scene can be made anew.",
                {"in engines": total("scenes"), "kept": total("held_scenes")},
            ),
            Panel(
                "Scenes made anew",
                "ops",
                "Near 0. Many: engines hold too few scenes for what is asked.",
                {"scenes": rate("scenes_remade_total")},
            ),
            Panel(
                "Memory of scenes",
                "bytes",
                "Below its bounds. pool: set aside, used or free.",
                {
                    "scenes": total("scene_memory_bytes"),
                    "frames kept": total("held_scene_memory_bytes"),
                    "pool": total("pool_memory_bytes"),
                },
            ),
        ],
        "Memory": [
            Panel(
                "Memory of processes",
                "bytes",
                "Flat after the first minutes. Engine and spare share pages and both count them.",
                {"{{process}}": total("resident_memory_bytes", "process")},
            ),
            Panel(
                "Memory of each engine",
                "bytes",
                "Below --engine-memory-bytes; an engine above it is replaced.",
                {
                    "{{instance}} engine {{engine}}": "max by (instance, engine) "
                    f"({C}engine_resident_memory_bytes)",
                },
            ),
            Panel(
                "Memory held for callers",
                "bytes",
                "Small; one tenant alone cannot fill it.",
                {
                    "{{store}}": or_none(total("held_memory_bytes", "store")),
                    "HTTP bodies": total("http_body_memory_bytes"),
                    "idempotency": total("idempotency_memory_bytes"),
                },
                of_total=True,
            ),
        ],
    },
)
