"""An engine has tried every way through it before it says that it is ready."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloud_server.engine.jobs import Job, JobEvent
from cloud_server.engine.reader import PictureReader
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import load
from projector.codec.arrays import Floats
from projector.serving.backends import Backend
from protos.errors import (
    NonFiniteError,
)
from protos.points import PICTURE_POINT
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


def test_an_engine_has_tried_every_way_before_it_is_ready_and_nothing_of_it_is_left(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []
    submit = TransformersEngine.submit

    def watch(self: TransformersEngine, job: Job) -> None:
        tried.append((job.bundle, job.point))
        submit(self, job)

    monkeypatch.setattr(TransformersEngine, "submit", watch)
    read_now = PictureReader.read_now

    def watch_pictures(self: PictureReader[Any], job: Job) -> Any:
        tried.append((job.bundle, job.point))
        return read_now(self, job)

    monkeypatch.setattr(PictureReader, "read_now", watch_pictures)
    given = {"model": files.model, "bundles": [files.bundle, files.other_bundle], "threads": 1}
    said: list[JobEvent] = []
    engine = TransformersEngine(load(given, environ=stage.DEVICE), said.append)
    offers = engine.load()
    alone = [(offer.bundle_digest, stage.FP8) for offer in offers] + [("", PICTURE_POINT)]
    assert tried == alone + [("", -1)] * engine._settings.batch_size
    status = engine.status()
    assert said == [] and not engine.busy
    assert status.scenes == status.scene_bytes == status.running == status.waiting == 0


def test_an_engine_that_cannot_answer_never_becomes_ready(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(self: Backend, latents: Floats, *_: object) -> tuple[Floats, Floats]:
        layout = self.target
        shape = (layout.layers, len(latents), layout.kv_heads, layout.tokens, layout.head_dim)
        return np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)

    monkeypatch.setattr("projector.serving.backends.base.Backend.project", overflows)
    settings = load({"model": files.model, "bundles": [files.bundle]}, environ=stage.DEVICE)
    with pytest.raises(NonFiniteError):
        TransformersEngine(settings, lambda event: None).load()
