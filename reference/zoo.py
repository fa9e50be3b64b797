"""The reference models' architectures: tiny configurations of real `transformers` classes.

It builds configurations, tokenizers, processors and chat templates. The models are randomly
initialised; `train_vlm.py` trains them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SwinConfig,
)
from transformers.modeling_utils import PreTrainedModel

from reference.yard import PICTURE_PX, VOCABULARY

Grid = tuple[int, int]
"""Rows and columns of a picture's image tokens, row-major."""

_HALF = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class ModelRecipe:
    """How one reference model is made and trained.

    Attributes:
        build: makes the model and its processor, randomly initialised.
        grid: the model's image tokens.
        cue_layers: decoder layers with heads that are taught where to look. In the first, words
            look at the objects they name; in the others, the last token looks at the objects asked
            about.
        cue_heads: number of heads taught in each such layer.
        lossy_pictures: whether training pictures pass through JPEG and WebP.
        learning_rate: peak learning rate of AdamW.
        reading_steps: the first steps, which teach only the image tokens.
        answering_steps: up to this step image tokens and answers are taught together.
        steps: steps in all; those after `answering_steps` restart the learning rate and teach finer
            looking, for questions of place and relation.
        seed: default seed of the weights, the order of the pictures and their codecs.
    """

    build: Callable[[], tuple[PreTrainedModel, Any]]
    grid: Grid
    cue_layers: tuple[int, ...]
    cue_heads: int
    lossy_pictures: bool
    learning_rate: float
    reading_steps: int
    answering_steps: int
    steps: int
    seed: int = 0


def _word_tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """One token per whole word, split at spaces."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *specials, "answer:", *VOCABULARY]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=specials,
    )


def _byte_pair_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges are learnt from the yard's words, so the rare ones stay split."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^ ]+|\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|begin|>", "<|end|>", "<image>", "<|reply|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [form for word in VOCABULARY for form in (" " + word, word)]
    tokenizer.train_from_iterator(corpus * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        additional_special_tokens=["<image>", "<|reply|>"],
    )


def _word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words where they are known, else letters (`##` marks those that go on)."""
    specials = ["[PAD]", "[UNK]", "[START]", "[STOP]", "[IMAGE]", "[ASK]", "[REPLY]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*VOCABULARY, *letters, *("##" + letter for letter in (*letters, "-"))]
    known = {piece: index for index, piece in enumerate(dict.fromkeys([*specials, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[START]",
        eos_token="[STOP]",
        additional_special_tokens=["[IMAGE]", "[ASK]", "[REPLY]"],
    )


_WORD_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ ' answer:' }}{% endif %}"
)
_BYTE_PAIR_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '<|reply|>' }}{% endif %}"
)
_WORD_PIECE_TEMPLATE = (
    "{{ '[START]' }}{% for message in messages %}{{ '[ASK]' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '[IMAGE]' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '[REPLY]' }}{% endif %}"
)


def build_edge_a() -> tuple[PreTrainedModel, Idefics3Processor]:
    """Idefics3, the class of SmolVLM-256M and -500M, at about a millionth of a cloud model's size.

    Returns:
        The model (state 512 = 2 * 4 layers * 2 heads * 32) and its processor (6x6 image tokens).
    """
    return _idefics3(
        (6, 6),
        tower={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 5},
        width=128,
        head_dim=32,
    )


def build_edge_c() -> tuple[PreTrainedModel, Idefics3Processor]:
    """The class and grid of `edge-a` at other widths and from another seed.

    Returns:
        The model (state 448 = 2 * 4 layers * 2 heads * 28) and its processor (6x6 image tokens).
    """
    return _idefics3(
        (6, 6),
        tower={"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4},
        width=112,
        head_dim=28,
    )


def _idefics3(
    grid: Grid, tower: dict[str, int], width: int, head_dim: int
) -> tuple[PreTrainedModel, Idefics3Processor]:
    """An Idefics3 with 8-px patches and four decoder layers, and its processor."""
    tokenizer = _word_tokenizer(
        ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    )
    # Special tokens are matched before splitting, so no spaces are needed around them.
    image_processor = Idefics3ImageProcessorPil(
        do_resize=True,
        size={"longest_edge": PICTURE_PX},
        max_image_size={"longest_edge": PICTURE_PX},
        do_image_splitting=False,
        do_normalize=True,
        image_mean=_HALF,
        image_std=_HALF,
    )
    processor = Idefics3Processor(
        image_processor,
        tokenizer,
        image_seq_len=grid[0] * grid[1],
        chat_template=_WORD_TEMPLATE,
    )
    config = Idefics3Config(
        image_token_id=tokenizer.vocab["<image>"],
        scale_factor=PICTURE_PX // 8 // grid[0],
        tie_word_embeddings=True,
        vision_config={
            **tower,
            "num_attention_heads": 3,
            "image_size": PICTURE_PX,
            "patch_size": 8,
        },
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        ).to_dict(),
    )
    return _initialise(config, tokenizer), processor


