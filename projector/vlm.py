"""One vision-language model: pictures in, its cache out; a cache and a question in, words out.

Knows: checkpoints, processors, chat templates, the model's own forward pass. Does not know:
latents, maps, bundles, the wire. The calls, in the order of a frame: `prefill`, `states` (the
sending side); `scene_cache`, `answer` (the answering side); `answer_pictures` is the same model
seeing the picture.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from projector import cache as kv
from projector.cache import LayerCache
from protos.errors import (
    ModelError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
    UnsupportedModelError,
)
from protos.layout import KVLayout, KVState

_ATTENTION = "neural_bridge"
_queries: contextvars.ContextVar[list[tuple[Tensor, float]] | None] = contextvars.ContextVar(
    "queries", default=None
)
_PROBES = ("Q", "What is left of it?")
_SHIFT = 37  # positions by which the rotation witness moves its tokens
_SAME_KEYS = 0.3  # relative: measured up to 0.04 in bfloat16, 0.5 and more without RoPE


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA; while a prefill asks for them, it also notes the rotated queries of each layer."""
    noted = _queries.get()
    if noted is not None:
        noted.append((query, float(kwargs.get("scaling") or query.shape[-1] ** -0.5)))
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return output


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class Prefilled:
    """The cache of some pictures, as the model left it.

    Attributes:
        keys: per layer `[batch, kv_heads, prefix_tokens + N, head_dim]`, rotated.
        values: likewise.
        prefix_tokens: tokens before the picture.
        attention: received attention of the image tokens `[batch, N]`, each row sums to 1; `None`
            where the prefill was told not to measure it.
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
class VLM:
    """A frozen local image-text-to-text model with everything that its cache needs said about it.

    Build it with `VLM.load`.
    """

    model: Any
    processor: Any
    path: Path
    layout: KVLayout
    prefix_ids: list[int]
    eos_ids: frozenset[int]
    max_question_tokens: int = 256
    decoder: Any = field(repr=False, default=None)
    head: Any = field(repr=False, default=None)
    _image_count: int = field(repr=False, default=0)
    _tail_alone: bool = field(repr=False, default=False)
    _tail: list[int] = field(repr=False, default_factory=list)
    _cue: list[int] = field(repr=False, default_factory=list)
    _image_id: int = field(repr=False, default=-1)
    _image_text: str = field(repr=False, default="")
    _reserved: tuple[str, ...] = field(repr=False, default=())
    _pixels_alone: bool = field(repr=False, default=False)
    _prefix: list[LayerCache] | None = field(repr=False, default=None)
    _notes_queries: bool = field(repr=False, default=True)

    # -- loading ---------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: str = "float32") -> VLM:
        """Load a local checkpoint of any supported image-text-to-text class. Never goes online.

        Args:
            path: a folder written by `save_pretrained` (safetensors weights, processor, template).
            device: a torch device.
            dtype: `float32`, `bfloat16` or `float16`.

        Raises:
            ModelError: the folder is not a usable checkpoint.
            UnsupportedModelError: the model is one that a cache layout cannot describe, by name.
        """
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json: it is not a checkpoint folder")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ModelError(f"dtype '{dtype}' is unknown; use float32, bfloat16 or float16")
        config = _read("configuration", folder, AutoConfig.from_pretrained)
        kv.refuse_unsupported(config)
        processor = _read("processor", folder, AutoProcessor.from_pretrained)
        model, info = _read(
            "model",
            folder,
            AutoModelForImageTextToText.from_pretrained,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        missing = sorted(info["missing_keys"])
        if missing:  # it would be left at random values
            raise ModelError(
                f"the weights of {folder} lack {len(missing)} tensors, such as {missing[0]}"
            )
        return cls.of(model.to(device).eval(), processor, folder)

    @classmethod
    def of(cls, model: Any, processor: Any, path: str | Path) -> VLM:
        """Wrap a model and a processor already in memory; `path` is where they were saved.

        Raises:
            ModelError, UnsupportedModelError: as `load`.
        """
        kv.refuse_unsupported(model.config)
        if getattr(processor, "image_processor", None) is None:
            raise ModelError(
                f"the processor of {path} has no image processor; classes whose processor also "
                "takes video (SmolVLM, Qwen-VL) need torchvision to be installed"
            )
        tokenizer = processor.tokenizer
        if not getattr(processor, "chat_template", None):
            raise ModelError(f"the processor of {path} has no chat template: cannot build a prompt")
        image_id = getattr(model.config, "image_token_id", None)
        if image_id is None:
            image_id = getattr(model.config, "image_token_index", None)
        if image_id is None:
            raise UnsupportedModelError(
                f"'{model.config.model_type}' names no image token: its pictures are not tokens"
            )
        vlm = cls(
            model=model,
            processor=processor,
            path=Path(path),
            layout=None,  # type: ignore[arg-type]  # set below, once N is known
            prefix_ids=[],
            eos_ids=_eos_ids(model, tokenizer),
            decoder=kv.decoder_of(model),
            head=model.get_output_embeddings(),
            _image_id=int(image_id),
            _reserved=tuple(
                sorted({str(t) for t in tokenizer.all_special_tokens} | {_placeholder(processor)})
            ),
            _image_text=str(tokenizer.convert_ids_to_tokens(int(image_id))),
        )
        vlm._learn_prompt()
        vlm.layout = kv.layout_of(model, path, vlm._image_count)
        vlm._take_over_attention()
        vlm._check_cache()
        return vlm

    def _learn_prompt(self) -> None:
        """Split the prompt into prefix, image tokens, fixed tail and question, for two probes."""
        blank = Image.new("RGB", (64, 64), (90, 120, 150))
        splits = [self._split(text, blank) for text in _PROBES]
        (prefix, count, tail), (prefix2, count2, tail2) = splits
        if prefix != prefix2 or count != count2:
            raise UnsupportedModelError(
                f"the chat template of {self.path} puts the question before the picture; "
                "the picture's cache would depend on the question"
            )
        if self._split(_PROBES[0], Image.new("RGB", (160, 48), (90, 120, 150)))[1] != count:
            raise UnsupportedModelError(
                f"the processor of {self.path} gives a picture more tokens or fewer by its shape; "
                "turn off picture splitting in its settings"
            )
        self.prefix_ids, self._image_count = prefix, count
        bare = [self._bare(text) for text in _PROBES]
        fixed = tail[: len(tail) - len(bare[0])]
        if all(
            fixed + b == t for b, t in zip(bare, (tail, tail2), strict=True)
        ):  # the usual case: the tail of the prompt can be tokenized on its own
            self._tail, self._tail_alone = fixed, True
        else:
            self._tail_alone = False
        self._cue = self._after_image("")
        self._pixels_alone = self._image_processor_suffices(blank)

    def _split(self, text: str, picture: Image.Image) -> tuple[list[int], int, list[int]]:
        inputs = self.processor(text=[self._render(text)], images=[[picture]], return_tensors="pt")
        ids: list[int] = inputs["input_ids"][0].tolist()
        at = [i for i, token in enumerate(ids) if token == self._image_id]
        if not at or at[-1] - at[0] + 1 != len(at):
            raise UnsupportedModelError(
                f"the processor of {self.path} lays one picture out in {len(at)} tokens that are "
                "not one contiguous block; turn off picture splitting in its settings"
            )
        return ids[: at[0]], len(at), ids[at[-1] + 1 :]

    def _render(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        rendered: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def _bare(self, text: str) -> list[int]:
        """Ids of the rendered prompt after the picture's placeholder."""
        after = self._render(text).split(_placeholder(self.processor), 1)[-1]
        ids: list[int] = self.processor.tokenizer(
            self._image_text + after, add_special_tokens=False
        )["input_ids"]
        return ids[1:]

    def _after_image(self, text: str) -> list[int]:
        if self._tail_alone:
            return self._tail + self._bare(text)
        return self._split(text, Image.new("RGB", (64, 64)))[2]

    def _image_processor_suffices(self, blank: Image.Image) -> bool:
        """Whether the image processor alone gives what the whole processor gives (it is faster)."""
        whole = self.processor(text=[self._render("Q")], images=[[blank]], return_tensors="pt")
        alone = self._pixels([blank], alone=True)
        names = {k for k in whole if k not in ("input_ids", "attention_mask", "token_type_ids")}
        return set(alone) == names and all(
            alone[k].shape == whole[k].shape and bool((alone[k] == whole[k]).all()) for k in names
        )

    def _take_over_attention(self) -> None:
        """Route the decoder's attention through `_attend`, if it runs on SDPA at all.

        A decoder that calls SDPA by itself, as Falcon does, passes `_attend` by: it runs eagerly.
        """
        config = self.decoder.config
        self._notes_queries = config._attn_implementation in ("sdpa", _ATTENTION)
        if not self._notes_queries:
            return
        config._attn_implementation = _ATTENTION
        with torch.inference_mode(), _noting(True) as queries:
            self.decoder(input_ids=torch.tensor([[0, 0]], device=self.device))
        if len(queries) != self.layout.layers:
            self._notes_queries = False
            config._attn_implementation = "eager"

    def _check_cache(self) -> None:
        """Run the constant prefix and one picture; refuse a cache that the layout misdescribes."""
        layout = self.layout
        try:
            made = self.prefill([Image.new("RGB", (64, 64), (90, 120, 150))])
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"the model of {self.path} cannot run what its own processor makes: {error}"
            ) from error
        tokens = len(self.prefix_ids) + layout.tokens
        want = (1, layout.kv_heads, tokens, layout.head_dim)
        for index, (key, value) in enumerate(made.layers()):
            if tuple(key.shape) != want or tuple(value.shape) != want:
                raise UnsupportedModelError(
                    f"layer {index} of {layout.model_id} caches keys {tuple(key.shape)} and values "
                    f"{tuple(value.shape)}, the layout says {want}"
                )
        if len(made.keys) != layout.layers:
            raise UnsupportedModelError(
                f"{layout.model_id} caches {len(made.keys)} layers, its config says {layout.layers}"
            )
        self._check_rotation()

    def _check_rotation(self) -> None:
        """Refuse a layer whose un-rotated keys change with the position of the same tokens.

        A witness for every rotation that a configuration does not name: layers without RoPE or
        with one of their own, ALiBi, positions added to the embeddings.
        """
        ids = (self.prefix_ids + self._cue)[:16] or [0]
        starts = (0, _SHIFT)
        positions = [np.arange(start, start + len(ids), dtype=np.int64) for start in starts]
        cache = kv.new_cache()
        with torch.inference_mode():
            self.decoder(
                input_ids=torch.tensor([ids] * len(starts), device=self.device),
                position_ids=torch.from_numpy(np.stack(positions)).to(self.device),
                past_key_values=cache,
                use_cache=True,
            )
            for index, (key, _) in enumerate(kv.read_cache(cache)):
                here, there = (
                    kv.unrotate(row, self.layout.rope, at)[..., : self.layout.rope.rotary_dim]
                    for row, at in zip(key, positions, strict=True)
                )
                if float((here - there).norm()) > _SAME_KEYS * float(here.norm()):
                    raise UnsupportedModelError(
                        f"layer {index} of {self.layout.model_id} does not rotate its keys as the "
                        "decoder's RoPE says (a layer without RoPE, or positions of another kind); "
                        "its cache cannot be un-rotated"
                    )

    # -- what the model says about itself --------------------------------------------------------

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture takes."""
        return self.layout.tokens

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions `[N]` of the image tokens in the prompt."""
        start = len(self.prefix_ids)
        return np.arange(start, start + self.image_tokens, dtype=np.int64)

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        device: torch.device = self.decoder.device
        return device

    # -- prompts ---------------------------------------------------------------------------------

    def question_ids(self, text: str) -> list[int]:
        """The ids that follow the last image token: the question and the cue to answer.

        Raises:
            QuestionError: blank, or holding one of the tokenizer's reserved tokens.
            QuestionTooLongError: more than `max_question_tokens`.
        """
        if not text.strip():
            raise QuestionError("the question is empty")
        reserved = next((token for token in self._reserved if token in text), None)
        if reserved is not None:
            raise QuestionError(f"the question holds '{reserved}', a token reserved by the model")
        if len(text) > 32 * self.max_question_tokens:
            raise QuestionTooLongError(
                f"the question has {len(text)} characters; "
                f"at most {self.max_question_tokens} tokens fit"
            )
        ids = self._after_image(text)
        if len(ids) > self.max_question_tokens:
            raise QuestionTooLongError(
                f"the question takes {len(ids)} tokens with its template; "
                f"at most {self.max_question_tokens} fit"
            )
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Decode answer tokens, special tokens left out, outer blanks stripped."""
        decoded: str = self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()

    # -- the sending side ------------------------------------------------------------------------

    def prefill(self, pictures: Sequence[Image.Image], attention: bool = True) -> Prefilled:
        """Run the model over the prompt up to the last image token, one row per picture.

        Args:
            pictures: any size and mode; the model's own processor resizes and normalises them.
            attention: also run the fixed tail of the prompt (the cue to answer) and measure the
                attention that the image tokens receive.

        Raises:
            PictureError: no picture, or one the processor cannot take.
        """
        after = self._cue if attention else []
        ids = self.prefix_ids + [self._image_id] * self.image_tokens + after
        cache = kv.new_cache()
        with torch.inference_mode(), _noting(attention and self._notes_queries) as queries:
            out = self._see(pictures, [ids] * len(pictures), cache, attention)
            layers = kv.read_cache(cache)
            received = None
            if attention and self._notes_queries:
                received = self._received(queries, [key for key, _ in layers])
            elif attention:
                received = self._column_sums(torch.stack(out.attentions, dim=0))
        end = len(self.prefix_ids) + self.image_tokens
        return Prefilled(
            keys=[key[:, :, :end] for key, _ in layers],
            values=[value[:, :, :end] for _, value in layers],
            prefix_tokens=len(self.prefix_ids),
            attention=received,
        )

    def states(self, prefilled: Prefilled) -> list[KVState]:
        """The image tokens' cache with RoPE removed, one state per picture."""
        start = prefilled.prefix_tokens
        keys = torch.stack([key[:, :, start:] for key in prefilled.keys])
        values = torch.stack([value[:, :, start:] for value in prefilled.values])
        attention = prefilled.attention
        if attention is None:
            attention = torch.full((keys.shape[1], keys.shape[3]), 1.0 / keys.shape[3])
        with torch.inference_mode():
            return kv.to_states(keys, values, self.layout, self.positions, attention)

    def _pixels(
        self, pictures: Sequence[Image.Image], alone: bool | None = None
    ) -> dict[str, Tensor]:
        """What the model's forward needs besides ids, one row per picture."""
        try:
            rgb = [picture.convert("RGB") for picture in pictures]
        except (AttributeError, OSError, ValueError) as error:
            raise PictureError(f"not a readable picture: {error}") from error
        nested = [[picture] for picture in rgb]
        if self._pixels_alone if alone is None else alone:
            try:
                made = self.processor.image_processor(images=nested, return_tensors="pt")
            except ValueError as error:
                raise PictureError(f"the model's processor refused it: {error}") from error
        else:
            made = self.processor(
                text=[self._render("Q")] * len(rgb), images=nested, return_tensors="pt"
            )
        skip = ("input_ids", "attention_mask", "token_type_ids", "rows", "cols", "num_patches")
        return {k: v for k, v in made.items() if k not in skip and isinstance(v, Tensor)}

    def _see(
        self,
        pictures: Sequence[Image.Image],
        ids: Sequence[Sequence[int]],
        cache: Any,
        attentions: bool = False,
    ) -> Any:
        """The whole model, vision included, over right-padded `ids`, into `cache`; no head."""
        if not pictures:
            raise PictureError("no picture was given")
        device = self.device
        pixels = {
            name: value.to(device, self.decoder.dtype if value.is_floating_point() else None)
            for name, value in self._pixels(pictures).items()
        }
        extra: dict[str, Any] = {}
        if attentions and not self._notes_queries:
            extra["output_attentions"] = True
        return self.model.base_model(
            input_ids=_padded(ids, device), past_key_values=cache, use_cache=True, **pixels, **extra
        )

    def _received(self, queries: list[tuple[Tensor, float]], keys: list[Tensor]) -> Tensor:
        """Received attention `[batch, N]` from the noted queries (all layers at once)."""
        start = len(self.prefix_ids)
        query = torch.stack([q[:, :, start:] for q, _ in queries]).float()
        key = torch.stack(keys).float()
        group = query.shape[2] // key.shape[2]
        layers, batch, heads, _, dim = key.shape
        query = query.reshape(layers, batch, heads, -1, dim)  # the queries of a group in a row
        logits = query @ key.transpose(-1, -2) * queries[0][1]
        logits = logits.reshape(layers, batch, heads, group, -1, key.shape[3])
        rows, columns = logits.shape[-2:]
        hidden = torch.ones(rows, columns, dtype=torch.bool, device=key.device).triu(start + 1)
        weights = logits.masked_fill_(hidden, float("-inf")).softmax(dim=-1)
        return self._share(weights[..., start : start + self.image_tokens].mean(dim=(0, 2, 3)))

    def _column_sums(self, weights: Tensor) -> Tensor:
        """The same from full weights `[layers, batch, heads, T, T]` of an eager forward."""
        start = len(self.prefix_ids)
        square = weights[..., start:, start : start + self.image_tokens].float()
        return self._share(square.mean(dim=(0, 2)))

    def _share(self, weights: Tensor) -> Tensor:
        """Mean weights `[batch, queries, N]` to shares of what others give `[batch, N]`.

        Each column's sum, without the token's own share, is divided by the number of queries that
        can see the token, then rows are normalised to 1 (an early token is not favoured for being
        seen by more).
        """
        tokens = self.image_tokens
        others = weights.sum(dim=1) - weights[:, :tokens].diagonal(dim1=1, dim2=2)
        seen_by = weights.shape[1] - 1 - torch.arange(tokens, device=weights.device)
        share = others / seen_by.clamp(min=1)
        return share / share.sum(dim=1, keepdim=True)

    # -- the answering side ----------------------------------------------------------------------

    def constant_prefix(self) -> list[LayerCache]:
        """The cache of the tokens before the picture, per layer `[1, kv_heads, P, head_dim]`."""
        if self._prefix is None:
            cache = kv.new_cache()
            with torch.inference_mode():
                if self.prefix_ids:
                    self.decoder(
                        input_ids=torch.tensor([self.prefix_ids], device=self.device),
                        past_key_values=cache,
                        use_cache=True,
                    )
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
        """The cache of a scene the model never saw: its own constant prefix, then the given tokens.

        Args:
            keys: `[layers, batch, kv_heads, N, head_dim]`, rotated at `positions`.
            values: likewise.
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
            max_new_tokens: at most so many tokens, the end token not counted.
            on_token: called for every token as soon as it is known.

        Returns:
            Answer ids per row, without the end token.
        """
        held = cache_layers[0][0].shape[2]
        with torch.inference_mode():
            cache = kv.new_cache(cache_layers)
            generation = _Generation(self, cache, held, [len(q) for q in questions])
            hidden = generation.forward(_padded(questions, self.device))
            return generation.run(hidden, max_new_tokens, on_token)

    def answer_pictures(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[Sequence[int]],
        max_new_tokens: int = 16,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """Greedy answers by the model that sees the pictures: one forward over both.

        Args:
            pictures: one per row.
            questions: ids from `question_ids`, one list per row.
            max_new_tokens: as `answer`.
            on_token: as `answer`.

        Raises:
            PictureError: as `prefill`.
        """
        before = self.prefix_ids + [self._image_id] * self.image_tokens
        ids = [before + list(question) for question in questions]
        with torch.inference_mode():
            cache = kv.new_cache()
            hidden = self._see(pictures, ids, cache).last_hidden_state
            generation = _Generation(self, cache, 0, [len(row) for row in ids])
            generation.width = hidden.shape[1]
            return generation.run(hidden, max_new_tokens, on_token)

    def generate_text(
        self,
        cache_layers: Sequence[LayerCache],
        questions: Sequence[str],
        max_new_tokens: int = 16,
    ) -> list[str]:
        """`answer`, in words on both sides."""
        ids = [self.question_ids(question) for question in questions]
        return [self.text(row) for row in self.answer(cache_layers, ids, max_new_tokens)]


class _Generation:
    """Greedy decoding of one batch over a cache: `held` shared tokens, then right-padded rows."""

    def __init__(self, vlm: VLM, cache: Any, held: int, lengths: Sequence[int]) -> None:
        self.vlm, self.cache, self.held = vlm, cache, held
        self.lengths = torch.tensor(lengths, device=vlm.device)
        self.even = min(lengths) == max(lengths)
        self.width = 0  # tokens that the cache holds after the shared ones, padding included

    def forward(self, ids: Tensor) -> Tensor:
        """First forward over padded suffixes `[B, T]`; causal, so right padding is unseen."""
        batch, width = ids.shape
        steps = torch.arange(width, device=ids.device)
        mask = torch.ones(width, self.held + width, dtype=torch.bool, device=ids.device)
        mask = mask.tril(self.held).expand(batch, 1, -1, -1)
        self.width = width
        hidden: Tensor = self.vlm.decoder(
            input_ids=ids,
            attention_mask=kv.attention_mask(self.vlm.decoder, mask),
            position_ids=(steps + self.held).expand(batch, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def run(self, hidden: Tensor, limit: int, on_token: OnToken | None) -> list[list[int]]:
        """Decode from the hidden states `[B, T, E]` of the first forward."""
        vlm, rows = self.vlm, hidden.shape[0]
        last = hidden[torch.arange(rows, device=hidden.device), self.lengths - 1]
        answers: list[list[int]] = [[] for _ in range(rows)]
        open_rows = set(range(rows))
        for index in range(limit):
            tokens = vlm.head(last).argmax(dim=-1)
            for row, token in enumerate(tokens.tolist()):
                if row not in open_rows:
                    continue
                if token in vlm.eos_ids:
                    open_rows.discard(row)
                    continue
                answers[row].append(token)
                if on_token is not None:
                    on_token(row, index, token)
            if not open_rows or index + 1 == limit:
                break
            last = self._step(tokens, index)
        return answers

    def _step(self, tokens: Tensor, index: int) -> Tensor:
        positions = (self.lengths + (self.held + index)).unsqueeze(1)
        mask = None
        if not self.even:
            columns = torch.arange(self.held + self.width + index + 1, device=tokens.device)
            real = self.held + self.lengths.unsqueeze(1)
            seen = (columns < real) | (columns >= self.held + self.width)
            mask = kv.attention_mask(self.vlm.decoder, seen[:, None, None, :])
        hidden: Tensor = self.vlm.decoder(
            input_ids=tokens.unsqueeze(1),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[:, -1]


@contextlib.contextmanager
def _noting(wanted: bool) -> Iterator[list[tuple[Tensor, float]]]:
    noted: list[tuple[Tensor, float]] = []
    token = _queries.set(noted if wanted else None)
    try:
        yield noted
    finally:
        _queries.reset(token)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)


def _placeholder(processor: Any) -> str:
    return str(getattr(processor, "image_token", None) or "<image>")


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [given] if isinstance(given, int) else list(given or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return frozenset(int(i) for i in ids)


def _read(what: str, folder: Path, load: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a `from_pretrained` offline; whatever it raises becomes a `ModelError`."""
    try:
        return load(str(folder), local_files_only=True, **kwargs)
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"cannot load the {what} of {folder}: {error}") from error
    except RuntimeError as error:
        raise ModelError(f"the weights of {folder} do not fit its config: {error}") from error
