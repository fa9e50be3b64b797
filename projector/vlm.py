"""One vision-language model: pictures in, its cache out; a cache and a question in, words out.

Knows: checkpoints, processors, chat templates, the model's own forward pass. Does not know:
latents, maps, bundles, the wire. The calls, in the order of a frame: `prefill`, `states` (the
sending side); `scene_cache`, `answer` (the answering side); `answer_pictures` is the same model
seeing the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
<<<<<<< HEAD
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
=======
from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)

from projector import cache as kv
from projector.frozen import (
    FrozenModel,
    Generation,
    OnToken,
    Prefilled,
    eos_ids,
    noting,
    padded,
    read,
)
from protos.errors import (
    ModelError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
    UnsupportedModelError,
)
from protos.layout import KVState

<<<<<<< HEAD
_PROBES = ("Q", "What is left of it?")
=======
_ATTENTION = "neural_bridge"
_MOST_LOGITS = 1 << 22
"""Attention logits that measuring holds at once, 16 MiB of them."""
_PROBES = ("Q", "What is left of it?")
_SHIFT = 37  # positions by which the rotation witness moves its tokens
_SAME_KEYS = 0.3  # relative: measured up to 0.04 in bfloat16, 0.5 and more without RoPE


@dataclass
class _Received:
    """Adds up, layer by layer, the attention that image tokens receive while a prefill runs.

    Fused attention returns no weights. They are computed again from its own queries and keys, for
    the queries that can see a token of the picture only, some rows at a time: never more than one
    layer, and never more than `_MOST_LOGITS` numbers.

    Attributes:
        start: place of the first image token.
        tokens: image tokens, N.
        layers: how many were seen.
        sums: what each token receives from other tokens, summed over layers, mean over heads,
            `[batch, N]`.
        seen_by: by how many queries each token is seen, itself excepted, `[N]`.
    """

    start: int
    tokens: int
    layers: int = 0
    sums: Tensor | None = None
    seen_by: Tensor | None = None

    def take(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> None:
        """One layer's queries `[B, heads, T, D]` and keys `[B, kv_heads, T, D]`, both rotated."""
        batch, heads, length, dim = query.shape
        group = heads // key.shape[1]
        columns = key.float().transpose(-1, -2).unsqueeze(2)
        places = torch.arange(length, device=key.device)
        rows = max(1, _MOST_LOGITS // (batch * heads * length))
        for first in range(self.start, length, rows):
            chosen = query[:, :, first : first + rows].float()
            logits = chosen.unflatten(1, (-1, group)) @ columns * scaling
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            at = places[first : first + rows]
            logits.masked_fill_(places > at[:, None], float("-inf"))
            self.add(logits.softmax(dim=-1).mean(dim=(1, 2)), at)
        self.layers += 1

    def add(self, weights: Tensor, at: Tensor) -> None:
        """Mean weights `[B, rows, T]` of the queries at the places `at`."""
        columns = torch.arange(self.start, self.start + self.tokens, device=weights.device)
        received = weights[..., self.start : self.start + self.tokens].float()
        received = received.masked_fill(columns == at[:, None], 0.0).sum(dim=1)
        self.sums = received if self.sums is None else self.sums + received
        self.seen_by = int(at[-1]) - columns

    def shares(self) -> Tensor:
        """Shares `[batch, N]`: each token's sum per query that can see it, rows normalised to 1.

        (An early token is not favoured for being seen by more.)
        """
        if self.sums is None or self.seen_by is None:
            raise UnsupportedModelError("the decoder's attention could not be measured")
        share = self.sums / self.seen_by.clamp(min=1)
        return share / share.sum(dim=1, keepdim=True)


_received: contextvars.ContextVar[_Received | None] = contextvars.ContextVar(
    "received", default=None
)


def _noting_attention(implementation: str) -> str | None:
    """The name of an attention that does what `implementation` does and is measured besides.

    None where there is no fused attention of that name: eager attention returns its weights.
    """
    if implementation.startswith(_ATTENTION):
        return implementation
    if implementation not in ALL_ATTENTION_FUNCTIONS or implementation == "eager":
        return None
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    def noting(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        received = _received.get()
        if received is not None:
            scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
            received.take(query, key, scaling, kwargs.get("softcap"))
        return attend(module, query, key, value, attention_mask, **kwargs)

    name = _ATTENTION if implementation == "sdpa" else f"{_ATTENTION}_{implementation}"
    AttentionInterface.register(name, noting)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


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
>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)


@dataclass
class VLM(FrozenModel):
    """A frozen local image-text-to-text model with everything that its cache needs said about it.

    Build it with `VLM.load`.
    """

    processor: Any = field(repr=False, default=None)
    _image_count: int = field(repr=False, default=0)
    _tail_alone: bool = field(repr=False, default=False)
    _tail: list[int] = field(repr=False, default_factory=list)
    _cue: list[int] = field(repr=False, default_factory=list)
    _image_id: int = field(repr=False, default=-1)
    _image_text: str = field(repr=False, default="")
    _reserved: tuple[str, ...] = field(repr=False, default=())
    _pixels_alone: bool = field(repr=False, default=False)
<<<<<<< HEAD
=======
    _prefix: list[LayerCache] | None = field(repr=False, default=None)
    _measures_fused: bool = field(repr=False, default=True)
>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)

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
        config = read("configuration", folder, AutoConfig.from_pretrained)
        kv.refuse_unsupported(config)
        processor = read("processor", folder, AutoProcessor.from_pretrained)
        model, info = read(
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
            tokenizer=tokenizer,
            processor=processor,
            path=Path(path),
            layout=None,  # type: ignore[arg-type]  # set below, once N is known
            prefix_ids=[],
            eos_ids=eos_ids(model, tokenizer),
            decoder=kv.decoder_of(model),
            head=model.get_output_embeddings(),
            _image_id=int(image_id),
            _reserved=tuple(
                sorted({str(t) for t in tokenizer.all_special_tokens} | {_placeholder(processor)})
            ),
            _image_text=str(tokenizer.convert_ids_to_tokens(int(image_id))),
        )
        vlm._learn_prompt()
        vlm.layout = kv.layout_of(model, path, kv.grid_of(vlm._image_count))
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

