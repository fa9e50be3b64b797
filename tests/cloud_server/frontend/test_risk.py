"""The service's guard: how an answer's risk is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud_server.frontend.risk import risk_of
from projector.codec.risk import RiskModel, feature_count, features
from protos.distortion import Distortion
from protos.neuralbridge.v1 import bridge_pb2 as pb

RANK = 3
LOST = pb.DistortionReport(
    quantize=0.5, dropped_attention=0.2, latent_residual=0.1, unfamiliarity=1.5
)


@pytest.fixture
def model() -> RiskModel:
    rng = np.random.default_rng(1)
    count = feature_count(RANK)
    mean = rng.normal(size=count).astype(np.float32)
    return RiskModel(mean, rng.normal(scale=0.3, size=count).astype(np.float32), -1.0, 0.3)


def test_the_risk_is_the_models_for_the_same_frame_and_question(model: RiskModel) -> None:
    moved = np.random.default_rng(2).normal(size=(7, RANK)).astype(np.float32)
    score = model.moments_score(moved)
    lost = Distortion(0.5, 0.2, 0.1, 1.5)
    for question in ("is there a fire ?", "how many dogs ?", ""):
        expected = float(model.risk(features(lost, question, None, moved)))
        assert risk_of(model, LOST, score, question) == pytest.approx(expected, rel=1e-5)
    assert risk_of(model, LOST, score, "is") != risk_of(model, LOST, score, "how")


def test_a_picture_carries_no_risk_and_a_bundle_without_a_guard_tells_none(
    model: RiskModel,
) -> None:
    assert risk_of(model, LOST, -math.inf, "what ?") == 0.0
    assert risk_of(None, LOST, -math.inf, "what ?") == 0.0
    assert risk_of(model, LOST, math.nan, "what ?") is None
    assert risk_of(None, LOST, 0.1, "what ?") is None
