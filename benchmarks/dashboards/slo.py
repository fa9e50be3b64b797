"""SLO: objectives, how fast their budgets burn, and what counts against them."""

from __future__ import annotations

from benchmarks.dashboards.panel import (
    AGENT,
    SERVICE,
    Dashboard,
    Panel,
    or_none,
    quantiles,
    rate,
    total,
    worst,
)

C, E = SERVICE, AGENT
_BURN, _TARGET = "neural_bridge:slo_burn:ratio", "neural_bridge:slo_target:ratio"
_BAD, _EVENTS = "neural_bridge:slo_bad_events:rate5m", "neural_bridge:slo_events:rate5m"

BOARD = Dashboard(
    "SLO",
    "Objectives and their error budgets. Targets are in prometheus/rules/objectives.yaml.",
    {
        "Objectives": [
            Panel(
                "Good events, last 3 days",
                "percentunit",
                "Above its target. No value: nothing was asked.",
                {
                    "{{slo}}": f"1 - sum by (slo) (sum_over_time({_BAD}[3d])) "
                    f"/ sum by (slo) (sum_over_time({_EVENTS}[3d]))",
                    "target of {{slo}}": f"max by (slo) ({_TARGET})",
                },
                number=True,
                span=16,
            ),
            Panel(
                "Answers now",
                "bool_yes_no",
                "Yes. No: the last question, a device's or our own, had no answer.",
                {"{{instance}}": total("answering", "instance", how="min")},
                number=True,
            ),
            Panel(
                "Burn rate, an hour",
                "none",
                "Below 1 spends no more than the budget. Above 14.4 someone is woken.",
                {"{{slo}}": f'max by (slo) ({_BURN}{{window="1h"}})'},
            ),
            Panel(
                "Burn rate, six hours",
                "none",
                "Above 6 someone is woken.",
                {"{{slo}}": f'max by (slo) ({_BURN}{{window="6h"}})'},
            ),
            Panel(
                "Burn rate, three days",
                "none",
                "Above 1 a ticket is opened.",
                {"{{slo}}": f'max by (slo) ({_BURN}{{window="3d"}})'},
            ),
        ],
        "What counts": [
            Panel(
                "Events and bad events",
                "ops",
                "Bad ones are near 0.",
                {
                    "{{slo}}": f"max by (slo) ({_EVENTS})",
                    "bad for {{slo}}": f"max by (slo) ({_BAD})",
                },
            ),
            Panel(
                "Questions and answers",
                "ops",
                "Answers follow questions.",
                {
                    "asked by {{call}}": rate("questions_total", "call"),
                    "answered, {{bundle}}": rate("answers_total", "bundle"),
                },
            ),
            Panel(
                "Refused, by reason",
                "ops",
                "Near 0. docs: errors have a number and a cause each.",
                {"{{reason}}": or_none(rate("refusals_total", "reason"))},
                of_total=True,
            ),
            Panel(
                "Refused as overload, by what was full",
                "ops",
                "0. Quotas and shares: one caller's. queue and wait: the service's.",
                {"{{cause}}": rate("overloads_total", "cause")},
                of_total=True,
            ),
            Panel(
                "Nobody waited any more",
                "ops",
                "Near 0. lost: a link broke. deadline: the caller's own.",
                {"{{how}}": rate("left_requests_total", "how")},
                of_total=True,
            ),
            Panel(
                "Questions of our own",
                "ops",
                "answered. None while devices ask enough.",
                {"{{outcome}}": rate("canaries_total", "outcome")},
                of_total=True,
            ),
            Panel(
                "Time to first token and to the answer",
                "s",
                "95 of 100 first tokens come within the objective's second.",
                {
                    **quantiles("first_token_seconds"),
                    "answer, median": quantiles("answer_seconds")["median"],
                },
            ),
            Panel(
                "Risk of answers",
                "percentunit",
                "95 of 100 answers have a risk of at most 20 %.",
                quantiles("risk_ratio"),
            ),
            Panel(
                "Shadowed frames: same answer as from the picture",
                "percentunit",
                "Above 90 %.",
                {
                    "{{bundle}}": "sum by (bundle) (rate("
                    f'{C}shadow_answers_total{{same="yes"}}[$__rate_interval])) / '
                    + rate("shadow_answers_total", "bundle"),
                },
            ),
            Panel(
                "Shadowing and drift",
                "short",
                "0 devices drift; the newest shadowed picture is minutes old.",
                {
                    "devices that drift, {{bundle}}": worst("drift_devices", "bundle", C),
                    "hours since the newest, {{bundle}}": "(time() - "
                    f"{worst('shadow_last_timestamp_seconds', 'bundle', C)}) / 3600",
                },
            ),
            Panel(
                "HTTP answers, by status",
                "ops",
                "Mostly 200.",
                {"{{status}}": or_none(rate("http_requests_total", "status"))},
                of_total=True,
            ),
        ],
    },
    agents=[
        Panel(
            "How questions end on devices",
            "ops",
            "Answered by the service.",
            {
                "by the service": rate("answers_total", "", E),
                "by the small model": rate("edge_only_answers_total", "", E),
                "with a state sent back": rate("feedback_answers_total", "", E),
                "scenes held": rate("scenes_held_total", "", E),
            },
        ),
        Panel(
            "Without an answer",
            "ops",
            "0.",
            {"{{reason}}": or_none(rate("refusals_total", "reason", E))},
        ),
    ],
)
