"""The prompt of a vision-language model, as token ids around one picture.

It has four parts: the text before the picture, the image tokens, a fixed tail and the question.
They are learnt from the processor's output for two probes, never typed by hand.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from projector.models import checkpoint
from projector.models.foreign import foreign
from projector.models.template import rehearse
from protos.errors import ModelError, UnsupportedModelError

MARKS = frozenset({"token_type_ids", "mm_token_type_ids"})
"""What processors return for each token besides its id."""
_SPLITS = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan", "do_split_image")
_TEMPLATE_ADVICE = "use the chat template that the model was published with"
_PROBES = ("Q", "What is left of it?")


@dataclass(frozen=True)
class Affixes:
    """What stands around a question in the prompt.

    Attributes:
        tail: ids after the picture.
        opening: text between that and the question.
        closing: text after the question.
        strip: whether blanks around the question are dropped.
    """

    tail: list[int]
    opening: str
    closing: str
    strip: bool


@dataclass
class Prompt:
    """A model's prompt. Build it with `Prompt.of`.

    Attributes:
        processor: the model's own.
        path: its folder, for messages.
        image_id: id of the image token.
        image_text: that token's text.
        reserved: texts that a question must not hold.
        before: ids before the picture.
        image_tokens: tokens that one picture takes.
        cue: ids after the picture when the question is empty.
        marks: per name in `MARKS` that the model takes: its values up to the last image token, and
            its one value for all later tokens.
    """

    processor: Any = field(repr=False)
    path: Path
    image_id: int
    image_text: str
    reserved: tuple[str, ...] = field(repr=False)
    before: list[int] = field(default_factory=list)
    image_tokens: int = 0
    cue: list[int] = field(default_factory=list)
    marks: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    _tail: list[int] = field(repr=False, default_factory=list)
    _tail_alone: bool = field(repr=False, default=False)

    @classmethod
    def of(cls, processor: Any, config: Any, path: Path, asked: Collection[str]) -> Prompt:
        """Learn a model's prompt from its processor.

        Args:
            processor: the model's own.
            config: the model's configuration.
            path: its folder.
            asked: parameter names of the model's forward.

        Raises:
            ModelError: there is no image processor, no chat template, or a broken one.
            UnsupportedModelError: a picture is not a fixed number of tokens, in one block before
                the question.
        """
        if getattr(processor, "image_processor", None) is None:
            raise ModelError(
                f"the processor of {path} has no image processor; classes whose processor also "
                "takes video (SmolVLM, Qwen-VL) need torchvision to be installed"
            )
        _check_template(processor, path)
        image_id = getattr(config, "image_token_id", None)
        if image_id is None:
            image_id = getattr(config, "image_token_index", None)
        if image_id is None:
            raise UnsupportedModelError(
                f"'{config.model_type}' names no image token: its pictures are not tokens"
            )
        made = cls(
            processor=processor,
            path=path,
            image_id=int(image_id),
            image_text=str(processor.tokenizer.convert_ids_to_tokens(int(image_id))),
            reserved=tuple(sorted(_reserved(processor, int(image_id)))),
        )
        made._learn(asked)
        return made

    def _learn(self, asked: Collection[str]) -> None:
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
                f"the processor of {self.path} makes the token count depend on a picture's shape; "
                f"{_splitting(self.processor, self.path)}"
            )
        self.before, self.image_tokens = prefix, count
        bare = [self._bare(text) for text in _PROBES]
        fixed = tail[: len(tail) - len(bare[0])]
        if all(
            fixed + b == t for b, t in zip(bare, (tail, tail2), strict=True)
        ):  # the usual case: the prompt's tail can be tokenized on its own
            self._tail, self._tail_alone = fixed, True
        else:
            self._tail_alone = False
        self.cue = self.after_image("")
        self._learn_marks(blank, asked)

    def _learn_marks(self, blank: Image.Image, asked: Collection[str]) -> None:
        """Learn what the processor returns for each token besides its id, if the model takes it.

        From this, Gemma 3 knows which tokens are a picture's and see each other both ways.
        """
        made = self.inputs(_PROBES[1], blank)
        end = len(self.before) + self.image_tokens
        for name in sorted(MARKS & set(asked) & set(made)):
            row: list[int] = made[name][0].tolist()
            if len(set(row[end:])) > 1:
                raise UnsupportedModelError(
                    f"the processor of {self.path} marks the question's tokens in more than one "
                    f"way ({name}); ids alone do not determine their cache"
                )
            self.marks[name] = row[:end], row[-1]

    def inputs(self, text: str, picture: Image.Image) -> Any:
        """The processor's output for a picture with a question: all of the model's inputs."""
        prompt = self.render(text)
        advice = f"{checkpoint.COPY}; or use a model whose processor takes one picture per prompt"
        with foreign(checkpoint.settings_file(self.path), advice):
            return self.processor(text=[prompt], images=[[picture]], return_tensors="pt")

    def _split(self, text: str, picture: Image.Image) -> tuple[list[int], int, list[int]]:
        ids: list[int] = self.inputs(text, picture)["input_ids"][0].tolist()
        at = [i for i, token in enumerate(ids) if token == self.image_id]
        if not at:
            raise ModelError(self._no_image_token(self.render(text)))
        if at[-1] - at[0] + 1 != len(at):
            raise UnsupportedModelError(
                f"the processor of {self.path} turns one picture into {len(at)} tokens that are "
                f"not one contiguous block; {_splitting(self.processor, self.path)}"
            )
        return ids[: at[0]], len(at), ids[at[-1] + 1 :]

    def render(self, text: str) -> str:
        """The chat template, filled in with a picture and a question."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        with foreign(checkpoint.template_file(self.path), _TEMPLATE_ADVICE):
            rendered: str = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        return rendered

    def _no_image_token(self, prompt: str) -> str:
        """Why a prompt with a picture holds no image token, and what to do."""
        placeholder = _placeholder(self.processor)
        mine = self.processor.tokenizer.convert_tokens_to_ids(placeholder)
        if placeholder not in prompt:
            return (
                f"{checkpoint.template_file(self.path)}: the chat template puts no '{placeholder}' "
                f"where a message has a picture; {_TEMPLATE_ADVICE}"
            )
        if mine == self.image_id:
            return (
                f"{checkpoint.settings_file(self.path)}: the processor puts no '{placeholder}' "
                f"(token {mine}) into the prompt for a picture, which config.json says is the "
                f"image token; {checkpoint.COPY}"
            )
        return (
            f"{self.path}: tokenizer and config.json are of different checkpoints: '{placeholder}' "
            f"is token {mine} of the tokenizer, config.json says that {self.image_id} is the "
            f"image token; {checkpoint.COPY}"
        )

    def _bare(self, text: str) -> list[int]:
        """Ids of the rendered prompt after the image placeholder."""
        after = self.render(text).split(_placeholder(self.processor), 1)[-1]
        ids: list[int] = self.processor.tokenizer(
            self.image_text + after, add_special_tokens=False
        )["input_ids"]
        return ids[1:]

    def affixes(self) -> Affixes:
        """What stands around a question, if its ids need no template.

        Raises:
            UnsupportedModelError: they do.
        """
        marker = _PROBES[1]
        opening, _, closing = (
            self.render(marker).split(_placeholder(self.processor), 1)[-1].partition(marker)
        )
        probes = ("Q", marker, f"  {marker} ", "two\nlines", "{{ x }} <b>&amp;</b> \u00e9\u4e2d")
        for strip in (False, True):
            made = Affixes(self._tail, opening, closing, strip)
            if self._tail_alone and all(
                self.render(text).split(_placeholder(self.processor), 1)[-1]
                == opening + (text.strip() if strip else text) + closing
                for text in probes
            ):
                return made
        raise UnsupportedModelError(
            f"the chat template of {self.path} changes a question in a way that only it can say"
        )

    def after_image(self, text: str) -> list[int]:
        """Ids that follow the last image token for a question."""
        if self._tail_alone:
            return self._tail + self._bare(text)
        return self._split(text, Image.new("RGB", (64, 64)))[2]


def _check_template(processor: Any, path: Path) -> None:
    """Refuse a processor without a chat template, or whose template does not end.

    Raises:
        ModelError: in both cases.
    """
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):  # several by name: the default one is used
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
    """How to keep a picture in one piece: turn a switch off, or use another model."""
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
    """Texts that a question must not hold: special tokens, image tokens included."""
    tokenizer = processor.tokenizer
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    named = {_placeholder(processor), str(tokenizer.convert_ids_to_tokens(image_id))}
    return {str(t) for t in tokenizer.all_special_tokens} | added | named
