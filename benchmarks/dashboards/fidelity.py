"""Fidelity: whether the answers can be believed."""

from __future__ import annotations

from benchmarks.dashboards.panel import (
    AGENT,
    SERVICE,
    Dashboard,
    Panel,
    mean,
    or_none,
    quantiles,
    rate,
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
