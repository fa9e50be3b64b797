"""One vision-language model: pictures in, its cache out; a cache and a question in, words out.

Knows: checkpoints, processors, chat templates, the model's own forward pass. Does not know:
latents, maps, bundles, the wire. The calls, in the order of a frame: `prefill`, `states` (the
sending side); `scene_cache`, `answer` (the answering side); `answer_pictures` is the same model
seeing the picture.
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
from projector.models.pictures import as_rgb
from projector.models.supported import refuse_unsupported
from projector.models.template import rehearse
from projector.models.witness import Witness
from protos.errors import (
    ModelError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
    SelfCheckError,
    UnsupportedModelError,
)
from protos.state import KVState

_SPLITS = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan", "do_split_image")
_TEMPLATE_ADVICE = "use the chat template that the model was published with"
_PROBES = ("Q", "What is left of it?")
_MARKS = {"token_type_ids", "mm_token_type_ids"}
_NO_PIXELS = _MARKS | {
    *("input_ids", "attention_mask"),
    *("rows", "cols", "num_patches", "num_crops", "grids"),  # the processor's own, for its text
}


@dataclass(frozen=True)
class Prepared:
    """One picture as `VLM.prepare` made it: what the model's forward needs besides ids."""

    pixels: dict[str, Tensor]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Pictures of equal shapes can be seen together."""
        return tuple(tuple(value.shape) for value in self.pixels.values())


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
    _marks: dict[str, tuple[list[int], int]] = field(repr=False, default_factory=dict)

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
            processor: its own.
            path: its folder.
            known: whether they are just what the folder holds, so that an earlier self-check of
                that folder counts.

        Raises:
            ModelError, UnsupportedModelError: as `load`.
        """
        refuse_unsupported(model.config)
        if getattr(processor, "image_processor", None) is None:
            raise ModelError(
                f"the processor of {path} has no image processor; classes whose processor also "
                "takes video (SmolVLM, Qwen-VL) need torchvision to be installed"
            )
        tokenizer = processor.tokenizer
        _check_template(processor, Path(path))
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
            decoder=decoder_of(model),
            _output=Output(model),
            _image_id=int(image_id),
            _reserved=tuple(sorted(_reserved(processor, int(image_id)))),
            _image_text=str(tokenizer.convert_ids_to_tokens(int(image_id))),
        )
        vlm._learn_prompt()
        grid = grid_of(vlm._image_count, Path(path))
        prompt = {"before": vlm.prefix_ids, "after": vlm._cue}
        vlm.layout = layout_of(model, path, grid, prompt)
        vlm._take_over_attention()
        vlm._learn_embeddings()
        vlm._check_cache()
        vlm.checked = self_check.require(vlm, vlm.witnesses, known)
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
                f"{_splitting(self.processor, self.path)}"
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
        self._learn_marks(blank)
        self._pixels_alone = self._image_processor_suffices(blank)

    def _learn_marks(self, blank: Image.Image) -> None:
        """What the processor says of each token besides its id, where the model asks for it.

        Gemma 3 is told by it which tokens are a picture's and see each other both ways.
        """
        made = self._inputs(_PROBES[1], blank)
        asked = inspect.signature(self.model.base_model.forward).parameters
        end = len(self.prefix_ids) + self._image_count
        for name in sorted(_MARKS & set(asked) & set(made)):
            row: list[int] = made[name][0].tolist()
            if len(set(row[end:])) > 1:
                raise UnsupportedModelError(
                    f"the processor of {self.path} marks the question's tokens in more than one "
                    f"way ({name}); their cache cannot be told from their ids"
                )
            self._marks[name] = row[:end], row[-1]

    def _learn_embeddings(self) -> None:
        """Which tokens the model reads beside a picture as something else than their own embedding.

        Ovis2 frames a picture with tokens that have embeddings of their own among the visual ones.
        """
        ids = self.prefix_ids + [self._image_id] * self.image_tokens + self._cue
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
        words = [0 if token == self._image_id else token for token in ids]
        with torch.inference_mode():
            table = self.decoder.get_input_embeddings()(torch.tensor(words, device=self.device))
        found: dict[int, list[Tensor]] = {}
        for token, given in zip(ids, noted[0], strict=True):
            found.setdefault(token, []).append(given)
        for token, usual in zip(ids, table, strict=True):
            given = found[token][0]
            if token == self._image_id or torch.equal(given, usual):
                continue
            if any(not torch.equal(given, other) for other in found[token]):
                raise UnsupportedModelError(
                    f"{self.layout.model_id} reads the token "
                    f"'{self.tokenizer.convert_ids_to_tokens(token)}' beside a picture in more "
                    "than one way; its cache cannot be told from its ids"
                )
            self._seen_as[token] = given.clone()

    def _inputs(self, text: str, picture: Image.Image) -> Any:
        """What the processor makes of a picture with a question: all that the model is given."""
        prompt = self._render(text)
        advice = f"{checkpoint.COPY}; or use a model whose processor takes one picture per prompt"
        with foreign(checkpoint.settings_file(self.path), advice):
            return self.processor(text=[prompt], images=[[picture]], return_tensors="pt")

    def _split(self, text: str, picture: Image.Image) -> tuple[list[int], int, list[int]]:
        ids: list[int] = self._inputs(text, picture)["input_ids"][0].tolist()
        at = [i for i, token in enumerate(ids) if token == self._image_id]
        if not at:
            raise ModelError(self._no_image_token(self._render(text)))
        if at[-1] - at[0] + 1 != len(at):
            raise UnsupportedModelError(
                f"the processor of {self.path} lays one picture out in {len(at)} tokens that are "
                f"not one contiguous block; {_splitting(self.processor, self.path)}"
            )
        return ids[: at[0]], len(at), ids[at[-1] + 1 :]

    def _render(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        with foreign(checkpoint.template_file(self.path), _TEMPLATE_ADVICE):
            rendered: str = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        return rendered

    def _no_image_token(self, prompt: str) -> str:
        """Why a prompt with a picture has no image token in it, and what to do."""
        placeholder = _placeholder(self.processor)
        mine = self.tokenizer.convert_tokens_to_ids(placeholder)
        if placeholder not in prompt:
            return (
                f"{checkpoint.template_file(self.path)}: the chat template puts no '{placeholder}' "
                f"where a message has a picture; {_TEMPLATE_ADVICE}"
            )
        if mine == self._image_id:
            return (
                f"{checkpoint.settings_file(self.path)}: the processor puts no '{placeholder}' "
                f"(token {mine}) into the prompt for a picture, which config.json says is the "
                f"image token; {checkpoint.COPY}"
            )
        return (
            f"{self.path}: tokenizer and config.json are of different checkpoints: '{placeholder}' "
            f"is token {mine} of the tokenizer, config.json says that {self._image_id} is the "
            f"image token; {checkpoint.COPY}"
        )

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
        whole = self._inputs("Q", blank)
        alone = self._pixels([blank], alone=True)
        names = set(whole) - _NO_PIXELS
        return set(alone) == names and all(
            alone[k].shape == whole[k].shape and bool((alone[k] == whole[k]).all()) for k in names
        )

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """A processor that does not fit the model becomes a `ModelError`."""
        what = f"the model of {self.path} cannot run what its own processor makes"
        with foreign(what, checkpoint.COPY, mixed=True):
            yield

    def _check_cache(self) -> None:
        """Run the constant prefix and one picture; refuse a cache that the layout misdescribes."""
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
        self._check_rotation(self.prefix_ids + self._cue)

    def witnesses(self) -> Iterator[Witness]:
        """Pictures of several shapes, each with questions, as the processor makes prompts of them.

        Raises:
            SelfCheckError: the processor makes other ids of a prompt than this class does.
        """
        before = self.prefix_ids + [self._image_id] * self.image_tokens
        for name, picture, texts in _witnesses():
            state = self.states(self.prefill([picture]))
            keys, values = kv.from_states(state, self.layout, self.positions)
            layers = self.scene_cache(keys, values)
            for text in texts:
                inputs = {
                    name: value
                    for name, value in self._inputs(text, picture).items()
                    if isinstance(value, Tensor)
                }
                question = self.question_ids(text)
                ids = before + question
                if inputs["input_ids"][0].tolist() != ids:
                    raise SelfCheckError(
                        f"the processor of {self.path} makes other tokens of '{text}' behind a "
                        "picture than of the question alone; its chat template or tokenizer "
                        "joins them"
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

    def prefill(
        self, pictures: Sequence[Image.Image | Prepared], attention: bool = True
    ) -> Prefilled:
        """Run the model over the prompt up to the last image token, one row per picture.

        Args:
            pictures: any size and mode, the model's own processor resizes and normalises them; or
                all from `prepare`, of equal shapes.
            attention: also run the fixed tail of the prompt (the cue to answer) and measure the
                attention that the image tokens receive.

        Raises:
            PictureError: no picture, or one the processor cannot take.
        """
        after = self._cue if attention else []
        ids = self.prefix_ids + [self._image_id] * self.image_tokens + after
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

    def prepare(self, picture: Image.Image) -> Image.Image | Prepared:
        """Do for one picture what needs no model, so that `prefill` need not; from any thread.

        Where the image processor alone does not suffice, nothing can be done beforehand: tokenizers
        belong to one thread.

        Raises:
            PictureError: the processor cannot take it.
        """
        return Prepared(self._pixels([picture])) if self._pixels_alone else picture

    def _pixels(
        self, pictures: Sequence[Image.Image | Prepared], alone: bool | None = None
    ) -> dict[str, Tensor]:
        """What the model's forward needs besides ids, one row per picture."""
        done = [picture.pixels for picture in pictures if isinstance(picture, Prepared)]
        if len(done) == len(pictures):
            return {name: torch.cat([pixels[name] for pixels in done]) for name in done[0]}
        rgb = [as_rgb(picture) for picture in pictures if not isinstance(picture, Prepared)]
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
        return {k: v for k, v in made.items() if k not in _NO_PIXELS and isinstance(v, Tensor)}

    def _see(
        self,
        pictures: Sequence[Image.Image | Prepared],
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
        width = max(map(len, ids))
        for name, (marks, after) in self._marks.items():
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


def _check_template(processor: Any, path: Path) -> None:
    """Refuse a processor without a chat template, or with one that does not end.

    Raises:
        ModelError: either.
    """
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):  # several by name: the one that is used without a name
        template = template.get("default")
    if not template:
        raise ModelError(
            f"the processor of {path} has no chat template (chat_template.jinja): cannot build a "
            f"prompt; {_TEMPLATE_ADVICE}"
        )
    file = checkpoint.template_file(path)
    if not isinstance(template, str):
        raise ModelError(f"{file}: the chat template is no text; {_TEMPLATE_ADVICE}")
    rehearse(template, file, processor.tokenizer.special_tokens_map)


def _splitting(processor: Any, path: Path) -> str:
    """What to do about a picture in several pieces: a switch that is on, or another model."""
    images = processor.image_processor
    file = checkpoint.settings_file(path)
    for switch in _SPLITS:
        if getattr(images, switch, None):
            return f"turn off picture splitting: set '{switch}' to false in {file.name}"
    return (
        f"no setting of '{type(images).__name__}' changes that: use a model of a class that takes "
        "a picture whole, in one square of tokens"
    )


def _placeholder(processor: Any) -> str:
    return str(getattr(processor, "image_token", None) or "<image>")


def _reserved(processor: Any, image_id: int) -> set[str]:
    """What a question must not hold: special tokens, those for pictures included."""
    tokenizer = processor.tokenizer
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    named = {_placeholder(processor), str(tokenizer.convert_ids_to_tokens(image_id))}
    return {str(t) for t in tokenizer.all_special_tokens} | added | named


def _witnesses() -> Iterator[tuple[str, Image.Image, tuple[str, ...]]]:
    """Pictures that differ everywhere, by name, and what is asked about each."""
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
