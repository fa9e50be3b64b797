"""The service's guard: the risk that the answer from a scene differs from the picture's."""

from __future__ import annotations

import math

from projector.codec.risk import RiskModel
from protos.distortion import Distortion
from protos.neuralbridge.v1 import bridge_pb2 as pb


def risk_of(
    model: RiskModel | None,
    report: pb.DistortionReport,
    moments_score: float,
    question: str = "",
) -> float | None:
    """The risk of an answer about a scene, 0..1; None if the bundle has no guard for the service.

    Args:
        model: the service's guard in the scene's bundle.
        report: the scene's distortion.
        moments_score: measured by the engine (`Accepted`).
        question: the question; empty for an average one.
    """
    if moments_score == -math.inf:
        return 0.0
    if model is None or math.isnan(moments_score):
        return None
    lost = Distortion(
        report.quantize, report.dropped_attention, report.latent_residual, report.unfamiliarity
    )
    return model.of_received(lost, question, moments_score)
