"""A frame that any bundle can make by itself: its mean state at its default point.

The engine's warm-up and the front end's canary answer questions about it.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from cloud_server.engine.jobs import Job
from projector.codec.encoder import Encoder
from protos.layout import KVLayout
from protos.points import OperatingPoint
from protos.state import KVState


def with_mean_frame(job: Job, encoder: Encoder, layout: KVLayout, point: OperatingPoint) -> Job:
    """The job with the mean state of an edge model as its frame.

    Args:
        job: names the bundle.
        encoder: the bundle's encoder.
        layout: the edge model's cache layout.
        point: the operating point to encode at.
    """
    mean = np.broadcast_to(encoder.x_mean, (layout.tokens, len(encoder.x_mean)))
    encoded = encoder.encode(KVState.from_flat(mean, layout, np.arange(layout.tokens)), point)
    return replace(job, point=point.index, kept=encoded.kept.tobytes(), body=encoded.payload)
