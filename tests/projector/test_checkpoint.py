"""Damaged checkpoints and model classes of all kinds: a model that answers, or a plain refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from projector.lm import LM, reads_only_texts
from projector.vlm import VLM
from protos.errors import BridgeError
from tests.fakes.damage import copy, damages
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava, tiny_lm

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
}
FILES = {
    "llava": (
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    ),
    "idefics3": ("config.json", "processor_config.json"),
    "lm": ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
}


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


UNDIGESTED = ("config.json", "generation_config.json")
"""A changed number in these may change answers and no fingerprint."""
