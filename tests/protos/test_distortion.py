"""Every distortion figure, against its closed form or a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import distortion
from protos.distortion import Distortion
from protos.errors import FrameMalformedError


def test_relative_l2_of_a_known_triangle() -> None:
    assert distortion.relative_l2([[3.0, 4.0]], [[3.0, 0.0]]) == pytest.approx(0.8)
    assert distortion.quantize_error([[0.0, 5.0]], [[3.0, 1.0]]) == pytest.approx(1.0)


def test_relative_l2_of_nothing_is_defined() -> None:
    assert distortion.relative_l2(np.zeros(3), np.zeros(3)) == 0
    assert distortion.relative_l2(np.zeros(3), np.ones(3)) == math.inf


def test_relative_l2_does_not_overflow_in_half_precision() -> None:
    big = np.full(100, 60000, dtype=np.float16)
    assert distortion.relative_l2(big, big / 2) == pytest.approx(0.5)


def test_dropped_attention_is_the_share_of_what_is_not_kept() -> None:
    attention = [0.5, 1.0, 0.5, 2.0]
    assert distortion.dropped_attention(attention, [True, False, True, True]) == pytest.approx(0.25)
    assert distortion.dropped_attention(attention, np.ones(4, dtype=bool)) == 0
    assert distortion.dropped_attention(attention, np.zeros(4, dtype=bool)) == 1
    assert distortion.dropped_attention(np.zeros(4), [True, False, True, True]) == 0


def test_latent_residual_is_what_the_best_linear_reconstruction_misses() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 12)) @ np.diag([9, 5, 3, 2, *[0.1] * 8])
    projection = np.eye(12)[:, :4] + 8 * np.eye(12)[:, 8:]  # oblique: reads noise as well
    z = x @ projection
    best = np.linalg.lstsq(z, x, rcond=None)[0]
    span = np.linalg.pinv(projection)
    assert distortion.latent_residual(x, z, best) < 0.5 < distortion.latent_residual(x, z, span)


def test_latent_residual_is_0_where_all_is_held_and_1_where_nothing_is() -> None:
    projection = np.eye(6)[:, :2]
    back = projection.T
    inside, outside = np.eye(6)[:2], np.eye(6)[2:]
    assert distortion.latent_residual(inside, inside @ projection, back) == 0
    assert distortion.latent_residual(outside, outside @ projection, back) == 1


def test_unfamiliarity_is_about_1_on_calibration_data_and_grows_away_from_it() -> None:
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((5, 5))
    z = rng.standard_normal((4000, 5)) @ mix + 3
    mean, inverse = z.mean(axis=0), np.linalg.inv(np.cov(z.T))
    assert distortion.unfamiliarity(z, mean, inverse) == pytest.approx(1, rel=1e-3)
    assert distortion.unfamiliarity(mean[None], mean, inverse) == 0
    one = np.array([[1.0, 2.0]])
    assert distortion.unfamiliarity(one, [0, 0], np.diag([4, 1])) == pytest.approx(math.sqrt(8 / 2))
    each = distortion.unfamiliarity_of_tokens([[0, 0], *one], [0, 0], np.diag([4, 1]))
    assert each == pytest.approx([0, math.sqrt(8 / 2)])


def test_cosine_is_the_mean_over_rows() -> None:
    a = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    b = [[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]
    assert distortion.cosine(a, b) == pytest.approx((1 + math.sqrt(0.5) + 0) / 3)


def test_r2_is_1_for_the_truth_and_0_for_the_mean() -> None:
    y = np.random.default_rng(2).standard_normal((3, 50, 4)) + [0, 10, 100, 1000]
    assert distortion.r2(y, y) == 1
    assert distortion.r2(y, np.broadcast_to(y.mean(axis=(0, 1)), y.shape)) == pytest.approx(0)
    assert distortion.r2(np.ones((3, 2)), np.zeros((3, 2))) == -math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: distortion.relative_l2(np.zeros(3), np.zeros(4)),
        lambda: distortion.dropped_attention(np.zeros(3), np.zeros(4)),
        lambda: distortion.latent_residual(np.zeros((3, 5)), np.zeros((2, 2)), np.zeros((2, 5))),
        lambda: distortion.latent_residual(np.zeros((3, 5)), np.zeros((3, 2)), np.zeros((5, 2))),
        lambda: distortion.unfamiliarity(np.zeros((3, 2)), np.zeros(2), np.eye(3)),
        lambda: distortion.unfamiliarity(np.zeros((0, 2)), np.zeros(2), np.eye(2)),
        lambda: distortion.cosine(np.zeros((3, 2)), np.zeros((2, 3))),
        lambda: distortion.r2(np.zeros((3, 2)), np.zeros((2, 3))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call) -> None:
    with pytest.raises(FrameMalformedError):
        call()


def test_the_scale_of_a_distortion_figure_is_the_one_that_the_protocol_describes() -> None:
    for byte in range(1, 256):
        (figure,) = {*vars(Distortion.from_bytes([byte] * 4)).values()}
        assert math.isclose(figure, 10.0 ** ((byte - 176) / 64), rel_tol=1e-12)
        assert Distortion(figure, figure, figure, figure).to_bytes() == bytes([byte] * 4)
    assert Distortion.from_bytes([176, 0, 240, 48]) == Distortion(1.0, 0.0, 10.0, 0.01)


@settings(max_examples=300, deadline=None, database=None)
@given(st.floats(0.00184, 17.1))
def test_a_distortion_figure_is_wrong_by_half_a_step_at_most(figure: float) -> None:
    found = Distortion.from_bytes(Distortion(quantize=figure).to_bytes())
    assert abs(math.log10(found.quantize / figure)) <= 0.5 / 64 + 1e-9
    assert abs(found.quantize / figure - 1) < 0.0184
