"""What the agent needs of a small model: a `Sight` of each picture or text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.codec.arrays import Floats
from projector.codec.confidence import Confidence
from projector.codec.feedback import FeedbackDecoder
from projector.models.running import Running
from protos.layout import KVLayout
from protos.state import KVState


@dataclass(frozen=True)
class Sight:
    """What the small model has read: one picture or text, in its cache.

    Attributes:
        state: the image tokens' cache, RoPE removed; for a text, one token per token of the large
            model.
        answer: (question, max_new_tokens) to the small model's own answer, from the same cache.
        first_token: question to the distribution over the vocabulary for that answer's first token,
            `[V]`; None if the model cannot say.
        fresh: for a text, which tokens travel, `[tokens]`: those that do not repeat the one before.
        tokenizer: for a text, digest of the large model's tokenizer (it is aligned to its tokens).
    """

    state: KVState
    answer: Callable[[str, int], str]
    first_token: Callable[[str], npt.NDArray[np.float32]] | None = None
    fresh: npt.NDArray[np.bool_] | None = None
    tokenizer: str = ""


Seen = Image.Image | str
"""A picture, or a text."""


class EdgeModel(Protocol):
    """What the agent needs from a small model."""

    @property
    def layout(self) -> KVLayout:
        """The cache layout that is offered in Negotiate."""

    @property
    def running(self) -> Running:
        """Where the model runs."""

    @property
    def confidence(self) -> Confidence | None:
        """How far its own answers can be trusted; None if that was not calibrated."""

    def see(self, seen: Seen) -> Sight:
        """Run the model over one picture or text."""

    def inject(self, decoder: FeedbackDecoder, latents: Floats) -> Sight:
        """Make a picture's state from a server's feedback, without reading the picture."""
