"""One job on its way through the engine's steps, with what each step leaves for the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from cloud_server.engine.jobs import Job
from cloud_server.engine.reader import Read
from cloud_server.engine.scenes import Scene
from projector.models.pixels import Prepared

Picture: TypeAlias = Image.Image | Prepared


@dataclass
class Work:
    """A job that a step has taken up.

    Attributes:
        taken_ns: when it was taken up (the host's monotonic clock).
        read: at the picture point, the picture or the error of reading it.
        question: its token ids.
        decode_s: from payload to latents, or from file to picture.
        decoded_ns: when the latents were there (the host's monotonic clock); 0 for a picture.
        warnings: names of reasons not to rely on answers about the scene.
        moments_score, far: as in `Accepted`.
        tokens: number of tokens of a text; 0 for all tokens of a picture.
        scene: where the injected scene is, until its question was prefilled.
        prefill_s: time of the question's prefill.
        prefilled_ns: when that was done (the host's monotonic clock).
        prompt_tokens: as in `Answered`.
        told: the part of the answer that was sent so far.
        added: what a memory adds at each place of the answer; None: nothing.
    """

    job: Job
    taken_ns: int
    read: Read[Picture] | None = None
    question: list[int] = field(default_factory=list)
    decode_s: float = 0.0
    decoded_ns: int = 0
    warnings: list[str] = field(default_factory=list)
    moments_score: float = math.nan
    far: bytes = b""
    tokens: int = 0
    scene: Scene | None = None
    prefill_s: float = 0.0
    prefilled_ns: int = 0
    prompt_tokens: int = 0
    told: str = ""
    added: Tensor | None = None

    @property
    def queue_s(self) -> float:
        """Seconds from receipt until taken up."""
        return max(0.0, (self.taken_ns - self.job.received_ns) / 1e9)
