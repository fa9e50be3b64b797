"""Which figures a report must hold, and what makes it incomplete."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from benchmarks.compare.figures import ARMS

STAGES = (
    "edge_prefill",
    "select",
    "encode",
    "uplink",
    "decode",
    "project",
    "inject",
    "ttft",
    "total",
)
REQUIRED: dict[str, tuple[str, ...]] = {
    "accuracy": ARMS,
    "wire_bytes_per_frame": ("mean", "p95"),
    "payload_bytes_per_frame": ("mean", "p95"),
    "ttft_ratio": ("batch_1", "batch_16"),
    "distortion": ("quantize", "select", "latent", "actual"),
}
CODEC_KEYS = ("codec", "quality", "size_px", "bytes", "accuracy")


def problems(report: dict[str, Any]) -> list[str]:
    """What is wrong with a report: missing keys, figures that are not finite numbers."""
    return list(_problems(report))


def _problems(report: dict[str, Any]) -> Iterator[str]:
    for key in ("pictures", "questions", "setup_bytes"):
        if not _is_figure(report.get(key)):
            yield f"{key} is missing or no number"
    for key, names in REQUIRED.items():
        part = report.get(key)
        for name in names:
            if not isinstance(part, dict) or not _is_figure(part.get(name)):
                yield f"{key}.{name} is missing or no number"
    latency = report.get("latency_ms")
    for stage in STAGES:
        found = latency.get(stage) if isinstance(latency, dict) else None
        for name in ("p50", "p95"):
            if not isinstance(found, dict) or not _is_figure(found.get(name)):
                yield f"latency_ms.{stage}.{name} is missing or no number"
    codecs = report.get("image_codecs")
    if not isinstance(codecs, list) or not codecs:
        yield "image_codecs is missing or empty"
        return
    for number, codec in enumerate(codecs):
        for name in CODEC_KEYS:
            figure = name in ("size_px", "bytes", "accuracy")
            if name not in codec or (figure and not _is_figure(codec[name])):
                yield f"image_codecs[{number}].{name} is missing or no number"


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