def build_edge_b() -> tuple[PreTrainedModel, LlavaProcessor]:
    """LLaVA with a Swin tower and a Qwen2 decoder: another class, grid and tokenizer than `edge-a`.

    Returns:
        The model (state 384 = 2 * 3 layers * 2 heads * 32) and its processor (8x8 image tokens).
    """
    tokenizer = _word_piece_tokenizer()
    return _llava(
        (8, 8),
        tokenizer,
        "[IMAGE]",
        _WORD_PIECE_TEMPLATE,
        SwinConfig(
            image_size=PICTURE_PX,
            patch_size=9,
            embed_dim=64,
            depths=[2, 4],
            num_heads=[2, 4],
            window_size=8,
            mlp_ratio=3.0,
            drop_path_rate=0.0,
            use_absolute_embeddings=True,
        ),
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        ),
    )


def build_cloud() -> tuple[PreTrainedModel, LlavaProcessor]:
    """LLaVA with a Swin tower: another family, patch size, tokenizer, RoPE base, depth and widths.

    Returns:
        The model (state 4096 = 2 * 8 layers * 4 heads * 64) and its processor (6x6 image tokens).
    """
    tokenizer = _byte_pair_tokenizer()
    return _llava(
        (6, 6),
        tokenizer,
        "<image>",
        _BYTE_PAIR_TEMPLATE,
        SwinConfig(
            image_size=PICTURE_PX,
            patch_size=6,
            embed_dim=72,
            depths=[2, 4, 2],
            num_heads=[3, 6, 9],
            window_size=6,
            mlp_ratio=3.0,
            drop_path_rate=0.0,
            use_absolute_embeddings=True,
        ),
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        ),
    )


def _llava(
    grid: Grid,
    tokenizer: PreTrainedTokenizerFast,
    image_token: str,
    template: str,
    tower: SwinConfig,
    text: LlamaConfig | Qwen2Config,
) -> tuple[PreTrainedModel, LlavaProcessor]:
    """A LLaVA on a Swin tower whose position embeddings start as sines, and its processor."""
    edge = {"height": PICTURE_PX, "width": PICTURE_PX}
    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size=edge,
        do_center_crop=False,
        do_normalize=True,
        image_mean=_HALF,
        image_std=_HALF,
        do_convert_rgb=True,
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PICTURE_PX // grid[0],  # picture pixels per image token, after Swin's merging
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=template,
        image_token=image_token,
    )
    config = LlavaConfig(
        image_token_index=tokenizer.vocab[image_token],
        image_seq_length=grid[0] * grid[1],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        vision_config=tower.to_dict(),
        text_config=text.to_dict(),
    )
    model = _initialise(config, tokenizer)
    places = model.model.vision_tower.embeddings.position_embeddings
    with torch.no_grad():  # transformers starts them at zero, and positions would be learnt late
        places.copy_(_sines(math.isqrt(places.shape[1]), places.shape[2]))
    return model, processor


def _sines(side: int, width: int, amplitude: float = 0.3) -> torch.Tensor:
    """Two-dimensional sine and cosine position embeddings, `[1, side * side, width]`."""
    place = torch.arange(side) / side
    waves = torch.pi * 2.0 ** torch.linspace(0, 3, width // 4)
    axis = torch.cat([torch.sin(place[:, None] * waves), torch.cos(place[:, None] * waves)], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return amplitude * torch.cat([rows, columns], dim=-1).reshape(1, side * side, width)


def _initialise(config: Any, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model


RECIPES: dict[str, ModelRecipe] = {
    "edge-a": ModelRecipe(
        build_edge_a,
        (6, 6),
        (1, 2),
        2,
        lossy_pictures=False,
        learning_rate=1.5e-3,
        reading_steps=4500,
        answering_steps=6000,
        steps=9000,
    ),
    "edge-b": ModelRecipe(
        build_edge_b,
        (8, 8),
        (0, 1),
        2,
        lossy_pictures=False,
        learning_rate=1.5e-3,
        reading_steps=8000,
        answering_steps=10_000,
        steps=12_000,
        seed=1,
    ),
    "edge-c": ModelRecipe(
        build_edge_c,
        (6, 6),
        (1, 2),
        2,
        lossy_pictures=False,
        learning_rate=1.5e-3,
        reading_steps=5000,
        answering_steps=6500,
        steps=8000,
        seed=2,
    ),
    "cloud": ModelRecipe(
        build_cloud,
        (6, 6),
        (1, 3, 5),
        2,
        lossy_pictures=True,
        learning_rate=1e-3,
        reading_steps=3600,
        answering_steps=7000,
        steps=9000,
    ),
}


def save(model: PreTrainedModel, processor: Any, path: Path) -> None:
    """Writes a checkpoint directory (weights as float16) that the `Auto` classes load.

    Args:
        model: the model to save.
        processor: its processor, chat template included.
        path: the directory; made if missing.
    """
    model.half().save_pretrained(path)
    processor.save_pretrained(path)
    config_file = path / "config.json"
    config = json.loads(config_file.read_text())
    config.pop("transformers_version", None)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
