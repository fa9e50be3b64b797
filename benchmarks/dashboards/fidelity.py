"""Fidelity: whether the answers can be believed."""

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
    worst,
)

C, E = SERVICE, AGENT


def _losses(half: str) -> list[Panel]:
    return [
        Panel(
            "Unfamiliarity",
            "none",
            "About 1 on pictures like those of the training; above 1.5 in another world: a "
            "new site, "
            "fog, a dirty lens.",
            quantiles("unfamiliarity_ratio", half),
        ),
        Panel(
            "Error of quantization",
            "percentunit",
            "Steps with the operating point: a cheap point costs more.",
            quantiles("quantization_error_ratio", half),
        ),
        Panel(
            "Attention on dropped tokens",
            "percentunit",
            "Steps with the number of tokens kept.",
            quantiles("dropped_attention_ratio", half),
        ),
        Panel(
            "Outside the latents",
            "percentunit",
            "Flat for a bundle. A rise without a new bundle: pictures that its map was "
            "not made for.",
            quantiles("latent_residual_ratio", half),
        ),
    ]


BOARD = Dashboard(
    "Fidelity",
    "Can the answers be believed? Risk: the probability that the picture's answer would differ.",
    {
        "Belief": [
            Panel(
                "Risk of answers",
                "percentunit",
                "The mean is the share of answers that would differ. Normal is what the bundle's "
                "certificate says; the guard sends the picture above its limit.",
                {"mean": mean("risk_ratio"), **quantiles("risk_ratio")},
            ),
            Panel(
                "Answers with a risk above 0.2",
                "percentunit",
                "Below 5 %, the objective's budget.",
                {
                    "share": f'1 - sum (rate({C}risk_ratio_bucket{{le="0.2"}}[$__rate_interval])) '
                    f"/ {rate('risk_ratio_count')}",
                },
            ),
            Panel(
                "Pictures instead of frames",
                "ops",
                "Few. Many from one moment on: what cameras see has changed, or a new "
                "bundle is worse.",
                {"{{cause}}": rate("fallbacks_total", "cause")},
                of_total=True,
            ),
            Panel(
                "Pictures that show nothing",
                "ops",
                "0 by day. A dark or covered camera.",
                {"{{cause}}": rate("warnings_total", "cause")},
            ),
            Panel(
                "Crops by outcome",
                "ops",
                "0, unless crops are switched on on both sides.",
                {"{{outcome}}": rate("crops_total", "outcome")},
            ),
            Panel(
                "Bundles in doubt",
                "short",
                "0: each bundle's certificate says that its map beats its controls.",
                {
                    "{{bundle}} {{verdict}}": f"max by (bundle, verdict) ({C}bundle_doubtful) "
                    "or vector(0)"
                },
            ),
        ],
        "Truth, on shadowed frames": [
            Panel(
                "Same answer as from the picture",
                "percentunit",
                "Above 90 %, the objective. Only frames whose picture came too.",
                {
                    "{{bundle}}": "sum by (bundle) (rate("
                    f'{C}shadow_answers_total{{same="yes"}}[$__rate_interval])) / '
                    + rate("shadow_answers_total", "bundle"),
                },
            ),
            Panel(
                "True error of projected caches",
                "percentunit",
                "Flat for a bundle. Relative to the picture's own cache, mean over the layers.",
                {
                    "median, {{bundle}}": quantile(0.5, "shadow_error_ratio", "bundle"),
                    "95th percentile, {{bundle}}": quantile(0.95, "shadow_error_ratio", "bundle"),
                },
            ),
            Panel(
                "True error by layer",
                "percentunit",
                "Flat. Late layers usually lose more.",
                {"{{bundle}} {{layer}}": worst("shadow_layer_error_ratio", "bundle, layer", C)},
            ),
            Panel(
                "Divergence of the first token",
                "none",
                "Nats, near 0.",
                {
                    "median, {{bundle}}": quantile(0.5, "shadow_kl_nats", "bundle"),
                    "95th percentile, {{bundle}}": quantile(0.95, "shadow_kl_nats", "bundle"),
                },
            ),
            Panel(
                "Shadowed pictures",
                "ops",
                "The share that devices agreed to, 1 % by default. late: no engine had time.",
                {"{{outcome}}": rate("shadows_total", "outcome")},
                of_total=True,
            ),
            Panel(
                "Age of the newest shadowed picture",
                "s",
                "Minutes while frames come. No news is not good news.",
                {"{{bundle}}": f"time() - {worst('shadow_last_timestamp_seconds', 'bundle', C)}"},
            ),
            Panel(
                "Drift",
                "short",
                "0 devices. The live page names them.",
                {
                    "devices, {{bundle}}": worst("drift_devices", "bundle", C),
                    "alarms in an hour, {{bundle}}": or_none(
                        in_an_hour("drift_alarms_total", "bundle", C)
                    ),
                },
            ),
        ],
        "Losses": _losses(C),
    },
    by_name=[
        Panel(
            "Mean risk of each device",
            "percentunit",
            "Alike for all devices. One that stands out sees something else than the others.",
            {
                "{{tenant}}/{{device}}": rate("device_risk_ratio_total", "tenant, device")
                + " / "
                + rate("device_answers_total", "tenant, device"),
            },
        ),
    ],
    agents=[
        Panel(
            "Risk of frames",
            "percentunit",
            "As on the service; the guard acts on it.",
            {"mean": mean("risk_ratio", half=E), **quantiles("risk_ratio", E)},
        ),
        Panel(
            "Shadowed pictures",
            "ops",
            "The share that this device agreed to; none without consent.",
            {"{{outcome}}": rate("shadows_total", "outcome", E)},
        ),
        Panel(
            "Not the projected frame's answer",
            "ops",
            "Few; confident ones are the cascade's.",
            {"{{cause}}": rate("fallbacks_total", "cause", E)},
        ),
        Panel(
            "Confidence of the small model",
            "percentunit",
            "0 without a cascade.",
            {"mean": or_none(mean("confidence_ratio", half=E))},
        ),
        Panel(
            "Captures that show nothing",
            "ops",
            "0 by day.",
            {"{{cause}}": rate("warnings_total", "cause", E)},
        ),
        Panel(
            "Error of states sent back",
            "percentunit",
            "0 without feedback.",
            {"mean": or_none(mean("round_trip_ratio", half=E))},
        ),
        *_losses(E),
    ],
)
