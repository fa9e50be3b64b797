"""Decode: turn a frame's payload into the latents of its scene.

A delta frame changes the latents of an earlier frame of its session, so latents are kept.
"""

from __future__ import annotations

import math

import numpy as np
import structlog

from cloud_server.engine.jobs import FAR_STEPS, Job
from cloud_server.engine.latents import LatentMemory
from projector.bundle.load import Bundle
from projector.codec.deltas import Held
from projector.codec.encoder import Encoder
from protos.distortion import unfamiliarity_of_tokens
from protos.errors import FrameMalformedError, MissingKeyFrameError, UnknownSceneError
from protos.points import RAW_KV_FP8, RAW_KV_FP8_POINT, OperatingPoint

_log = structlog.get_logger(component="engine")


def decode(job: Job, encoder: Encoder, latents: LatentMemory) -> Held:
    """The latents known of a scene after its frame; they are kept for later delta frames.

    Args:
        job: its frame holds latents.
        encoder: the encoder of the frame's bundle.
        latents: the latents of earlier frames.

    Raises:
        MissingKeyFrameError: the base of a delta frame is not held.
        BridgeError: the codec refuses the payload.
    """
    point = _point(job, encoder)
    base = _base(job, latents)
    kept = job.kept_mask
    try:
        z_hat = encoder.decode(job.body, kept, point, base, bool(job.differences))
        now = encoder.hold(z_hat, kept, base)
    except (ValueError, TypeError, IndexError, ArithmeticError, MemoryError) as error:
        # A codec that fails on untrusted bytes must not take everyone's engine down.
        _log.exception("a codec failed", request_id=job.request_id, point=point.name)
        raise FrameMalformedError(f"the payload cannot be decoded: {error}") from error
    if job.hold:
        latents.put(job.scene, now, job.owner)
    return now


def moments_score(bundle: Bundle, job: Job, held: Held) -> float:
    """`RiskModel.moments_score` of a scene by the service's guard.

    NaN without a guard, and for a raw cache: the guard is calibrated on frames of latents, which
    always report a latent residual.
    """
    if bundle.service_risk is None or not held.kept.any():
        return math.nan
    if _point(job, bundle.encoder).kind == "raw_kv":
        return math.nan
    moved = held.latents[held.kept] - bundle.encoder.centre[held.kept]
    return bundle.service_risk.moments_score(moved)


def far_of(bundle: Bundle, job: Job, held: Held) -> bytes:
    """How far each token of a scene is from usual, one byte each (`Accepted.far`)."""
    encoder = bundle.encoder
    far = np.zeros(len(held.kept), dtype=np.uint8)
    if held.kept.any() and _point(job, encoder).kind != "raw_kv":
        latents = held.latents[held.kept]
        found = unfamiliarity_of_tokens(latents, encoder.latent_mean, encoder.latent_inv_cov)
        far[held.kept] = np.clip(np.rint(found * FAR_STEPS), 1, 255)
    return far.tobytes()


def _point(job: Job, encoder: Encoder) -> OperatingPoint:
    """The operating point of a frame."""
    raw = job.point == RAW_KV_FP8_POINT and all(p.index != RAW_KV_FP8_POINT for p in encoder.points)
    return RAW_KV_FP8 if raw else encoder.point(job.point)


def _base(job: Job, latents: LatentMemory) -> Held | None:
    """The latents that a delta frame changes; None for a key frame."""
    if job.base < 0:
        return None
    try:
        return latents.get((job.session, job.base))
    except UnknownSceneError as error:
        raise MissingKeyFrameError(
            f"frame {job.frame_number} changes frame {job.base}, which is not held (any more): "
            "send it as a key frame"
        ) from error
