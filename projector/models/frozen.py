"""A frozen local decoder: its cache, its answers from a cache, and how it rotates keys.

`VLM` reads pictures with it, `LM` reads texts.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.models import cache as kv
from projector.models.attention import Received, measured_attention, measuring
from projector.models.cache import LayerCache
from projector.models.checkpoint import COPY
from projector.models.decoder import attention_mask
from projector.models.output import Output
from projector.models.rope import unrotate
from projector.models.witness import Figures, Witness
from protos.errors import ModelError, UnsupportedModelError
from protos.layout import KVLayout
from protos.state import KVState

_SHIFT = 37  # positions by which the rotation check shifts its tokens
_SAME_KEYS = 0.3  # relative: measured up to 0.04 in bfloat16, 0.5 and more without RoPE
_WITNESSES = 16


@dataclass(frozen=True)
class Prefilled:
    """The cache of some pictures, as the model computed it.

    Attributes:
        keys: per layer `[batch, kv_heads, prefix_tokens + N, head_dim]`, rotated.
        values: of the same shapes.
        prefix_tokens: tokens before the picture.
        attention: received attention of the image tokens `[batch, N]`, each row sums to 1; `None`
            if the prefill did not measure it.
    """

    keys: list[Tensor]
    values: list[Tensor]
    prefix_tokens: int
    attention: Tensor | None = None

    def layers(self) -> list[LayerCache]:
        """Keys and values per layer, as `VLM.answer` takes them."""
        return list(zip(self.keys, self.values, strict=True))


OnToken = Callable[[int, int, int], None]
"""Called as `(row, index, token_id)` for each token, the moment it is known."""


@dataclass
class FrozenModel(ABC):
    """A frozen decoder with all that its cache needs.

    `checked` holds the figures of its self-check. `rotation_error` is the largest relative change
    of un-rotated keys when their position changes.
    """

    model: Any
    tokenizer: Any
    path: Path
    layout: KVLayout
    prefix_ids: list[int]
    eos_ids: frozenset[int]
    max_question_tokens: int = 256
    decoder: Any = field(repr=False, default=None)
    checked: Figures | None = field(repr=False, default=None)
    rotation_error: float = field(repr=False, default=0.0)
    _output: Output = field(repr=False, default=None)  # type: ignore[assignment]  # `of` sets it
    _seen_as: dict[int, Tensor] = field(repr=False, default_factory=dict)
    _prefix: list[LayerCache] | None = field(repr=False, default=None)
    _measures_fused: bool = field(repr=False, default=True)

    @abstractmethod
    def question_ids(self, text: str) -> list[int]:
        """The ids that follow the cached tokens: the question and the cue to answer."""

    @abstractmethod
    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer, as training uses them."""

    @abstractmethod
    def text_state(self, text: str) -> KVState:
        """The cache of a text alone, RoPE removed; a memory makes its keys from it."""

    @abstractmethod
    def witnesses(self) -> Iterator[Witness]:
        """The inputs of its self-check."""

    @property
    def device(self) -> torch.device:
        """The device of the decoder's weights."""
        device: torch.device = self.decoder.device
        return device

    @property
    def seen_as(self) -> dict[int, Tensor]:
        """Tokens that have another embedding beside a picture, with it, `[E]`."""
        return dict(self._seen_as)

    @contextlib.contextmanager
    def eager(self) -> Iterator[None]:
        """Within this context attention is eager: it returns its weights, and can be exported."""
        config, before = self.decoder.config, self._measures_fused
        name = config._attn_implementation
        config._attn_implementation, self._measures_fused = "eager", False
        try:
            yield
        finally:
            config._attn_implementation, self._measures_fused = name, before

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits from last hidden states, through the model's own output path; differentiable.

        Args:
            hidden: `[..., E]`, from `run`.

        Returns:
            `[..., vocabulary]`, scaled and capped as the model does.
        """
        return self._output(hidden)

    def logits_of(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """`logits` for some tokens only, ids `[n]`: from `[..., E]` to `[..., n]`."""
        return self._output.of(tokens)

    def run(
        self,
        ids: Tensor,
        cache: Any,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        prompt: bool = True,
    ) -> Tensor:
        """Run the decoder over tokens that follow a cache, and extend the cache.

        Args:
            ids: `[B, T]`.
            cache: from `cache.new_cache`.
            mask: bool `[B or 1, 1, T, held + T]`, true where a token sees another; None: causal.
            positions: `[B, T]`; None: those after the cache.
            prompt: whether the tokens are from the prompt. If the model made them itself, it may
                embed the same token differently beside a picture.

        Returns:
            Last hidden states `[B, T, E]`.
        """
        embedded = prompt and self._seen_as
        words = {"inputs_embeds": self._embed(ids)} if embedded else {"input_ids": ids}
        seen = None if mask is None else attention_mask(self.decoder, mask)
        if seen is not None and len(seen) != len(ids):
            seen = seen.expand(len(ids), -1, -1, -1)
        hidden: Tensor = self.decoder(
            **words,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, with those that the model replaces beside a picture."""
        made: Tensor = self.decoder.get_input_embeddings()(ids)
        for token, embedding in self._seen_as.items():
            made = torch.where((ids == token).unsqueeze(-1), embedding.to(made.device), made)
        return made

    def _take_over_attention(self) -> None:
        """Route the decoder's fused attention, if it has one, through a measured version.

        A decoder that calls SDPA itself (Falcon) bypasses the route, so it runs eager attention.
        """
        config = self.decoder.config
        name = measured_attention(config._attn_implementation)
        self._measures_fused = name is not None
        if name is None:
            return
        config._attn_implementation = name
        received = Received(0, 1)
        with torch.inference_mode(), measuring(received):
            self.decoder(input_ids=torch.tensor([[0, 0]], device=self.device))
        if received.layers != self.layout.layers:
            self._measures_fused = False
            config._attn_implementation = "eager"

    def _check_rotation(self, ids: Sequence[int]) -> None:
        """Refuse a layer whose un-rotated keys change with the tokens' position.

        This catches rotations that a configuration does not name: layers without RoPE or with one
        of their own, ALiBi, position embeddings.
        """
        ids = list(ids[:_WITNESSES]) or [0]
        starts = (0, _SHIFT)
        positions = [np.arange(start, start + len(ids), dtype=np.int64) for start in starts]
        cache = kv.new_cache()
        with torch.inference_mode():
            self.run(
                torch.tensor([ids] * len(starts), device=self.device),
                cache,
                positions=torch.from_numpy(np.stack(positions)).to(self.device),
            )
            keys = torch.stack([key for key, _ in kv.read_cache(cache)], dim=1)
            rotation = self.layout.rotation
            plain = [
                unrotate(row, rotation, at)[..., : rotation.rotary_dim]
                for row, at in zip(keys, positions, strict=True)
            ]
            for index, (here, there) in enumerate(zip(*plain, strict=True)):
                error = float((here - there).norm() / here.norm())
                self.rotation_error = max(self.rotation_error, error)
                if not error <= _SAME_KEYS:
                    raise UnsupportedModelError(
                        f"layer {index} of {self.layout.model_id} does not rotate its keys as the "
                        "decoder's RoPE says (a layer without RoPE, or positions of another kind); "
                        "its cache cannot be un-rotated"
                    )

    def _check_finite(self, layers: Sequence[LayerCache]) -> None:
        """Refuse a cache that holds NaN or infinity; name the weights that hold them."""
        if all(bool(torch.isfinite(part).all()) for layer in layers for part in layer):
            return
        broken = [n for n, w in self.model.named_parameters() if not bool(torch.isfinite(w).all())]
        where = f"the weights hold NaN or infinity ({broken[0]})" if broken else "it overflows"
        dtype = str(self.decoder.dtype).removeprefix("torch.")
        raise ModelError(
            f"{self.path}: in {dtype} {where}, so that its cache holds NaN or infinity; "
            + (COPY if broken else "use another dtype")
        )

    def text(self, ids: Sequence[int]) -> str:
        """Decode answer tokens without special tokens and outer whitespace."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()

    # -- the answering side ----------------------------------------------------------------------

    def constant_prefix(self) -> list[LayerCache]:
        """The cache of the tokens before the picture, per layer `[1, kv_heads, P, head_dim]`."""
        if self._prefix is None:
            cache = kv.new_cache()
            with torch.inference_mode():
                if self.prefix_ids:
                    self.run(torch.tensor([self.prefix_ids], device=self.device), cache)
                    self._prefix = kv.read_cache(cache)
                else:
                    shape = (1, self.layout.kv_heads, 0, self.layout.head_dim)
                    none = torch.zeros(shape, dtype=self.decoder.dtype, device=self.device)
                    self._prefix = [(none, none)] * self.layout.layers
        return self._prefix

    def scene_cache(
        self,
        keys: Tensor | npt.NDArray[np.float32],
        values: Tensor | npt.NDArray[np.float32],
    ) -> list[LayerCache]:
        """The cache of a scene that the model never saw: its own constant prefix, then the tokens.

        Args:
            keys: `[layers, batch, kv_heads, N, head_dim]`, rotated at `positions`.
            values: of the same shapes.
        """
        with torch.inference_mode():
            return kv.scene_layers(
                self.constant_prefix(),
                torch.as_tensor(keys).to(self.device),
                torch.as_tensor(values).to(self.device),
            )

    def answer(
        self,
        cache_layers: Sequence[LayerCache],
        questions: Sequence[Sequence[int]],
        max_new_tokens: int = 16,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """Greedy answers, one per row of the cache. The given tensors are not written to.

        Args:
            cache_layers: per layer keys and values `[batch, kv_heads, T, head_dim]`.
            questions: ids from `question_ids`, one list per row.
            max_new_tokens: at most this many tokens, the end token not counted.
            on_token: called for every token as soon as it is known.

        Returns:
            Answer ids per row, without the end token.
        """
        held = cache_layers[0][0].shape[2]
        longest = max(len(question) for question in questions)
        self.layout.require_window(held + longest + max_new_tokens, "a context with its question")
        with torch.inference_mode():
            cache = kv.new_cache(cache_layers)
            generation = Generation(self, cache, held, [len(q) for q in questions])
            hidden = generation.forward(padded(questions, self.device))
            return generation.run(hidden, max_new_tokens, on_token)

    def first_token(
        self, cache_layers: Sequence[LayerCache], questions: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """The distribution over the vocabulary for the first token of each answer, `[batch, V]`.

        Args:
            cache_layers: as `answer`.
            questions: as `answer`.
        """
        held = cache_layers[0][0].shape[2]
        lengths = [len(question) for question in questions]
        with torch.inference_mode():
            generation = Generation(self, kv.new_cache(cache_layers), held, lengths)
            hidden = generation.forward(padded(questions, self.device))
            last = hidden[torch.arange(len(questions), device=self.device), generation.lengths - 1]
            chances: npt.NDArray[np.float32] = (
                torch.softmax(self.logits(last).float(), dim=-1).cpu().numpy()
            )
        return chances

    def generate_text(
        self,
        cache_layers: Sequence[LayerCache],
        questions: Sequence[str],
        max_new_tokens: int = 16,
    ) -> list[str]:
        """`answer` with texts for questions and answers."""
        ids = [self.question_ids(question) for question in questions]
        return [self.text(row) for row in self.answer(cache_layers, ids, max_new_tokens)]


class Generation:
    """Greedy decoding of one batch over a cache: `held` shared tokens, then right-padded rows."""

    def __init__(self, model: FrozenModel, cache: Any, held: int, lengths: Sequence[int]) -> None:
        self.model, self.cache, self.held = model, cache, held
        self.lengths = torch.tensor(lengths, device=model.device)
        self.even = min(lengths) == max(lengths)
        self.width = 0  # cached tokens after the shared ones, padding included

    def forward(self, ids: Tensor) -> Tensor:
        """First forward over padded suffixes `[B, T]`; causal, so no token sees the padding."""
        batch, width = ids.shape
        steps = torch.arange(width, device=ids.device)
        mask = torch.ones(width, self.held + width, dtype=torch.bool, device=ids.device)
        self.width = width
        positions = (steps + self.held).expand(batch, -1)
        return self.model.run(ids, self.cache, mask.tril(self.held)[None, None], positions)

    def run(self, hidden: Tensor, limit: int, on_token: OnToken | None) -> list[list[int]]:
        """Decode from the hidden states `[B, T, E]` of the first forward."""
        model, rows = self.model, hidden.shape[0]
        last = hidden[torch.arange(rows, device=hidden.device), self.lengths - 1]
        answers: list[list[int]] = [[] for _ in range(rows)]
        open_rows = set(range(rows))
        for index in range(limit):
            tokens = model.logits(last).argmax(dim=-1)
            for row, token in enumerate(tokens.tolist()):
                if row not in open_rows:
                    continue
                if token in model.eos_ids:
                    open_rows.discard(row)
                    continue
                answers[row].append(token)
                if on_token is not None:
                    on_token(row, index, token)
            if not open_rows or index + 1 == limit:
                break
            last = self.step(tokens, index)
        return answers

    def step(self, tokens: Tensor, index: int) -> Tensor:
        """Last hidden states `[B, E]` after each row's token number `index`, `[B]`."""
        positions = (self.lengths + (self.held + index)).unsqueeze(1)
        mask = None
        if not self.even:
            columns = torch.arange(self.held + self.width + index + 1, device=tokens.device)
            real = self.held + self.lengths.unsqueeze(1)
            seen = (columns < real) | (columns >= self.held + self.width)
            mask = seen[:, None, None, :]
        made = self.model.run(tokens.unsqueeze(1), self.cache, mask, positions, prompt=False)
        return made[:, -1]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids `[B, longest]`, zeros to the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer.

    Raises:
        ModelError: the generation settings name something that is not a token.
    """
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = given if isinstance(given, list) else [given]
    if any(i is not None and type(i) is not int for i in ids):
        raise ModelError(
            f"generation_config.json: 'eos_token_id' is {given!r}, not a token's number or a list "
            "of them; use the one that the model was published with"
        )
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
