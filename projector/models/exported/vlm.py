"""A vision-language model from an edge export: pictures to caches, and answers from a cache.

The counterpart of `projector/models/vlm.py` in NumPy, for one picture at a time. Calls in the order
of a frame: `prefill`, `state`, then `answer` or `first_token`; `scene` for a state sent back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from projector.models.exported.manifest import (
    AGAIN,
    EMBEDDINGS,
    TOKENIZER,
    Manifest,
    read_manifest,
    verify_files,
)
from projector.models.exported.picture_input import picture_input
from projector.models.exported.sessions import Sessions, open_sessions
from projector.models.foreign import foreign
from projector.models.questions import ids_of_question
from projector.models.running import AUTO
from protos.layout import KVLayout
from protos.rotation import rotate, unrotate
from protos.state import KVState

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Read:
    """The cache of one picture behind the constant prefix, as the model computed it.

    Attributes:
        layers: `[layers, 2, 1, kv_heads, T, head_dim]`, keys (rotated) and values.
        attention: received attention of the image tokens `[N]`, sums to 1.
    """

    layers: Floats
    attention: Floats


class ExportedVLM:
    """An opened edge export. Build it with `ExportedVLM.load`; one thread at a time.

    Attributes:
        manifest: of the export.
        layout: the model's cache layout, as the checkpoint's.
        running: where it runs.
    """

    def __init__(
        self, manifest: Manifest, sessions: Sessions, tokenizer: Any, embeddings: npt.NDArray[Any]
    ) -> None:
        self.manifest, self.running = manifest, sessions.running
        self.layout: KVLayout = manifest.kv_layout
        self._sessions, self._tokenizer, self._embeddings = sessions, tokenizer, embeddings
        self._prompt = manifest.prompt
        self._prefix: Floats | None = None
        self._eos = frozenset(manifest.prompt.eos)
        first = len(embeddings) - len(manifest.prompt.seen_as)
        self._seen_as = {token: first + i for i, token in enumerate(manifest.prompt.seen_as)}

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = AUTO,
        threads: int = 0,
        engines: Path | None = None,
    ) -> ExportedVLM:
        """Verify and open an export.

        Args:
            folder: what `projector export-edge` wrote.
            device: as in `open_sessions`.
            threads: CPU threads; 0 for as many as fit.
            engines: as in `open_sessions`.

        Raises:
            ModelError: a file is missing, damaged or altered; or it cannot be run there.
        """
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        with foreign(folder / TOKENIZER, AGAIN):
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        with foreign(folder / EMBEDDINGS, AGAIN):
            embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
        return cls(
            manifest,
            open_sessions(folder, manifest, device, threads, engines),
            tokenizer,
            embeddings,
        )

    # -- what the model says about itself --------------------------------------------------------

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions `[N]` of the image tokens in the prompt."""
        start = len(self._prompt.before)
        return np.arange(start, start + self.layout.tokens, dtype=np.int64)

    def question_ids(self, text: str) -> list[int]:
        """The ids that follow the last image token: the question and the cue to answer.

        Raises:
            QuestionError, QuestionTooLongError: as `ids_of_question`.
        """
        prompt = self._prompt

        def after_image(text: str) -> list[int]:
            inner = text.strip() if prompt.strip else text
            whole = prompt.image_text + prompt.opening + inner + prompt.closing
            ids: list[int] = self._tokenizer.encode(whole, add_special_tokens=False).ids
            return [*prompt.tail, *ids[1:]]

        return ids_of_question(text, prompt.reserved, prompt.max_question_tokens, after_image)

    def text(self, ids: Sequence[int]) -> str:
        """Decode answer tokens without special tokens and outer whitespace."""
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()

    # -- the sending side ------------------------------------------------------------------------

    def prefill(self, picture: Image.Image) -> Read:
        """Run the model over the prompt up to the cue, and measure the image tokens' attention.

        Raises:
            PictureError: the picture cannot be decoded.
        """
        prompt, count = self._prompt, self.layout.tokens
        inputs = picture_input(picture, self.manifest.pictures)
        seen = self._sessions.vision.run(None, inputs)[0]
        embeds = np.concatenate([self._embed(prompt.before), seen, self._embed(prompt.cue)])
        start, end = len(prompt.before), len(prompt.before) + count
        mask = np.tri(len(embeds), dtype=np.bool_)
        if prompt.two_way:
            mask[start:end, start:end] = True
        _, weights, layers = self._decode(embeds, self._nothing(), mask)
        return Read(
            np.ascontiguousarray(layers[..., :end, :]), received_shares(weights, start, count)
        )

    def state(self, read: Read) -> KVState:
        """The image tokens' cache with RoPE removed."""
        tokens = read.layers[:, :, 0, :, len(self._prompt.before) :]
        return KVState(
            keys=unrotate(tokens[:, 0], self.layout.rotation, self.positions),
            values=np.ascontiguousarray(tokens[:, 1]),
            positions=self.positions,
            grid=self.layout.grid,
            attention=read.attention,
        )

    def text_state(self, text: str) -> KVState:
        """The cache of a text alone behind the constant prefix: see `VLM.text_state`.

        Raises:
            QuestionError, QuestionTooLongError: as `question_ids`.
        """
        prompt, start = self._prompt, len(self._prompt.before)

        def bare(text: str) -> list[int]:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

        ids = ids_of_question(text, prompt.reserved, prompt.max_question_tokens, bare)
        embeds = self._embed([*prompt.before, *ids])
        _, _, layers = self._decode(embeds, self._nothing(), np.tri(len(embeds), dtype=np.bool_))
        tokens = layers[:, :, 0, :, start:]
        positions = np.arange(start, start + len(ids), dtype=np.int64)
        return KVState(
            keys=unrotate(tokens[:, 0], self.layout.rotation, positions),
            values=np.ascontiguousarray(tokens[:, 1]),
            positions=positions,
            grid=(1, len(ids)),
            attention=np.full(len(ids), 1 / len(ids), np.float32),
        )

    # -- the answering side ----------------------------------------------------------------------

    def scene(self, state: KVState) -> Floats:
        """The cache of a picture that the model never saw: its own constant prefix, then a state.

        Returns:
            As `Read.layers`.
        """
        if self._prefix is None:
            before = self._prompt.before
            embeds = self._embed(before)
            self._prefix = self._decode(embeds, self._nothing(), np.tri(len(before), dtype=bool))[2]
        keys = rotate(state.keys, self.layout.rotation, self.positions)
        held = np.stack([keys, state.values], axis=1)[:, :, None]
        made: Floats = np.concatenate([self._prefix, held], axis=4)
        return made

    def answer(self, layers: Floats, question: Sequence[int], max_new_tokens: int) -> list[int]:
        """A greedy answer from a cache, without the end token.

        Args:
            layers: as `Read.layers`.
            question: ids from `question_ids`.
            max_new_tokens: at most this many.
        """
        held, answer = layers.shape[4], list[int]()
        self.layout.require_window(
            held + len(question) + max_new_tokens, "a context with its question"
        )
        logits, layers = self._ask(layers, self._embed(question))
        while len(answer) < max_new_tokens:
            token = int(logits.argmax())
            if token in self._eos:
                break
            answer.append(token)
            if len(answer) < max_new_tokens:
                logits, layers = self._ask(layers, self._embed([token], prompt=False))
        return answer

    def first_token(self, layers: Floats, question: Sequence[int]) -> Floats:
        """The distribution over the vocabulary for the answer's first token, `[V]`."""
        logits, _ = self._ask(layers, self._embed(question))
        chances = np.exp(logits - logits.max())
        found: Floats = chances / chances.sum()
        return found

    # -- the graphs ------------------------------------------------------------------------------

    def _nothing(self) -> Floats:
        layout = self.layout
        return np.zeros((layout.layers, 2, 1, layout.kv_heads, 0, layout.head_dim), np.float32)

    def _embed(self, ids: Sequence[int], prompt: bool = True) -> Floats:
        """Embeddings `[T, E]`; some tokens of a prompt have another one beside a picture."""
        rows = [self._seen_as.get(token, token) if prompt else token for token in ids]
        made: Floats = np.asarray(self._embeddings[rows], dtype=np.float32)
        return made

    def _ask(self, layers: Floats, embeds: Floats) -> tuple[Floats, Floats]:
        """Logits `[V]` after tokens that follow a cache, and the longer cache."""
        held, count = layers.shape[4], len(embeds)
        mask = np.tri(count, held + count, held, dtype=np.bool_)
        logits, _, new = self._decode(embeds, layers, mask)
        return logits, np.concatenate([layers, new], axis=4)

    def _decode(
        self, embeds: Floats, past: Floats, mask: npt.NDArray[np.bool_]
    ) -> tuple[Floats, Floats, Floats]:
        """Logits of the last token `[V]`, attention `[T, S]` summed over layers, new cache."""
        held = past.shape[4]
        logits, weights, new = self._sessions.decoder.run(
            None,
            {
                "embeds": embeds[None],
                "positions": np.arange(held, held + len(embeds), dtype=np.int64),
                "seen": mask,
                "past": past,
            },
        )
        return logits, weights, new


def received_shares(weights: Floats, start: int, count: int) -> Floats:
    """Shares of attention that the image tokens receive, as `attention.Received` defines them.

    Args:
        weights: `[T, T]`, each row a query's attention, mean over heads, summed over layers.
        start: position of the first image token.
        count: image tokens, N.

    Returns:
        `[N]`, sums to 1: each token's sum per query that can see it, its own left out.
    """
    total = len(weights)
    columns, at = np.arange(start, start + count), np.arange(start, total)[:, None]
    received = weights[start:, start : start + count]
    early = ((received > 0) & (columns > at)).sum(axis=0)
    sums = np.where(columns == at, np.float32(0), received).sum(axis=0, dtype=np.float32)
    share = sums / np.maximum(total - 1 - columns + early, 1).astype(np.float32)
    made: Floats = (share / share.sum()).astype(np.float32)
    return made
