"""Prefill: the small model reads a picture or text, and gives its `KVState` and its own answer.

`load` opens an edge export (no torch), or a checkpoint. This is the only module of the agent that
imports torch, and only when a checkpoint is loaded.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_agent.exported_model import ExportedModel
from edge_agent.sight import EdgeModel, Seen, Sight
from projector.codec.arrays import Floats
from projector.codec.confidence import Confidence
from projector.codec.confidence_file import read_confidence
from projector.codec.feedback import FeedbackDecoder
from projector.models.exported.manifest import is_export
from projector.models.foreign import importing
from projector.models.running import AUTO, Running, has_gpu
from projector.models.tokens import Reader, align, fresh
from protos.errors import ConfigError, ContextError, NoFeedbackError, PictureError
from protos.layout import KVLayout
from protos.process import threads
from protos.state import KVState

if TYPE_CHECKING:
    from projector.models.lm import LM
    from projector.models.vlm import VLM


_INSTEAD = (
    " (or neural-bridge[edge-torch]); or export the model where torch is (projector export-edge) "
    "and give --model the export"
)


class LocalModel:
    """A vision-language checkpoint, run with torch; calls are taken one at a time."""

    def __init__(self, vlm: VLM, running: Running, confidence: Confidence | None = None) -> None:
        self._vlm, self.running = vlm, running
        self.confidence = confidence
        self._lock = threading.Lock()

    @property
    def layout(self) -> KVLayout:
        """The cache layout of the loaded checkpoint."""
        return self._vlm.layout

    def see(self, seen: Seen) -> Sight:
        """Prefill one picture; the prefilled cache stays for the model's own answers.

        Raises:
            PictureError: the model's processor refuses the picture, or a text is given.
        """
        vlm = self._vlm
        if isinstance(seen, str):
            raise PictureError(f"{vlm.layout.model_id} sees pictures, this is a text")
        with self._lock:
            prefilled = vlm.prefill([seen])
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

    def inject(self, decoder: FeedbackDecoder, latents: Floats) -> Sight:
        """Rotate the state at the model's own positions and put it behind its own prompt.

        Raises:
            IncompatibleLayoutError: the decoder is for another model.
            NonFiniteError: the state overflows.
        """
        from projector.models import cache

        vlm = self._vlm
        state = decoder.state(latents, vlm.layout, vlm.positions)
        with self._lock:
            layers = vlm.scene_cache(*cache.from_states([state], vlm.layout, vlm.positions))

        def answer(question: str, max_new_tokens: int) -> str:
            with self._lock:
                return vlm.generate_text(layers, [question], max_new_tokens)[0]

        return Sight(state, answer)


class TextModel:
    """A language model, run with torch; calls are taken one at a time.

    Args:
        lm: the small model.
        running: where it runs.
        reader: the large model's tokenizer; without it only `layout` works.
        digest: that tokenizer's digest.
    """

    def __init__(
        self, lm: LM, running: Running, reader: Reader | None = None, digest: str = ""
    ) -> None:
        self._lm, self.running, self._reader, self._digest = lm, running, reader, digest
        self.confidence: Confidence | None = None
        self._lock = threading.Lock()

    @property
    def layout(self) -> KVLayout:
        """The cache layout of the loaded checkpoint."""
        return self._lm.layout

    def see(self, seen: Seen) -> Sight:
        """Read one text; its state has one token per token of the large model.

        Raises:
            ContextError: one of the two tokenizers cannot take the text, or a picture is given.
            ConfigError: the large model's tokenizer is missing.
        """
        lm = self._lm
        if self._reader is None:
            raise ConfigError(
                f"{lm.layout.model_id} reads texts, which are aligned to the large model's tokens: "
                "give --target-tokenizer DIRECTORY"
            )
        if not isinstance(seen, str):
            raise ContextError(f"{lm.layout.model_id} reads texts, this is a picture")
        with self._lock:
            mine, theirs = lm.tokens(seen), self._reader.read(seen)
            whole = lm.states([mine.ids])[0]
        place = align(mine, theirs)
        state = KVState(
            whole.keys[:, :, place],
            whole.values[:, :, place],
            whole.positions[place],
            (1, len(place)),
            np.full(len(place), 1 / len(place)),
        )

        def answer(question: str, max_new_tokens: int) -> str:
            with self._lock:
                ids = lm.question_ids(question)
                return lm.text(lm.answer_texts([mine.ids], [ids], max_new_tokens)[0])

        return Sight(state, answer, fresh=fresh(place), tokenizer=self._digest)

    def inject(self, decoder: FeedbackDecoder, latents: Floats) -> Sight:
        """Refuse: states of texts are not sent back.

        Raises:
            NoFeedbackError: always.
        """
        raise NoFeedbackError("states of texts are not sent back")


def use_threads(wanted: int, path: Path) -> threads.Threads:
    """Bound the CPU threads of BLAS, and of torch if it runs the model.

    Args:
        wanted: threads; 0 chooses by quota, affinity and cores.
        path: the model's folder.
    """
    if is_export(path):
        return threads.use(wanted)
    try:
        import torch
    except ImportError:  # `load` says what is missing
        return threads.use(wanted)
    return threads.use(wanted, torch.set_num_threads)


def load(
    path: Path,
    device: str = "cpu",
    dtype: str = "float32",
    target_tokenizer: Path | None = None,
    text_tokens: int = 128,
    wanted_threads: int = 0,
    engines: Path | None = None,
) -> EdgeModel:
    """Load the small model from a local folder: an edge export, or a checkpoint for torch.

    Args:
        path: an edge export; or the checkpoint of a vision-language model, or of a language model
            for texts.
        device: auto; a torch device; for an export cpu, cuda or tensorrt.
        dtype: number format that a checkpoint runs in; an export has its own.
        target_tokenizer: for texts, a folder with the large model's tokenizer; not needed for the
            layout alone.
        text_tokens: for texts, the longest, in tokens; must be the bundle's.
        wanted_threads: CPU threads of an export; 0 for as many as fit.
        engines: folder for compiled engines of an export; None to keep none.

    Raises:
        ModelError: a package is missing, a path holds no usable model, tokenizer or confidence, or
            the device cannot be used.
        SelfCheckError: the model computes something else than it should.
        UnsupportedModelError: the model's cache cannot be described (named in the message).
        ContextError: texts of that length do not fit into the model's context windows.
    """
    if is_export(path):
        return ExportedModel.load(path, device, wanted_threads, engines)
    # torch: the build for this device, the vendor's on a Jetson
    with importing("the small model", _INSTEAD):
        import torch
        from transformers.utils import logging as transformers_logging

        from projector.models.digests import tokenizer_digest
        from projector.models.lm import LM, read_tokenizer, reads_only_texts
        from projector.models.vlm import VLM
    quiet: Any = transformers_logging  # its functions have no types
    quiet.disable_progress_bar()  # standard error is for JSON lines
    quiet.set_verbosity_error()
    running = Running(device, device)
    if device == AUTO:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        lost = "this machine has a GPU, but this torch cannot use it"
        running = Running(found, AUTO, lost if found == "cpu" and has_gpu() else "")
    if not reads_only_texts(path):
        vlm = VLM.load(path, device=running.device, dtype=dtype)
        return LocalModel(vlm, running, read_confidence(path, vlm.layout.fingerprint))
    lm = LM.load(path, device=running.device, dtype=dtype, text_tokens=text_tokens)
    if target_tokenizer is None:
        return TextModel(lm, running)
    reader = read_tokenizer(target_tokenizer, text_tokens)
    return TextModel(lm, running, reader, tokenizer_digest(target_tokenizer))
