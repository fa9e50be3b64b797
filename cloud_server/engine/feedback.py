"""Feedback: the large model's own state of a scene, compressed for the small model."""

from __future__ import annotations

import time

import numpy as np
import torch

from cloud_server.engine.jobs import Compressed
from cloud_server.engine.scenes import Scene, SceneMemory
from cloud_server.engine.work import Work
from projector.bundle.load import Bundle
from projector.models import cache as kv
from projector.models.lm import LM
from projector.models.vlm import VLM
from protos.errors import NoFeedbackError


def compress(
    work: Work, scene: Scene, scenes: SceneMemory, bundle: Bundle | None, model: VLM | LM
) -> Compressed:
    """A scene's state, as the model holds it, encoded by the bundle's feedback half.

    Args:
        work: its job names the operating point.
        scene: held in `scenes`.
        scenes: where the engine holds scenes.
        bundle: the job's bundle, if it is loaded.
        model: the model that made the scene's cache.

    Raises:
        NoFeedbackError: the bundle is not loaded, or has no feedback.
    """
    started, job = time.perf_counter(), work.job
    if bundle is None or bundle.feedback is None:
        raise NoFeedbackError(f"bundle {job.bundle[:12]}… is not loaded, or has no way back")
    encoder, tokens = bundle.feedback.encoder, scene.tokens
    keys, values = scenes.read(scene)
    state = kv.to_states(
        keys.unsqueeze(1),
        values.unsqueeze(1),
        model.layout,
        model.positions,
        torch.full((1, tokens), 1 / tokens),
    )[0]
    encoded = encoder.encode(state, encoder.point(job.feedback), np.ones(tokens, dtype=np.bool_))
    return Compressed(
        job=job.id,
        queue_s=work.queue_s,
        compress_s=time.perf_counter() - started,
        quantize=encoded.distortion.quantize,
        latent_residual=encoded.distortion.latent_residual,
        unfamiliarity=encoded.distortion.unfamiliarity,
        body=encoded.payload,
    )