<<<<<<< HEAD
=======
    def _take_over_attention(self) -> None:
        """Route the decoder's fused attention, if it uses one, through one that is measured.

        A decoder that calls SDPA by itself, as Falcon does, passes it by: it runs eagerly.
        """
        config = self.decoder.config
        name = _noting_attention(config._attn_implementation)
        self._measures_fused = name is not None
        if name is None:
            return
        config._attn_implementation = name
        with torch.inference_mode(), _measuring(_Received(0, 1)) as received:
            self.decoder(input_ids=torch.tensor([[0, 0]], device=self.device))
        if received is None or received.layers != self.layout.layers:
            self._measures_fused = False
            config._attn_implementation = "eager"

>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)
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
        self._check_rotation(self.prefix_ids + self._cue)

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

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer as it is trained on, the end token included."""
        ids = self.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

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
<<<<<<< HEAD
        with torch.inference_mode(), noting(attention and self._notes_queries) as queries:
=======
        wanted = _Received(len(self.prefix_ids), self.image_tokens) if attention else None
        fused = wanted if self._measures_fused else None
        with torch.inference_mode(), _measuring(fused):
>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)
            out = self._see(pictures, [ids] * len(pictures), cache, attention)
            layers = kv.read_cache(cache)
            if wanted is not None and fused is None:
                places = torch.arange(wanted.start, len(ids), device=self.device)
                for weights in out.attentions:
                    wanted.add(weights.float().mean(dim=1)[:, wanted.start :], places)
            received = None if wanted is None else wanted.shares()
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
        if attentions and not self._measures_fused:
            extra["output_attentions"] = True
        return self.model.base_model(
            input_ids=padded(ids, device), past_key_values=cache, use_cache=True, **pixels, **extra
        )

<<<<<<< HEAD
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
=======
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
>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)

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
            generation = Generation(self, cache, 0, [len(row) for row in ids])
            generation.width = hidden.shape[1]
            return generation.run(hidden, max_new_tokens, on_token)

<<<<<<< HEAD
=======
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
def _measuring(received: _Received | None) -> Iterator[_Received | None]:
    """Have fused attention tell `received` what it attends to."""
    token = _received.set(received)
    try:
        yield received
    finally:
        _received.reset(token)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)

>>>>>>> 5886c1d (a calibrated ladder: projector calibrate sweeps, measures and keeps the hull; quiet tokens; attention summed layer by layer; FP8 scales per tensor, head, channel, token; benchmarks.selectors)

def _placeholder(processor: Any) -> str:
    return str(getattr(processor, "image_token", None) or "<image>")
