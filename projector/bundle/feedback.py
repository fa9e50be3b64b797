"""The two halves of feedback: the cloud's encodes a state, the edge's decodes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from projector.bundle.describe import BundleInfo
from projector.bundle.files import FEEDBACK_DECODER, FEEDBACK_ENCODER
from projector.bundle.refusals import refusal
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from protos.errors import BridgeError


@dataclass(frozen=True)
class Feedback:
    """Both halves of feedback.

    Attributes:
        encoder: the cloud's half; its source layout is the cloud's.
        decoder: the edge's half.
    """

    encoder: Encoder
    decoder: FeedbackDecoder


def feedback_in(blobs: Mapping[str, bytes], info: BundleInfo, folder: Path) -> Feedback | None:
    """Read the feedback halves from a bundle's files; None if the map goes one way only.

    Raises:
        BundleFormatError: they are not such halves, or not for this bundle's models.
    """
    if FEEDBACK_ENCODER not in blobs:
        return None
    try:
        encoder = Encoder.from_bytes(blobs[FEEDBACK_ENCODER])
        decoder = FeedbackDecoder.from_bytes(blobs[FEEDBACK_DECODER])
    except BridgeError as error:
        raise refusal("604.9", f"{folder}: {error}") from error
    source, target = info.source, info.target
    ours = (encoder.source_fingerprint, encoder.state_dim, encoder.tokens)
    theirs = (decoder.source_fingerprint, decoder.target_fingerprint, decoder.up.shape[1])
    made = decoder.tokens if decoder.regrid is None else len(decoder.regrid)
    if (
        ours != (target.fingerprint, target.state_dim, target.tokens)
        or theirs != (target.fingerprint, source.fingerprint, source.state_dim)
        or made != source.tokens
        or decoder.points != encoder.points
        or not np.array_equal(decoder.centre, encoder.centre)
    ):
        raise refusal(
            "604.10",
            f"{folder}: the feedback halves are not for these models, or not for each other",
        )
    return Feedback(encoder, decoder)
