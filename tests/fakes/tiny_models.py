"""Tiny, randomly initialised vision-language checkpoints, built with nothing downloaded.

Each builder writes a folder that `VLM.load` takes: weights, processor, chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

WORDS = (
    "what is left right of above below the a it where how many red green blue car truck dog cat "
    "tree person worker crate ladder fire smoke near far yes no zero one two three four five six "
    "none user assistant : ? . , Q picture first second show scene yard empty full open closed"
).split()

IDEFICS_TEMPLATE = (
    "<bos>{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LLAVA_TEMPLATE = (
    "<bos>{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def tiny_tokenizer(special: tuple[str, ...] = (), **named: Any) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a few words; anything else is split to `<unk>`."""
    specials = ["<unk>", "<bos>", "<eos>", "<pad>", "<image>", *special]
    vocabulary = {token: i for i, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        **named,
    )


def _text(kind: str, vocabulary: int, **over: Any) -> Any:
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
    } | over
    return CONFIG_MAPPING[kind](**shared)


def tiny_idefics3(folder: Path, grid: int = 4, seed: int = 0, **text: Any) -> Path:
    """An Idefics3 whose picture takes `grid * grid` tokens. Returns the checkpoint's folder."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    torch.manual_seed(seed)
    patch = 8
    side = grid * patch * 2  # the connector merges 2x2 patches
    tokenizer = tiny_tokenizer(("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"))
    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": side},
        max_image_size={"longest_edge": side},
    )
    processor = Idefics3Processor(
        image_processor,
        tokenizer,
        image_seq_len=grid * grid,
        chat_template=IDEFICS_TEMPLATE,
    )
    config = Idefics3Config(
        text_config=_text("llama", len(tokenizer), **text).to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config)
    return _save(folder / "idefics3", _shaken(model), processor)


def tiny_llava(
    folder: Path, text: str = "llama", grid: int = 4, seed: int = 1, **over: Any
) -> Path:
    """A LLaVA (CLIP tower) whose decoder is of the family `text`, such as "llama" or "qwen2".

    A picture takes `grid * grid` tokens; `over` goes into the decoder's configuration.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    patch = 8
    side = grid * patch
    tokenizer = tiny_tokenizer()
    image_processor = CLIPImageProcessorPil(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
            projection_dim=32,
        ).to_dict(),
        text_config=_text(text, len(tokenizer), **over).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=grid * grid,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    return _save(folder / f"llava-{text}", _shaken(model), processor)


def tiny_smolvlm(folder: Path, grid: int = 4, seed: int = 2) -> Path:
    """A SmolVLM with Idefics3's processor, as the real SmolVLM checkpoints without video have."""
    idefics = tiny_idefics3(folder, grid=grid)
    torch.manual_seed(seed)
    plain = json.loads((idefics / "config.json").read_text())
    config = SmolVLMConfig(
        text_config=plain["text_config"],
        vision_config={**plain["vision_config"], "model_type": "smolvlm_vision"},
        image_token_id=plain["image_token_id"],
        scale_factor=2,
        pad_token_id=3,
    )
    processor = AutoProcessor.from_pretrained(idefics)
    return _save(folder / "smolvlm", _shaken(SmolVLMForConditionalGeneration(config)), processor)


