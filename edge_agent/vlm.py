"""The small model on the device: a picture in, its `KVState` out; its own answer where asked.

The only module of the agent behind which torch is imported, and only once a model is loaded. Knows
nothing of latents or the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.encoder import Floats
from projector.reverse import ReverseDecoder
from protos.errors import ModelError
from protos.layout import KVLayout, KVState


@dataclass(frozen=True)
class Sight:
    """What the small model makes of one picture.

    Attributes:
        state: the image tokens' cache, RoPE removed.
        answer: (question, max_new_tokens) to the small model's own answer, from the same cache.
        first_token: question to the distribution over the vocabulary for that answer's first token,
            `[V]`; None where the model cannot say.
    """

    state: KVState
    answer: Callable[[str, int], str]
    first_token: Callable[[str], npt.NDArray[np.float32]] | None = None


class EdgeModel(Protocol):
    """What the agent needs of a model."""

    @property
    def layout(self) -> KVLayout:
        """The cache layout that is offered in Negotiate."""

    def see(self, picture: Image.Image) -> Sight:
        """Run the model over one picture."""

    def inject(self, decoder: ReverseDecoder, latents: Floats) -> Sight:
        """Take a picture's state from what a server sent back, instead of seeing the picture."""


class LocalModel:
    """A checkpoint on disk, run with torch; calls are taken one at a time.

    Raises:
        ModelError: torch or transformers is missing, or the path is not a usable checkpoint.
        UnsupportedModelError: the model's cache cannot be described (named in the message).
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: str = "float32") -> None:
        try:
            from transformers.utils import logging as transformers_logging

            from projector.vlm import VLM
        except ImportError as error:
            raise ModelError(
                f"the small model needs {error.name or 'torch'}: install the torch build for this "
                "device (on a Jetson: the vendor's), then transformers"
            ) from error
        quiet: Any = transformers_logging  # its functions have no types
        quiet.disable_progress_bar()  # standard error is for JSON lines
        quiet.set_verbosity_error()
        try:
            self._vlm = VLM.load(path, device=device, dtype=dtype)
        except RuntimeError as error:
            raise ModelError(f"{path}: cannot be run on device {device!r}: {error}") from error
        self._lock = threading.Lock()

    @property
    def layout(self) -> KVLayout:
        """The cache layout of the loaded checkpoint."""
        return self._vlm.layout

    def see(self, picture: Image.Image) -> Sight:
        """Prefill one picture; the prefilled cache stays for the model's own answers.

        Raises:
            PictureError: the model's processor refuses the picture.
        """
        vlm = self._vlm
        with self._lock:
            prefilled = vlm.prefill([picture])
            state = vlm.states(prefilled)[0]

        def answer(question: str, max_new_tokens: int) -> str:
            with self._lock:
                return vlm.generate_text(prefilled.layers(), [question], max_new_tokens)[0]

        def first_token(question: str) -> npt.NDArray[np.float32]:
            with self._lock:
                ids = vlm.question_ids(question)
                chances: npt.NDArray[np.float32] = vlm.first_token(prefilled.layers(), [ids])[0]
                return chances

        return Sight(state, answer, first_token)

    def inject(self, decoder: ReverseDecoder, latents: Floats) -> Sight:
        """Rotate the state at the model's own positions and put it behind its own prompt.

        Raises:
            IncompatibleLayoutError: the decoder is for another model.
            NonFiniteError: the state overflows.
        """
        from projector import cache

        vlm = self._vlm
        state = decoder.state(latents, vlm.layout, vlm.positions)
        with self._lock:
            layers = vlm.scene_cache(*cache.from_states([state], vlm.layout, vlm.positions))

        def answer(question: str, max_new_tokens: int) -> str:
            with self._lock:
                return vlm.generate_text(layers, [question], max_new_tokens)[0]

        return Sight(state, answer)


def load(path: Path, device: str = "cpu", dtype: str = "float32") -> EdgeModel:
    """Load the small model from a local checkpoint directory; see `LocalModel`."""
    return LocalModel(path, device, dtype)
