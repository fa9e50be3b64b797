"""Masks: what they hide, whatever the picture's size, and that a bad one never hides nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.cameras.mask import Mask
from protos.errors import MaskError

SHARES = st.floats(0.0, 1.0)
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def white(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@settings(deadline=None)
@given(left=SHARES, top=SHARES, right=SHARES, bottom=SHARES, size=SIZES)
def test_every_pixel_inside_a_rectangle_is_black_at_every_size(
    left: float, top: float, right: float, bottom: float, size: tuple[int, int]
) -> None:
    left, right, top, bottom = (
        min(left, right),
        max(left, right),
        min(top, bottom),
        max(top, bottom),
    )
    corners = f"{left},{top} {right},{top} {right},{bottom} {left},{bottom}"
    if left == right or top == bottom:
        return
    width, height = size
    painted = Mask.of([corners]).paint(white(width, height))
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    inside = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    assert not painted[inside].any()
    margin_x, margin_y = 3.0 / width, 3.0 / height
    near = (left - margin_x <= x) & (x <= right + margin_x)
    near &= (top - margin_y <= y) & (y <= bottom + margin_y)
    assert (painted[~near] == 255).all()


def test_a_file_hides_everything_but_white_at_every_size(tmp_path: Path) -> None:
    drawn = white(100, 50)
    drawn[10:20, 30:60] = 0
    drawn[40, 90] = (255, 255, 250)  # not quite white
    Image.fromarray(drawn).save(tmp_path / "gate.png")
    mask = Mask.of([str(tmp_path / "gate.png")])
    same = mask.paint(white(100, 50))
    assert not same[10:20, 30:60].any() and not same[40, 90].any() and same[30, 10].all()
    for width, height in ((1000, 500), (640, 480), (33, 7)):
        painted = mask.paint(white(width, height))
        rows = slice(int(0.2 * height), int(np.ceil(0.4 * height)))
        columns = slice(int(0.3 * width), int(np.ceil(0.6 * width)))
        assert not painted[rows, columns].any()
        assert not painted[int(0.81 * height), int(0.905 * width)].any()
        assert painted[:, : int(0.2 * width)].all()


def test_masks_add_up_and_leave_the_picture_that_was_given_alone(tmp_path: Path) -> None:
    pixels = white(20, 20)
    painted = Mask.of(["0,0 0.2,0 0.2,1 0,1", "0.8 0 1 0 1 1 0.8 1"]).paint(pixels)
    assert not painted[:, :4].any() and not painted[:, 17:].any() and painted[:, 8:12].all()
    assert pixels.all() and Mask().paint(pixels) is pixels


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0,0 1,1",
        "0,0 1,0 1",
        "0,0 1,0 1,2",
        "0,0 1,0 1,nan",
        "0,0 -1,0 1,1",
        "a,b c,d e,f",
        "0,0 0,0 1,1 1,1",
        "/nowhere.png",
    ],
)
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(MaskError):
        Mask.of([text])


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"half"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gate.png"
    if content == b"half":
        Image.effect_noise((99, 99), 60).save(path)
        content = path.read_bytes()[:3000]
    path.write_bytes(content)
    with pytest.raises(MaskError, match=r"gate\.png"):
        Mask.of([str(path)])


def test_a_file_that_hides_nothing_is_refused_as_it_may_be_inverted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for name in ("white.png", "clear.png"):
        with pytest.raises(MaskError, match="hides nothing"):
            Mask.of([str(tmp_path / name)])
