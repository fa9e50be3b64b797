"""Damaged checkpoints and model classes of all kinds: a model that answers, or a plain refusal."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, LlavaNextProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from projector.models import lm as lm_module
from projector.models.decoder import head_dim_of
from projector.models.foreign import foreign, importing
from projector.models.lm import LM, reads_only_texts
from projector.models.supported import refuse_unsupported
from projector.models.template import rehearse
from projector.models.vlm import VLM
from protos.errors import BridgeError, ModelError, UnsupportedModelError
from tests.fakes.damage import copy, damages
from tests.fakes.tiny_models import (
    LLAVA_TEMPLATE,
    picture,
    subword_tokenizer,
    tiny_idefics3,
    tiny_llava,
    tiny_lm,
    tiny_tokenizer,
)

ROOT = Path(__file__).resolve().parents[3]
Answer = tuple[str, list[list[int]]]
LEAKS = re.compile(
    r"Traceback|\w(Error|Exception)\b|above report|<class|object at 0x|huggingface\.co|of None "
    r"|\bNoneType\b|: '\w+'$|has no attribute"
)
"""What no message shows: an exception's class, a bare key, a library's talk to its developers."""
BUILD: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "llava": (tiny_llava, tiny_idefics3),
    "idefics3": (tiny_idefics3, tiny_llava),
    "lm": (tiny_lm, lambda folder: tiny_lm(folder, "qwen2", hidden_size=32)),
    "parts": (lambda folder: in_parts(folder, 4), lambda folder: in_parts(folder, 5)),
}
FILES = {
    "llava": (
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    ),
    "idefics3": ("config.json", "processor_config.json"),
    "lm": ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "parts": ("model.safetensors.index.json", "vocab.json", "merges.txt"),
}


KINDS = sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})


def in_parts(folder: Path, seed: int) -> Path:
    """Weights in several files, and a tokenizer of words and merges instead of tokenizer.json."""
    words = subword_tokenizer(["what is left of the car, where is it ?"] * 20, 300)
    path = tiny_lm(folder, "qwen2", seed, tokenizer=words)
    LM.load(path).model.save_pretrained(path, max_shard_size="60KB")
    (path / "model.safetensors").unlink()
    tokens = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "tokenizer.json").unlink()
    (path / "vocab.json").write_text(json.dumps(tokens["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokens["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad")}
    settings = {"tokenizer_class": "Qwen2Tokenizer", **special}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def answer(path: Path) -> Answer:
    """The fingerprint of a checkpoint and its answer to one question."""
    if reads_only_texts(path):
        lm = LM.load(path)
        ids = lm.tokens("what is left").ids
        return lm.layout.fingerprint, lm.answer_texts([ids], [lm.question_ids("where ?")], 6)
    vlm = VLM.load(path)
    question = vlm.question_ids("where ?")
    return vlm.layout.fingerprint, vlm.answer_pictures([picture(0)], [question], 6)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Per kind a checkpoint and another one, to swap files with."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sound")
    return {
        name: (one(folder / name), other(folder / f"{name}-other"))
        for name, (one, other) in BUILD.items()
    }


@pytest.mark.quick("lm-model.safetensors", "parts-merges.txt")
@pytest.mark.parametrize(("kind", "file"), [(kind, f) for kind in FILES for f in FILES[kind]])
def test_a_damaged_checkpoint_answers_as_before_or_is_another_model_or_is_refused_by_its_file(
    kind: str, file: str, sound: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path, other = sound[kind]
    whole = answer(path)
    wrong = []
    refused = 0
    for name, spoil in damages(path / file, other / file):
        spoilt = copy(path, tmp_path / "spoilt")
        spoil(spoilt / file)
        try:
            got = answer(spoilt)
        except BridgeError as error:
            refused += 1
            said = error.message.replace(str(spoilt), "DIR")
            named = "DIR" in said or file in said or "'" in said  # a model's own kind
            if LEAKS.search(said) or not named:
                wrong.append(f"{name}: {said}")
        except Exception as error:
            wrong.append(f"{name}: a traceback, {error!r}")
        else:
            if got != whole and got[0] == whole[0] and file not in UNDIGESTED:
                wrong.append(f"{name}: the same fingerprint, another answer")
    assert not wrong, "\n".join(wrong)
    assert refused > 8


UNDIGESTED = ("generation_config.json",)
"""A changed number in these may change answers and no fingerprint."""


# ---------------------------------------------------------------------- kinds of models


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_that_transformers_knows_is_judged_by_its_configuration_in_plain_words(
    kind: str,
) -> None:
    try:
        config = CONFIG_MAPPING[kind]()
    except Exception as error:  # some have no default
        pytest.skip(f"no default configuration: {error}")
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    judge = refuse_unsupported if sees else lm_module._refuse
    try:
        judge(config)
    except UnsupportedModelError as error:
        assert kind in error.message and not LEAKS.search(error.message)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("llama4", "attention in chunks"),
        ("deepseek_v4", "layers of type .*heavily_compressed_attention"),
        ("dots3_note", "differ from each other"),
        ("glm4v", "multimodal RoPE"),
        ("rwkv", "without attention heads"),
        ("xlstm", "without attention heads"),
        ("phi4_multimodal", "reads more than text"),
        ("chameleon", "reads more than text: load it as an image-text-to-text"),
    ],
)
def test_the_reason_for_refusing_a_kind_is_the_true_one(kind: str, named: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    pictures = kind in ("llama4", "dots3_note", "glm4v")
    judge = refuse_unsupported if pictures else lm_module._refuse
    with pytest.raises(UnsupportedModelError, match=named):
        judge(CONFIG_MAPPING[kind]())


def test_models_that_see_pictures_are_not_taken_for_language_models(
    sound: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = copy(sound["lm"][0], tmp_path / "model")
    for kind, only_texts in (("chameleon", False), ("llava", False), ("llama", True)):
        CONFIG_MAPPING[kind]().save_pretrained(path)
        assert reads_only_texts(path) == only_texts
    CONFIG_MAPPING["vit"]().save_pretrained(path)
    with pytest.raises(UnsupportedModelError, match="neither"):
        reads_only_texts(path)


@pytest.mark.parametrize(
    ("kind", "edit", "error", "named"),
    [
        ("lm", {"model_type": "made_up"}, UnsupportedModelError, "knows no model type 'made_up'"),
        ("lm", {"num_hidden_layers": 10**9}, ModelError, "num_hidden_layers = 1000000000"),
        ("lm", {"num_hidden_layers": 2}, ModelError, "leaves out a layer"),
        ("lm", {"vocab_size": 10**9}, ModelError, "describes a model of"),
        ("lm", {"intermediate_size": 80}, ModelError, "differ in shape.*the weights hold"),
        ("llava", {"image_token_index": 7}, ModelError, "'<image>' is token 4 of the tokenizer"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told_from_its_weights_and_tokenizer(
    kind: str,
    edit: dict[str, Any],
    error: type[BridgeError],
    named: str,
    sound: dict[str, tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    path = copy(sound[kind][0], tmp_path / "model")
    plain = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**plain, **edit}))
    with pytest.raises(error, match=named):
        answer(path)


def test_a_tokenizer_of_another_model_is_not_taken_for_picture_splitting(
    sound: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = copy(sound["llava"][0], tmp_path / "model")
    tiny_tokenizer(("<more>", "<and more>")).save_pretrained(tmp_path / "more")
    plain = json.loads((tmp_path / "more" / "tokenizer.json").read_text())
    for entry in plain["added_tokens"]:  # the same words at other places
        entry["id"] = len(plain["model"]["vocab"]) - 1 - entry["id"]
    words = plain["model"]["vocab"]
    plain["model"]["vocab"] = {word: len(words) - 1 - place for word, place in words.items()}
    (path / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(ModelError) as met:
        VLM.load(path)
    assert "different checkpoints" in met.value.message and "splitting" not in met.value.message


def test_splitting_is_named_only_where_a_switch_for_it_is_on(
    sound: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = copy(sound["idefics3"][0], tmp_path / "model")
    file = path / "processor_config.json"
    plain = json.loads(file.read_text())
    plain["image_processor"] |= {"do_image_splitting": True, "size": {"longest_edge": 128}}
    file.write_text(json.dumps(plain))
    with pytest.raises(UnsupportedModelError, match="set 'do_image_splitting' to false in proc"):
        VLM.load(path)
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = VLM.load(sound["llava"][0]).model
    with pytest.raises(UnsupportedModelError, match="no setting of .* changes that"):
        VLM.of(model, processor, path)


# ---------------------------------------------------------------------- libraries


def test_a_processor_that_also_takes_video_names_the_package_that_it_needs(
    sound: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = copy(sound["idefics3"][0], tmp_path / "model")
    file = path / "processor_config.json"
    for named, said in (("SmolVLMProcessor", "torchvision"), ("MadeUp", "no processor class")):
        plain = {**json.loads(file.read_text()), "processor_class": named}
        file.write_text(json.dumps(plain))
        with pytest.raises(ModelError, match=f"processor_config.json: .*{said}"):
            VLM.load(path)


@pytest.mark.slow
def test_a_torchvision_that_clashes_with_torch_is_named_not_called_missing(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(*_): ...\n"
    )
    about = tmp_path / "torchvision-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    (about / "RECORD").write_text("")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "projector", "layout", str(ROOT / "reference/models/edge-a")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == ModelError.exit_code
    assert "the package torchvision, which is installed but does not load" in done.stderr
    assert "Traceback" not in done.stderr and "needs torch:" not in done.stderr


def test_a_mistake_in_our_own_code_is_not_taken_for_a_damaged_file() -> None:
    with pytest.raises(ZeroDivisionError):  # raised by a line of projector
        with foreign("a file", "copy it", mixed=True):
            head_dim_of(SimpleNamespace(hidden_size=4, num_attention_heads=0))
    with pytest.raises(ModelError, match=r"^a file: .*; copy it$") as met:
        with foreign("a file", "copy it", mixed=True):
            json.loads("{")
    assert isinstance(met.value.__cause__, json.JSONDecodeError)
    with pytest.raises(KeyboardInterrupt), foreign("a file", "copy it"):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), importing("the model"):
        raise ZeroDivisionError


# ---------------------------------------------------------------------- chat templates


@pytest.mark.parametrize("folder", sorted((ROOT / "reference/models").glob("*/")), ids=str)
def test_templates_of_real_checkpoints_pass_the_rehearsal(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    rehearse(file.read_text(), file, {"bos_token": "<s>"})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(300) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% set n = namespace(x='ab') %}"
        "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%99999999999d' % 3 }}",
        "{{ 'x' | center(99999999999) }}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ lipsum(n=99999) }}",
    ],
)
def test_a_template_that_would_not_end_is_stopped_and_named(template: str) -> None:
    with pytest.raises(ModelError, match=r"chat_template\.jinja: the chat template was stopped"):
        rehearse(template, Path("chat_template.jinja"), {})
