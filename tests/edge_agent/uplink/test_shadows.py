"""Shadows at the edge: only with consent, by chance, between frames, within the bytes of a day."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.settings import load
from edge_agent.shadow_settings import ShadowSettings
from edge_agent.shadowing import follow, shadows_for
from edge_agent.uplink.day_bytes import DayBytes
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.shadows import Shadows
from protos.process import logs
from protos.remote import SETTABLE
from tests.edge_agent.uplink.traffic import bridge, deliver_all, picture_request, requests, run
from tests.fakes.fake_edge import FakeSleep, fake_uplink

pytestmark = pytest.mark.usefixtures("connections")


def _shadows(tmp_path: Path, share: float = 1.0, **changed: Any) -> Shadows:
    sleep = FakeSleep()
    given: dict[str, Any] = {
        "budget": DayBytes(1 << 20, tmp_path / "left"),
        "memory_bytes": 1 << 20,
        "codec": PictureCodec("png"),
    }
    given |= changed
    return Shadows(
        share,
        given["codec"],
        given["budget"],
        given["memory_bytes"],
        Metrics(),
        logs.configure("error"),
        clock=sleep.clock,
        sleep=sleep,
        key=b"k" * 32,
    )


def _outcomes(shadows: Shadows) -> dict[str, float]:
    (family,) = shadows._metrics.shadows.collect()
    return {
        sample.labels["outcome"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


@contextmanager
def _sending(uplink: Uplink, shadows: Shadows) -> Iterator[None]:
    follow(uplink, shadows)
    task = asyncio.create_task(shadows.run())
    try:
        yield
    finally:
        task.cancel()


async def _settled(shadows: Shadows, count: int) -> None:
    while sum(_outcomes(shadows).values()) < count:
        await asyncio.sleep(0.005)


def test_the_picture_follows_its_frame_as_the_small_model_saw_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            shadows = _shadows(tmp_path)
            uplink = fake_uplink(served.dial, tmp_path, shadows=shadows)
            with _sending(uplink, shadows):
                outcomes = await deliver_all(uplink, requests(3))
                await _settled(shadows, 3)
            assert _outcomes(shadows) == {"measured": 3}
            numbers = {o.sealed.frame_number: i for i, o in enumerate(outcomes) if o.sealed}
            for came in served.shadows:
                pixels = np.asarray(Image.open(io.BytesIO(came.picture)).convert("RGB"))
                assert (pixels == [numbers[came.frame_number], 2, 3]).all()
            assert shadows.bytes == 0 and not shadows._held
            await uplink.close()

    run(test)


def test_without_consent_no_picture_leaves(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            await deliver_all(uplink, requests(3))
            assert not served.shadows and not served.shadow_parts
            await uplink.close()

    run(test)
    assert shadows_for(load({}, environ={}), tmp_path, Metrics(), logs.configure("error")) is None


def test_the_service_can_change_nothing_about_it() -> None:
    names = set(ShadowSettings.model_fields)
    assert "allow_shadow" in names and not names & set(SETTABLE)


def test_chance_chooses_the_stated_share_and_nobody_can_tell_which(tmp_path: Path) -> None:
    ids = [number.to_bytes(8, "big") for number in range(40_000)]
    shadows = _shadows(tmp_path, 0.01)
    chosen = {id for id in ids if shadows.chosen(id)}
    assert abs(len(chosen) - 400) < 4 * 20  # four standard deviations
    shadows._key = b"q" * 32
    others = {id for id in ids if shadows.chosen(id)}
    assert len(chosen & others) < 20  # 4 by chance
    assert all(shadows.chosen(id) for id in others)


def test_frames_that_were_pictures_or_were_refused_bring_none(tmp_path: Path) -> None:
    async def test() -> None:
        from protos.errors import NonFiniteError

        async with bridge(refusals={"q1": [NonFiniteError("no")]}) as served:
            shadows = _shadows(tmp_path)
            uplink = fake_uplink(served.dial, tmp_path, shadows=shadows)
            with _sending(uplink, shadows):
                await deliver_all(uplink, [picture_request(9, "p"), *requests(2)])
                await _settled(shadows, 1)
            assert _outcomes(shadows) == {"measured": 1} and len(served.shadows) == 1
            assert shadows.bytes == 0 and not shadows._held
            await uplink.close()

    run(test)


def test_large_pictures_go_in_small_parts_that_wait_for_frames(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            shadows = _shadows(tmp_path)
            uplink = fake_uplink(served.dial, tmp_path, shadows=shadows)
            noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
            (request,) = requests(1)
            request.maker._seen = Image.fromarray(noise)
            with _sending(uplink, shadows):
                busy_at: list[int] = []
                real, waits = uplink.__class__.busy.fget, iter([True] * 7)  # type: ignore[attr-defined]

                def busy() -> bool:
                    if next(waits, False):
                        busy_at.append(len(served.shadow_parts))
                        return True
                    return bool(real(uplink))

                shadows.busy = busy
                await deliver_all(uplink, [request])
                await _settled(shadows, 1)
            assert _outcomes(shadows) == {"measured": 1}
            assert len(served.shadow_parts) > 5 and max(served.shadow_parts) <= 1024
            assert busy_at == [0] * 7  # nothing left while frames were on their way
            await uplink.close()

    run(test)


@pytest.mark.quick(4)
@pytest.mark.parametrize("why", ["busy", "over_budget", "memory", "unserved", "offline"])
def test_a_picture_that_cannot_go_is_counted_once_and_forgotten(tmp_path: Path, why: str) -> None:
    of_why: dict[str, dict[str, Any]] = {
        "over_budget": {"budget": DayBytes(1024, None)},
        "memory": {"memory_bytes": 1},
    }
    changed = of_why.get(why, {})

    async def test() -> None:
        async with bridge(takes_shadows=why != "unserved") as served:
            shadows = _shadows(tmp_path, **changed)
            uplink = fake_uplink(served.dial, tmp_path, shadows=shadows)
            with _sending(uplink, shadows):
                if why == "busy":
                    shadows.busy = lambda: True
                if why == "offline":
                    shadows.stream = lambda: None
                outcomes = await deliver_all(uplink, requests(1))
                assert outcomes[0].answer is not None  # the frame itself is answered
                await _settled(shadows, 1)
            assert _outcomes(shadows) == {why: 1}
            assert not served.shadows and shadows.bytes == 0 and not shadows._waiting
            await uplink.close()

    run(test)


def test_a_service_that_takes_none_is_asked_again_after_an_hour(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(takes_shadows=False) as served:
            shadows = _shadows(tmp_path)
            uplink = fake_uplink(served.dial, tmp_path, shadows=shadows)
            with _sending(uplink, shadows):
                first, second, third = requests(3)
                await deliver_all(uplink, [first])
                await _settled(shadows, 1)
                served.takes_shadows = True
                await deliver_all(uplink, [second])
                await _settled(shadows, 2)
                assert not served.shadow_parts
                shadows._clock.__self__.pauses.append(3601.0)  # type: ignore[attr-defined]
                await deliver_all(uplink, [third])
                await _settled(shadows, 3)
            assert _outcomes(shadows) == {"unserved": 2, "measured": 1}
            await uplink.close()

    run(test)
