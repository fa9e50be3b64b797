"""A vision-language model: it turns pictures into caches, and answers questions from a cache.

Calls in the order of a frame: `prefill` and `states` on the sending side, `scene_cache` and
`answer` on the answering side. `answer_pictures` answers with the pictures in sight.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from projector.models import cache as kv
from projector.models import checkpoint, self_check
from projector.models.attention import Received, measuring
from projector.models.decoder import decoder_of
from projector.models.foreign import foreign
from projector.models.frozen import (
    FrozenModel,
    Generation,
    OnToken,
    Prefilled,
    eos_ids,
    padded,
)
from projector.models.layout import grid_of, layout_of
from projector.models.output import Output
from projector.models.pixels import Pixels, Prepared
from projector.models.prompt import Prompt
from projector.models.questions import ids_of_question
from projector.models.supported import refuse_unsupported
from projector.models.witness import Witness
from protos.errors import (
    PictureError,
    SelfCheckError,
    UnsupportedModelError,
)
from protos.state import KVState


@dataclass
class VLM(FrozenModel):
    """A frozen local image-text-to-text model with all that its cache needs.

    Build it with `VLM.load`.
    """

    processor: Any = field(repr=False, default=None)
    prompt: Prompt = field(repr=False, default=None)  # type: ignore[assignment]  # `of` sets it
    pixels: Pixels = field(repr=False, default=None)  # type: ignore[assignment]  # `of` sets it

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
            UnsupportedModelError: a cache layout cannot describe the model; the error names why.
        """
        folder = Path(path)
        config = checkpoint.read_config(folder)
        if not checkpoint.sees_pictures(config):
            raise UnsupportedModelError(
                f"{folder}: transformers has no image-text-to-text class for "
                f"'{config.model_type}'; use a vision-language model of another class"
            )
        refuse_unsupported(config)
        processor = checkpoint.read_processor(folder)
        model = checkpoint.read_weights(folder, AutoModelForImageTextToText, dtype, device)
        with checkpoint.first_runs(model, folder):
            return cls.of(model, processor, folder, known=True)

    @classmethod
    def of(cls, model: Any, processor: Any, path: str | Path, known: bool = False) -> VLM:
        """Wrap a model and a processor already in memory; `path` is where they were saved.

        Args:
            model: in evaluation mode.
            processor: of the model.
            path: folder of the checkpoint.
            known: whether model and processor are exactly what the folder holds; then an earlier
                self-check of that folder counts.

        Raises:
            ModelError, UnsupportedModelError: as `load`.
        """
        refuse_unsupported(model.config)
        asked = inspect.signature(model.base_model.forward).parameters
        prompt = Prompt.of(processor, model.config, Path(path), asked)
        tokens = {"before": prompt.before, "after": prompt.cue}
        tokenizer = processor.tokenizer
        vlm = cls(
            model=model,
            tokenizer=tokenizer,
            processor=processor,
            path=Path(path),
            layout=layout_of(model, path, grid_of(prompt.image_tokens, Path(path)), tokens),
            prefix_ids=prompt.before,
            eos_ids=eos_ids(model, tokenizer),
            decoder=decoder_of(model),
            _output=Output(model),
            prompt=prompt,
            pixels=Pixels(prompt),
        )
        vlm._take_over_attention()
        vlm._learn_embeddings()
        vlm._check_cache()
        vlm.checked = self_check.require(vlm, vlm.witnesses, known)
        return vlm

    def _learn_embeddings(self) -> None:
        """Find the tokens whose embedding the model replaces beside a picture.

        Ovis2 puts tokens around a picture that have their own embeddings among the visual ones.
        """
        ids = self.prefix_ids + [self.prompt.image_id] * self.image_tokens + self.prompt.cue
        noted: list[Tensor] = []

        def note(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
            if isinstance(named.get("inputs_embeds"), Tensor):
                noted.append(named["inputs_embeds"][0])

        hook = self.decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with torch.inference_mode(), self._fitting():
                self._see([Image.new("RGB", (64, 64), (90, 120, 150))], [ids], kv.new_cache())
        finally:
            hook.remove()
        if not noted:
            return
        words = [0 if token == self.prompt.image_id else token for token in ids]
        with torch.inference_mode():
            table = self.decoder.get_input_embeddings()(torch.tensor(words, device=self.device))
        found: dict[int, list[Tensor]] = {}
        for token, given in zip(ids, noted[0], strict=True):
            found.setdefault(token, []).append(given)
        for token, usual in zip(ids, table, strict=True):
            given = found[token][0]
            if token == self.prompt.image_id or torch.equal(given, usual):
                continue
            if any(not torch.equal(given, other) for other in found[token]):
                raise UnsupportedModelError(
                    f"{self.layout.model_id} reads the token "
                    f"'{self.tokenizer.convert_ids_to_tokens(token)}' beside a picture in more "
                    "than one way; ids alone do not determine its cache"
                )
            self._seen_as[token] = given.clone()

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """A processor that does not fit the model becomes a `ModelError`."""
        what = f"the model of {self.path} cannot run what its own processor makes"
        with foreign(what, checkpoint.COPY, mixed=True):
            yield

    def _check_cache(self) -> None:
        """Run the constant prefix and one picture; refuse a cache unlike the layout."""
        layout = self.layout
        with self._fitting():
            made = self.prefill([Image.new("RGB", (64, 64), (90, 120, 150))])
        self._check_finite(made.layers())
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
        self._check_rotation(self.prefix_ids + self.prompt.cue)

    def witnesses(self) -> Iterator[Witness]:
        """Pictures of several shapes with questions, as the processor's prompts.

        Raises:
            SelfCheckError: the processor turns a prompt into other ids than this class does.
        """
        before = self.prefix_ids + [self.prompt.image_id] * self.image_tokens
        for name, picture, texts in _witnesses():
            state = self.states(self.prefill([picture]))
            keys, values = kv.from_states(state, self.layout, self.positions)
            layers = self.scene_cache(keys, values)
            for text in texts:
                inputs = {
                    name: value
                    for name, value in self.prompt.inputs(text, picture).items()
                    if isinstance(value, Tensor)
                }
                question = self.question_ids(text)
                ids = before + question
                if inputs["input_ids"][0].tolist() != ids:
                    raise SelfCheckError(
                        f"the processor of {self.path} makes other tokens of '{text}' after a "
                        "picture than of the question alone; its chat template or tokenizer "
                        "merges the two"
                    )
                yield Witness(
                    f"'{text}' about {name}",
                    name,
                    inputs,
                    layers,
                    question,
                    partial(self._last_seen, picture, ids),
                )

    def _last_seen(self, picture: Image.Image, ids: list[int]) -> Tensor:
        seen: Tensor = self._see([picture], [ids], kv.new_cache()).last_hidden_state[:, -1]
        return seen

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
            QuestionError: it is blank, or holds one of the tokenizer's reserved tokens.
            QuestionTooLongError: more than `max_question_tokens`.
        """
        return ids_of_question(
            text, self.prompt.reserved, self.max_question_tokens, self.prompt.after_image
        )

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer, as training uses them, with the end token."""
        ids = self.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    # -- the sending side ------------------------------------------------------------------------

    def text_state(self, text: str) -> KVState:
        """The cache of a text alone behind the constant prefix, without a picture, RoPE removed.

        Its tokens have no template. A memory makes its keys from it.

        Raises:
            QuestionError, QuestionTooLongError: as `question_ids`.
        """
        ids = ids_of_question(text, self.prompt.reserved, self.max_question_tokens, self._bare)
        start, cache = len(self.prefix_ids), kv.new_cache()
        with torch.inference_mode():
            self.run(padded([[*self.prefix_ids, *ids]], self.device), cache)
            layers = kv.read_cache(cache)
            keys, values = (torch.stack(part)[..., start:, :] for part in zip(*layers, strict=True))
            positions = np.arange(start, start + len(ids), dtype=np.int64)
            shares = torch.full((1, len(ids)), 1 / len(ids))
            return kv.to_states(keys, values, self.layout, positions, shares)[0]

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prefill(
        self, pictures: Sequence[Image.Image | Prepared], attention: bool = True
    ) -> Prefilled:
        """Run the model over the prompt up to the last image token, one row per picture.

        Args:
            pictures: any size and mode (the model's own processor resizes and normalises them), or
                all from `prepare`, with equal shapes.
            attention: also run the fixed tail of the prompt (the cue to answer) and measure the
                attention that the image tokens receive.

        Raises:
            PictureError: there is no picture, or the processor cannot take one.
        """
        after = self.prompt.cue if attention else []
        ids = self.prefix_ids + [self.prompt.image_id] * self.image_tokens + after
        cache = kv.new_cache()
        wanted = Received(len(self.prefix_ids), self.image_tokens) if attention else None
        fused = wanted if self._measures_fused else None
        with torch.inference_mode(), measuring(fused):
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

    def seen_tokens(self, picture: Image.Image) -> npt.NDArray[np.bool_]:
        """Which tokens see which, in any layer, while a picture and the cue are read: `[T, T]`."""
        ids = self.prefix_ids + [self.prompt.image_id] * self.image_tokens + self.prompt.cue
        with torch.inference_mode(), self.eager():
            out = self._see([picture], [ids], kv.new_cache(), attentions=True)
        largest = torch.stack([each[0].amax(dim=0) for each in out.attentions]).amax(dim=0)
        seen: npt.NDArray[np.bool_] = (largest > 0).cpu().numpy()
        return seen

    def prepare(self, picture: Image.Image) -> Image.Image | Prepared:
        """Do the part of `prefill` that needs no model, for one picture; safe in any thread.

        Returns the picture unchanged if the image processor alone does not suffice: tokenizers
        are tied to one thread.

        Raises:
            PictureError: the processor cannot take it.
        """
        return Prepared(self.pixels.of_pictures([picture])) if self.pixels.alone else picture

    def _see(
        self,
        pictures: Sequence[Image.Image | Prepared],
        ids: Sequence[Sequence[int]],
        cache: Any,
        attentions: bool = False,
    ) -> Any:
        """Run the whole model, vision included, over right-padded `ids`, into `cache`; no head."""
        if not pictures:
            raise PictureError("no picture was given")
        device = self.device
        pixels = {
            name: value.to(device, self.decoder.dtype if value.is_floating_point() else None)
            for name, value in self.pixels.of_pictures(pictures).items()
        }
        extra: dict[str, Any] = {}
        width = max(map(len, ids))
        for name, (marks, after) in self.prompt.marks.items():
            row = torch.tensor(marks + [after] * (width - len(marks)), device=device)
            extra[name] = row.expand(len(ids), -1)
        if attentions and not self._measures_fused:
            extra["output_attentions"] = True
        return self.model.base_model(
            input_ids=padded(ids, device), past_key_values=cache, use_cache=True, **pixels, **extra
        )

    def answer_pictures(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[Sequence[int]],
        max_new_tokens: int = 16,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """Greedy answers of the model when it sees the pictures, in one forward pass.

        Args:
            pictures: one per row.
            questions: ids from `question_ids`, one list per row.
            max_new_tokens: as `answer`.
            on_token: as `answer`.

        Raises:
            PictureError: as `prefill`.
        """
        before = self.prefix_ids + [self.prompt.image_id] * self.image_tokens
        ids = [before + list(question) for question in questions]
        with torch.inference_mode():
            cache = kv.new_cache()
            hidden = self._see(pictures, ids, cache).last_hidden_state
            generation = Generation(self, cache, 0, [len(row) for row in ids])
            generation.width = hidden.shape[1]
            return generation.run(hidden, max_new_tokens, on_token)


def _witnesses() -> Iterator[tuple[str, Image.Image, tuple[str, ...]]]:
    """Pictures that differ in every way, with their names and questions."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    noise = draw.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    slope = np.linspace(0, 255, 64)
    both = np.stack([np.broadcast_to(s, (64, 64)) for s in (slope, slope[:, None], slope[::-1])], 2)
    first, second = "What is left of the red car?", "How many people are there? One, 2 or 30"
    wide = Image.fromarray(blocks).resize((96, 64), Image.Resampling.NEAREST)
    yield "blocks of colour", wide, (first, second)
    yield "noise", Image.fromarray(noise), (first,)
    yield "a gradient", Image.fromarray(both.astype(np.uint8)), (second,)
