"""Packed questions must be answered as if each stood alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from projector.models.packed import Packed
from projector.models.vlm import VLM
from tests.fakes.tiny_models import tiny_llava

SDPA: dict[str, Any] = {"text": "llama"}
EAGER: dict[str, Any] = {"text": "gemma2", "sliding_window": 512}
TEXTS = ("what is it", "is it red or is it blue", "how many")


@pytest.fixture(scope="module", params=[SDPA, EAGER], ids=["sdpa", "eager"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    folder: Path = tmp_path_factory.mktemp("llava")
    return VLM.load(tiny_llava(folder, **request.param))


def test_each_packed_question_gets_the_logits_it_gets_alone(vlm: VLM) -> None:
    made = vlm.prefill([Image.new("RGB", (32, 32), (200, 30, 30))], attention=False)
    questions = [vlm.question_ids(text) for text in TEXTS]
    end = next(iter(vlm.eos_ids))
    packed = Packed.of([[(q, [7, end]) for q in questions]])
    with torch.no_grad():
        together = packed.logits(vlm, made.layers()).view(3, 2, -1)
        for row, question in zip(together, questions, strict=True):
            alone = Packed.of([[(question, [7, end])]])
            expected = alone.logits(vlm, made.layers())
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_teacher_forced_exact_match_equals_the_greedy_answer(vlm: VLM) -> None:
    made = vlm.prefill([Image.new("RGB", (32, 32), (20, 30, 200))], attention=False)
    end = next(iter(vlm.eos_ids))
    for text in TEXTS:
        question = vlm.question_ids(text)
        [greedy] = vlm.answer(made.layers(), [question], max_new_tokens=3)
        for answer, expected in ((greedy, True), ([*greedy[:-1], (greedy[-1] + 1) % 50], False)):
            packed = Packed.of([[(question, answer)]])
            with torch.no_grad():
                logits = packed.logits(vlm, made.layers())
            assert packed.exactly_right(logits).tolist() == [[expected]], (text, answer, end)


def test_gradients_reach_the_injected_cache(vlm: VLM) -> None:
    made = vlm.prefill([Image.new("RGB", (32, 32))], attention=False)
    keys = [k.clone().requires_grad_(True) for k in made.keys]
    layers = [(k, v.clone()) for k, v in zip(keys, made.values, strict=True)]
    packed = Packed.of([[(vlm.question_ids("what is it"), [7])]])
    packed.logits(vlm, layers).logsumexp(-1).sum().backward()
    assert all(k.grad is not None and float(k.grad.abs().sum()) > 0 for k in keys)
