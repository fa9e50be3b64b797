"""Figures that compare arms, from answers, timings and byte counts. No file, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_agent.picture import PictureCodec
from projector.codec.answers import same_answer
from projector.validation.estimate import clustered, paired, spread
from reference.demo.figures import accuracies
from reference.demo.testset import TestSet

ARMS = (
    "cloud_image",
    "injected",
    "injected_float",
    "raw_kv_fp8",
    "edge_only",
    "blind",
    "other_picture",
    "other_picture_labels",
    "mean_state",
)
WITHIN = 0.02
"""An arm is good enough if it scores at most this far below the cloud that sees the picture."""


def compared(test: TestSet, answers: Mapping[str, list[str]]) -> dict[str, Any]:
    """Accuracy of every arm, the differences of interest, and how often answers agree.

    Args:
        test: pictures and questions.
        answers: by arm (see `ARMS`), one per question.
    """
    right = {arm: test.right(answers[arm]) for arm in ARMS}
    clusters = test.clusters
    pairs = (
        ("injected", "cloud_image"),
        ("injected", "edge_only"),
        ("injected", "injected_float"),
        ("injected", "raw_kv_fp8"),
        ("other_picture", "other_picture_labels"),
    )
    differences = {f"{a}_minus_{b}": paired(right[a], right[b], clusters) for a, b in pairs}
    labels = zip(answers["other_picture"], answers["other_picture_labels"], strict=True)
    followed = [same_answer(given, label) for given, label in labels]
    agree = [a == b for a, b in zip(answers["injected"], answers["cloud_image"], strict=True)]
    return {
        **accuracies(test, {arm: answers[arm] for arm in ARMS}),
        "differences": {name: d.to_json() for name, d in differences.items()},
        "agreement": {
            "injected_with_cloud_image": round(float(np.mean(agree)), 5),
            "other_picture_with_its_labels": round(float(np.mean(followed)), 5),
        },
    }


def bytes_ratio(report: dict[str, Any]) -> dict[str, Any]:
    """Bytes of the smallest JPEG or WebP that keeps the cloud within two points, over ours."""
    floor = report["accuracy"]["cloud_image"] - WITHIN
    enough = [
        c
        for c in report["image_codecs"]
        if c["codec"] in ("jpeg", "webp") and c["accuracy"] >= floor
    ]
    if not enough:
        return {"codec": None, "bytes": None, "ratio": None}
    best = min(enough, key=lambda c: c["bytes"])
    return {
        "codec": f"{best['codec']} q{best['quality']} at {best['size_px']} px",
        "bytes": best["bytes"],
        "ratio": round(best["bytes"] / report["wire_bytes_per_frame"]["mean"], 3),
    }


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets of the project beside what was measured; `met` is None if nothing was."""
    accuracy = report["accuracy"]
    control = report["differences"]["other_picture_minus_other_picture_labels"]["mean"]
    rows: list[tuple[str, float | None, float, float]] = [
        (
            "injected minus the cloud seeing the picture (points)",
            100 * (accuracy["injected"] - accuracy["cloud_image"]),
            -2,
            math.inf,
        ),
        (
            "injected minus the edge alone (points)",
            100 * (accuracy["injected"] - accuracy["edge_only"]),
            5,
            math.inf,
        ),
        ("another picture's cache minus that picture's labels (points)", 100 * control, -3, 3),
        ("bytes on the wire per frame", report["wire_bytes_per_frame"]["mean"], 0, 400),
        (
            "smallest JPEG or WebP within 2 points, over ours (ratio)",
            report["bytes_ratio"]["ratio"],
            4,
            math.inf,
        ),
    ]
    for batch, most in (("batch_1", 0.8), ("batch_16", 0.5)):
        name = f"time to first token, injected over picture, {batch.replace('_', ' ')} (ratio)"
        rows.append((name, report["ttft_ratio"].get(batch), 0, most))
    return [
        {
            "name": name,
            "target": _bounds(low, high),
            "measured": None if value is None else round(float(value), 3),
            "met": None if value is None else low <= value <= high,
        }
        for name, value, low, high in rows
    ]


def _bounds(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if low == 0 else f"{low:g} to {high:g}"


def codec_row(
    codec: PictureCodec, test: TestSet, answers: list[str], counted: dict[str, float]
) -> dict[str, Any]:
    """One row of `image_codecs`; `bytes` are those on the wire, as for our own frames."""
    size = codec.longest_px or max(test.pictures[0].size)
    found = clustered([float(r) for r in test.right(answers)], test.clusters)
    return {
        "codec": codec.codec,
        "quality": codec.quality if codec.codec != "png" else None,
        "size_px": size,
        "bytes": counted["mean"],
        "payload_bytes": counted["payload_mean"],
        "accuracy": round(found.mean, 5),
        "interval": [round(found.low, 5), round(found.high, 5)],
    }


def first_token_figures(found: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians, 95th percentiles and ratios of the time to first token.

    Args:
        found: by batch size and arm, one number of milliseconds per request.
    """
    medians = {
        batch: {arm: spread(values) for arm, values in arms.items()}
        for batch, arms in found.items()
    }
    ratio = {}
    ratio_webp = {}
    for batch, arms in medians.items():
        mine = arms["injected"]["p50"]
        ratio[f"batch_{batch}"] = round(mine / arms["picture_png"]["p50"], 4)
        ratio_webp[f"batch_{batch}"] = round(mine / arms["picture_webp"]["p50"], 4)
    return {
        "ttft_ratio": ratio,
        "ttft_ratio_webp": ratio_webp,
        "ttft_ms": {f"batch_{batch}": arms for batch, arms in medians.items()},
    }
