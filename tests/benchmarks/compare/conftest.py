"""A report of invented answers about real yard pictures: everything but models and processes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from PIL import Image

from benchmarks.compare import figures
from edge_agent.picture import PictureCodec
from reference.demo.figures import distortions, first_questions, latencies
from reference.demo.testset import Asked, TestSet
from reference.yard import list_questions, render, sample_scenes

SKILL = {
    "cloud_image": 0.95,
    "injected": 0.94,
    "injected_float": 0.945,
    "raw_kv_fp8": 0.93,
    "edge_only": 0.78,
    "blind": 0.3,
    "other_picture": 0.41,
    "mean_state": 0.33,
}


@pytest.fixture(scope="session")
def testset() -> TestSet:
    count = 12
    scenes = sample_scenes("test", 0, count)
    pictures = [Image.fromarray(pixels) for pixels in render(scenes)]
    asked = [
        Asked(i, q.text, q.kind, q.answer)
        for i in range(count)
        for q in list_questions(scenes, i)[::6]
    ]
    return TestSet("test", pictures, [f"test-{i:05d}" for i in range(count)], asked, scenes)


@pytest.fixture(scope="session")
def answers(testset: TestSet) -> dict[str, list[str]]:
    rng = random.Random(5)
    made = {
        arm: [q.truth if rng.random() < skill else "seven" for q in testset.asked]
        for arm, skill in SKILL.items()
    }
    made["other_picture_labels"] = [
        testset.truth_in(j, q.text) or ""
        for j, q in zip(testset.others(), testset.asked, strict=True)
    ]
    return made


def _records(testset: TestSet) -> list[dict[str, Any]]:
    rng = random.Random(6)
    stages = ("queue", "decode", "project", "inject", "prefill", "generate", "ttft", "total")
    return [
        {
            "capture": testset.names[q.picture],
            "question": q.text,
            "answer": q.truth,
            "edge_ms": {
                "prefill": rng.uniform(8, 12),
                "select": rng.uniform(0.1, 0.2),
                "encode": rng.uniform(0.5, 0.9),
                "uplink": rng.uniform(22, 30),
            },
            "server_ms": {name: rng.uniform(0.4, 3.0) for name in stages[:-1]}
            | {"total": rng.uniform(15, 20)},
            "distortion": {
                "quantize": 0.21,
                "dropped_attention": 0.0,
                "latent_residual": 0.4,
                "unfamiliarity": 1.0,
            },
        }
        for q in testset.asked
    ]


@pytest.fixture
def report(testset: TestSet, answers: dict[str, list[str]]) -> dict[str, Any]:
    rng = random.Random(7)
    codecs = [
        figures.codec_row(
            PictureCodec(codec, quality, px),
            testset,
            [q.truth if rng.random() < skill else "" for q in testset.asked],
            {"mean": size, "payload_mean": size - 60},
        )
        for codec, quality, px, size, skill in (
            ("webp", 80, 0, 4200.0, 0.95),
            ("jpeg", 50, 96, 2100.0, 0.92),
            ("webp", 20, 64, 640.0, 0.8),
        )
    ]
    arms = {"injected": 12.0, "picture_png": 24.0, "picture_webp": 22.0}
    made = figures.compared(testset, answers) | {
        "whole": True,
        "problems": [],
        "wire_bytes_per_frame": {"mean": 262.4, "p95": 281.0},
        "payload_bytes_per_frame": {"mean": 190.1, "p95": 209.0},
        "wire_bytes_per_frame_by_arm": {
            "injected": 262.4,
            "injected_float": 2400.0,
            "raw_kv_fp8": 18500.0,
            "cloud_image": 36000.0,
        },
        "wire_bytes_per_question": 131.0,
        "setup_bytes": 91000,
        "image_codecs": codecs,
        "latency_ms": latencies(_records(testset)),
        "flops": {"picture": 9.1e8, "injected": 3.2e8, "project": 2.0e7},
        "distortion": distortions(_records(testset)) | {"actual": 0.31},
        "distortion_by_layer": [{"keys": 0.2 + n / 30, "values": 0.3 + n / 25} for n in range(8)],
        "first_questions": first_questions(
            testset, {arm: answers[arm] for arm in ("injected", "cloud_image", "edge_only")}, 10
        ),
        "operating_point": {"name": "u1", "quantizer": "uniform", "rank": 16, "tokens": 36},
        "made": {
            "split": "test",
            "machine": "x86_64, Linux, 2 cores",
            "python": "3.11",
            "threads_per_process": 1,
            "edge_parameters": 1_500_000,
            "cloud_parameters": 9_000_000,
            "bundle": "ab" * 32,
            "seconds": 71.2,
            "seconds_loading": 14.0,
            "metrics": "http://127.0.0.1:1/metrics",
        },
        **figures.first_token_figures(
            {
                batch: {
                    arm: [ms * grow * rng.uniform(0.9, 1.3) for _ in range(20)]
                    for arm, ms in arms.items()
                }
                for batch, grow in ((1, 1.0), (16, 3.0))
            }
        ),
    }
    made["bytes_ratio"] = figures.bytes_ratio(made)
    made["targets"] = figures.targets(made)
    return made
