"""The small model from an edge export, run by ONNX Runtime; torch is never imported."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_agent.sight import Seen, Sight
from projector.codec.arrays import Floats
from projector.codec.confidence import Confidence
from projector.codec.feedback import FeedbackDecoder
from projector.models.foreign import importing
from projector.models.running import AUTO, Running
from protos.errors import PictureError
from protos.layout import KVLayout

if TYPE_CHECKING:
    from projector.models.exported.vlm import ExportedVLM


class ExportedModel:
    """A vision-language model in ONNX graphs; calls are taken one at a time."""

    def __init__(self, vlm: ExportedVLM) -> None:
        self._vlm = vlm
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, path: Path, device: str = AUTO, threads: int = 0, engines: Path | None = None
    ) -> ExportedModel:
        """Verify and open an export, and check it against the witness in it.

        Args:
            path: what `projector export-edge` wrote.
            device: auto, cpu, cuda or tensorrt.
            threads: CPU threads; 0 for as many as fit.
            engines: folder for compiled engines; None to keep none.

        Raises:
            ModelError: a package or a file is missing, or it does not run on the device.
            SelfCheckError: it computes something else than its checkpoint.
        """
        with importing("an edge export"):
            from projector.models.exported import check
            from projector.models.exported.vlm import ExportedVLM
        vlm = ExportedVLM.load(path, device, threads, engines)
        check.require(vlm, path)
        return cls(vlm)

    @property
    def layout(self) -> KVLayout:
        """The cache layout of the checkpoint that was exported."""
        return self._vlm.layout

    @property
    def running(self) -> Running:
        """Where it runs."""
        return self._vlm.running

    @property
    def confidence(self) -> Confidence | None:
        """How far its own answers can be trusted; None if that was not calibrated."""
        found = self._vlm.manifest.confidence
        return None if found is None else Confidence.of(found.weights, found.bias)

    def see(self, seen: Seen) -> Sight:
        """Prefill one picture; the cache stays for the model's own answers.

        Raises:
            PictureError: the picture cannot be decoded, or a text is given.
        """
        if isinstance(seen, str):
            raise PictureError(f"{self.layout.model_id} sees pictures, this is a text")
        with self._lock:
            read = self._vlm.prefill(seen)
            state = self._vlm.state(read)

        def first_token(question: str) -> npt.NDArray[np.float32]:
            with self._lock:
                return self._vlm.first_token(read.layers, self._vlm.question_ids(question))

        return Sight(state, self._answering(read.layers), first_token)

    def inject(self, decoder: FeedbackDecoder, latents: Floats) -> Sight:
        """Rotate the state at the model's own positions and put it behind its own prompt.

        Raises:
            IncompatibleLayoutError: the decoder is for another model.
            NonFiniteError: the state overflows.
        """
        state = decoder.state(latents, self.layout, self._vlm.positions)
        with self._lock:
            layers = self._vlm.scene(state)
        return Sight(state, self._answering(layers))

    def _answering(self, layers: Floats) -> Callable[[str, int], str]:
        """Answers questions from one cache."""

        def answer(question: str, max_new_tokens: int) -> str:
            with self._lock:
                ids = self._vlm.question_ids(question)
                return self._vlm.text(self._vlm.answer(layers, ids, max_new_tokens))

        return answer
