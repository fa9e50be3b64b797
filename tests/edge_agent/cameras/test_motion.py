"""Motion: a thing that moves is seen; noise, changing light and hidden regions are not."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.cameras.mask import Mask
from edge_agent.cameras.motion import Motion

SHARE = 0.01
"""What the trigger takes for motion by default."""


def scene(seed: int = 0, size: tuple[int, int] = (640, 480), noise: float = 3.0) -> np.ndarray:
    """A yard with some structure, and the noise of a sensor."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 6, height))
    grey = 110 + 40 * np.sin(x) * np.cos(y)
    grey = grey + np.random.default_rng(seed).normal(0, noise, grey.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


NO_MASK = Mask()


def after_a_while(motion: Motion, mask: Mask = NO_MASK) -> float:
    """The time after ten quiet pictures, 5 a second."""
    for number in range(10):
        assert motion.see(scene(number), mask, number / 5) < SHARE / 2
    return 2.0


def with_person(pixels: np.ndarray, left: int = 300, top: int = 200) -> np.ndarray:
    pixels = pixels.copy()
    pixels[top : top + 120, left : left + 50] = 200
    return pixels


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (160, 120), (3, 2), (1, 1)])
def test_pictures_of_any_size_are_taken(size: tuple[int, int]) -> None:
    motion = Motion()
    assert [motion.see(scene(n, size, 0), Mask(), n / 5) for n in range(3)] == [0.0, 0.0, 0.0]


def test_a_person_is_motion_and_a_quiet_yard_is_not() -> None:
    motion = Motion()
    now = after_a_while(motion)
    assert motion.see(with_person(scene(20)), Mask(), now) > SHARE


@pytest.mark.quick(4)
@pytest.mark.parametrize("gain", [0.4, 0.7, 1.3, 2.2])
@pytest.mark.parametrize("offset", [-25.0, 0.0, 30.0])
def test_the_light_as_a_whole_is_no_motion_but_a_person_in_it_is(
    gain: float, offset: float
) -> None:
    def lit(pixels: np.ndarray) -> np.ndarray:
        return np.clip(pixels * gain + offset, 0, 255).astype(np.uint8)

    motion = Motion()
    now = after_a_while(motion)
    assert motion.see(lit(scene(20)), Mask(), now) < SHARE
    if gain < 2:  # beyond that the person is as white as the yard
        assert motion.see(lit(with_person(scene(21), top=20)), Mask(), now + 0.2) > SHARE


@pytest.mark.slow
def test_what_stays_becomes_background() -> None:
    motion = Motion()
    now = after_a_while(motion)
    shares = [motion.see(with_person(scene(n)), Mask(), now + n) for n in range(60)]
    assert shares[0] > SHARE > shares[-1]


def test_hidden_regions_never_count() -> None:
    mask = Mask.of(["0.4,0.3 0.7,0.3 0.7,0.8 0.4,0.8"])
    motion = Motion()
    now = after_a_while(motion, mask)
    assert motion.see(with_person(scene(20)), mask, now) < SHARE
    assert motion.see(with_person(scene(21), left=20), mask, now + 0.2) > SHARE
    everything = Mask.of(["0,0 1,0 1,1 0,1"])
    assert [Motion().see(scene(n), everything, n) for n in range(3)] == [0.0, 0.0, 0.0]


def test_another_size_begins_anew() -> None:
    motion = Motion()
    after_a_while(motion)
    assert motion.see(scene(0, (320, 240)), Mask(), 3.0) == 0.0
    assert motion.see(scene(1, (320, 240)), Mask(), 3.2) < SHARE
