"""Warm-up: jobs that take every path through the engine once, before it reports ready.

The first use of each library allocates, compiles and starts threads. The memory of a full batch
counts as held at rest. An engine that cannot answer these jobs cannot answer anything.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence

from msgspec.structs import replace
from PIL import Image

from cloud_server.engine.jobs import Job
from cloud_server.engine.mean_frame import with_mean_frame
from cloud_server.settings import Settings
from projector.bundle.load import Bundle
from projector.models.lm import LM
from projector.models.vlm import VLM
from protos.points import PICTURE_POINT

SESSION = "warm-up"
_SIDE_PX = 64


def jobs(settings: Settings, model: VLM | LM, bundles: Sequence[Bundle]) -> Iterator[list[Job]]:
    """Groups of jobs: a frame of every bundle, a picture, then a full batch of questions."""
    blank = Job(0, SESSION, 0, "", "What is this?", 2, time.monotonic_ns())
    for bundle in bundles:
        encoder, info = bundle.encoder, bundle.info
        asked = replace(blank, bundle=bundle.digest)
        yield [with_mean_frame(asked, encoder, info.source, encoder.point(info.default_point))]
    if isinstance(model, VLM):
        file, side = io.BytesIO(), min(_SIDE_PX, settings.max_picture_px)
        Image.effect_noise((side, side), 64).convert("RGB").save(file, "PNG")
        yield [replace(blank, point=PICTURE_POINT, body=file.getvalue())]
    yield [blank] * settings.batch_size
