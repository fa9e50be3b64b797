"""The frame that a bundle can make by itself decodes to its mean state."""

from __future__ import annotations

import dataclasses

import numpy as np

from cloud_server.engine.jobs import Job
from cloud_server.engine.mean_frame import with_mean_frame
from tests.cloud_server import stage


def test_the_frame_decodes_to_the_latents_of_the_mean_state() -> None:
    encoder = dataclasses.replace(
        stage.encoder(), x_mean=np.full(stage.SOURCE.state_dim, 3.0, np.float32)
    )
    asked = Job(1, "s", 2, "id", "what ?", 4, 0, bundle="b")
    point = encoder.point(stage.NONE)
    job = with_mean_frame(asked, encoder, stage.SOURCE, point)
    assert (job.id, job.bundle, job.point) == (1, "b", stage.NONE)
    assert job.kept_mask.all() and len(job.kept) == stage.SOURCE.tokens
    latents = encoder.decode(job.body, job.kept_mask, point)
    assert np.abs(latents).max() < 1e-6, "the mean state's normalised state is zero"
