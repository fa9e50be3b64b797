"""Encode: make a payload of latents from a `KVState`, or a file from the picture; both timed.

Pure: no network, no torch. Latents, quantizer and distortion are `projector.codec.encoder`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_agent.frame import Frame
from edge_agent.plan import Plan
from edge_agent.select import keep_tokens
from edge_agent.uplink.session import Base
from projector.codec.encoder import Encoder
from protos.limits import Limits
from protos.points import OperatingPoint
from protos.state import KVState


def encode_state(
    state: KVState,
    encoder: Encoder,
    point: OperatingPoint,
    plan: Plan,
    clock: Callable[[], float] = time.perf_counter,
    base: Base | None = None,
    fresh: npt.NDArray[np.bool_] | None = None,
) -> Frame:
    """Choose the tokens to keep and encode them, both timed.

    With a base the frame is a delta frame, unless most of the latents would travel anyway.

    Args:
        state: one picture's cache, RoPE removed.
        encoder: the edge half of the bundle.
        point: a latent or raw point.
        plan: selector, budget and threshold.
        clock: seconds, for the two timings.
        base: the frame that a delta frame changes; only for a latent point.
        fresh: for a text, the tokens that travel.

    Raises:
        ConfigError: the selector is unknown, or the plan names one for a text.
        NonFiniteError: the state holds NaN or infinity.
    """
    start = clock()
    state = encoder.on_grid(state)
    kept = keep_tokens(state, encoder, point, plan, fresh)
    selected = clock()
    encoded = encoder.encode(state, point, kept, base.held if base is not None else None)
    if base is not None and 2 * encoded.kept.sum() > encoded.held.kept.sum():
        base, encoded = None, encoder.encode(state, point, kept)
    done = clock()
    return Frame(
        point=point,
        tokens=int(state.positions.shape[0]),
        kept=encoded.kept,
        payload=encoded.payload,
        distortion=encoded.distortion,
        select_ms=(selected - start) * 1000,
        encode_ms=(done - selected) * 1000,
        held=encoded.held,
        base=base.frame_number if base is not None else None,
        differences=encoded.differences,
    )


def encode_picture(
    picture: Image.Image,
    point: OperatingPoint,
    plan: Plan,
    limits: Limits,
    clock: Callable[[], float] = time.perf_counter,
) -> Frame:
    """Encode the picture itself, no larger than the server takes.

    Args:
        picture: RGB.
        point: the picture point.
        plan: file format, quality and size.
        limits: the server's limits.
        clock: seconds, for the timing.
    """
    start = clock()
    wanted = plan.picture.longest_px or limits.max_picture_px
    codec = replace(plan.picture, longest_px=min(wanted, limits.max_picture_px))
    payload = codec.encode(picture)
    return Frame(
        point=point,
        tokens=0,
        kept=np.zeros(0, dtype=np.bool_),
        payload=payload,
        distortion=None,
        select_ms=0.0,
        encode_ms=(clock() - start) * 1000,
    )