def tiny_internvl(folder: Path, grid: int = 4, seed: int = 3) -> Path:
    """An InternVL with LLaVA's processor (its own one needs torchvision, for video)."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    patch, side = 8, grid * 16  # its connector merges 2x2 patches
    tokenizer = tiny_tokenizer()
    size = {"height": side, "width": side}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer,
        patch_size=2 * patch,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=[side, side],
            patch_size=[patch, patch],
        ).to_dict(),
        text_config=_text("qwen2", len(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=grid * grid,
    )
    return _save(folder / "internvl", _shaken(InternVLForConditionalGeneration(config)), processor)


def tiny_ovis2(folder: Path, grid: int = 4, seed: int = 6, **over: Any) -> Path:
    """An Ovis2, which frames a picture with tokens that it reads as visual embeddings.

    `over` goes into the image processor.
    """
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

    torch.manual_seed(seed)
    patch, side = 8, grid * 8
    frame = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = tiny_tokenizer(("<IMG_ATOM>", *frame))
    processor = Ovis2Processor(
        Ovis2ImageProcessorPil(
            **({"size": {"height": side, "width": side}, "crop_to_patches": False} | over)
        ),
        tokenizer,
        image_seq_length=grid * grid,
        chat_template=LLAVA_TEMPLATE,
    )
    config = Ovis2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "vocab_size": 48,
            "initializer_range": 0.3,
        },
        text_config=_text("qwen2", len(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(frame)),
        vocab_size=len(tokenizer),
        hidden_size=64,
        tie_word_embeddings=False,
    )
    model = Ovis2ForConditionalGeneration(config)
    with torch.no_grad():  # one visual word per token, not a mean of all
        model.model.visual_embeddings_table.weight.normal_(std=0.6)
        model.model.vision_tower.head_linear.weight.normal_(std=2.0)
        model.model.vision_tower.head_norm.weight.fill_(4.0)
    return _save(folder / "ovis2", _shaken(model), processor)


def tiny_gemma3_vlm(folder: Path, grid: int = 4, seed: int = 7, **over: Any) -> Path:
    """A Gemma 3 that sees pictures, whose tokens see each other both ways; no window is reached.

    `over` goes into the decoder's configuration.
    """
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    torch.manual_seed(seed)
    patch, side = 8, grid * 8
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = tiny_tokenizer(tuple(names.values()), extra_special_tokens=names)
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": side, "width": side}),
        tokenizer,
        image_seq_length=grid * grid,
        chat_template=LLAVA_TEMPLATE.replace("<image>", names["boi_token"]),
    )
    text = {
        "head_dim": 16,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    boi, eoi, soft = (tokenizer.convert_tokens_to_ids(name) for name in names.values())
    config = Gemma3Config(
        text_config=_text("gemma3_text", len(tokenizer), **(text | over)).to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "vision_use_head": False,
        },
        mm_tokens_per_image=grid * grid,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=soft,
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # transformers leaves it at zero
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.3)
    return _save(folder / "gemma3", _shaken(model), processor)


def tiny_lm(
    folder: Path, text: str = "llama", seed: int = 4, tokenizer: Any = None, **over: Any
) -> Path:
    """A causal language model of the family `text`, with a tokenizer that names its family.

    Llama's puts nothing before a text and knows words; any other's puts `<bos>` before it and
    knows letters. Another tokenizer takes its place where one is given.
    """
    torch.manual_seed(seed)
    if tokenizer is None:
        tokenizer = tiny_tokenizer() if text == "llama" else letter_tokenizer()
    model = AutoModelForCausalLM.from_config(_text(text, len(tokenizer), **over))
    return _save(folder / f"lm-{text}", _shaken(model), tokenizer)


def tiny_gemma3(folder: Path, seed: int = 5, **over: Any) -> Path:
    """A text-only Gemma 3: QK-norm, two sliding layers and a global one, a RoPE of each kind."""
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    window: dict[str, Any] = {"head_dim": 16, "sliding_window": 400, "layer_types": types}
    return tiny_lm(folder, "gemma3_text", seed, **(window | over))


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, `<bos>` before every text."""
    specials = ["<unk>", "<bos>", "<eos>", "<pad>"]
    letters = "abcdefghijklmnopqrstuvwxyz?.,: \n"
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )


def subword_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (as SmolLM2's) of `size` tokens, learnt from some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )


def picture(seed: int = 0, size: int = 64) -> Image.Image:
    """A random picture with blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def _shaken(model: Any) -> Any:
    """Give biases and norms non-trivial values, so that a forgotten term shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
