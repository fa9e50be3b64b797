"""What is told of requests: exemplars, devices one by one, OpenTelemetry's names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloud_server.frontend.device_series import DeviceSeries
from cloud_server.genai_metrics import CONVENTIONS
from cloud_server.metrics import Metrics
from cloud_server.telemetry_settings import TelemetrySettings
from tests.cloud_server.front_end import running
from tests.fakes.pages import fetch

NAME = "neural_bridge_cloud_"


def shown(metrics: Metrics, name: str) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["tenant"], sample.labels["device"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == NAME + name
    }


def test_devices_beyond_the_bound_count_together_and_silent_ones_make_room() -> None:
    now = [1000.0]
    metrics = Metrics()
    series = DeviceSeries(metrics, 2, lambda: now[0])
    for device, size in (("a", 10), ("b", 20), ("c", 30), ("d", 40), ("a", 1)):
        series.received(("t", device), size)
    assert shown(metrics, "device_payload_bytes_total") == {
        ("t", "a"): 11,
        ("t", "b"): 20,
        ("other", "other"): 70,
    }
    now[0] += 3000.0
    series.received(("t", "b"), 5)
    now[0] += 1000.0  # "a" has been silent for more than an hour
    series.received(("t", "e"), 7)
    series.answered(("t", "e"), 0.25)
    series.answered(("t", "e"), None)
    series.refused(("t", "e"))
    assert set(shown(metrics, "device_frames_total")) == {
        ("t", "b"),
        ("t", "e"),
        ("other", "other"),
    }
    assert shown(metrics, "device_answers_total")[("t", "e")] == 2
    assert shown(metrics, "device_risk_ratio_total")[("t", "e")] == 0.25
    assert shown(metrics, "device_refusals_total")[("t", "e")] == 1
    assert shown(metrics, "device_newest_frame_timestamp_seconds")[("t", "e")] == now[0]


def test_a_flood_of_unknown_devices_does_not_search_for_room_each_time() -> None:
    metrics, now = Metrics(), [1000.0]
    series = DeviceSeries(metrics, 2, lambda: now[0])
    for number in range(1000):
        series.refused(("t", f"{number}"))
    assert len(shown(metrics, "device_refusals_total")) == 3
    assert sum(shown(metrics, "device_refusals_total").values()) == 1000


def test_an_answer_leaves_its_request_id_its_device_and_opentelemetrys_names(
    paths: dict[str, Any],
) -> None:
    async def scene() -> tuple[str, str, str]:
        async with running(paths, device_series=10, genai_metrics=True) as server:
            event = await (await server.edge()).say("count 3")
            _, text = await server.get("/metrics")
            asks = {"Accept": "application/openmetrics-text; version=1.0.0"}
            port = server.metrics_port
            _, exact = await asyncio.to_thread(fetch, port, "/metrics", "GET", asks)
            return event.request_id.hex(), text, exact

    request_id, text, exact = asyncio.run(scene())
    for name in ("first_token_seconds", "answer_seconds"):
        line = next(one for one in exact.splitlines() if request_id in one and name in one)
        assert f'# {{request_id="{request_id}"}}' in line
    assert request_id not in text
    answers = [one for one in text.splitlines() if one.startswith(f"{NAME}device_answers_total{{")]
    assert [one.split()[1] for one in answers] == ["1.0"]
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="neural_bridge"'
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        assert f"gen_ai_server_{name}_seconds_count{{{labels}" in text


def test_without_the_settings_there_are_neither_devices_nor_other_names(
    paths: dict[str, Any],
) -> None:
    async def scene() -> str:
        async with running(paths) as server:
            await (await server.edge()).say("count 3")
            return (await server.get("/metrics"))[1]

    text = asyncio.run(scene())
    assert "gen_ai_server" not in text
    assert f"{NAME}device_answers_total{{" not in text


def test_the_setting_names_the_version_of_the_convention() -> None:
    told = TelemetrySettings.model_fields["genai_metrics"].description
    assert told is not None and CONVENTIONS.rpartition("/")[2] in told


@pytest.mark.parametrize("number", [-1, 10_001])
def test_the_number_of_devices_is_bounded(number: int) -> None:
    with pytest.raises(ValueError):
        TelemetrySettings(device_series=number)
