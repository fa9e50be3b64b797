"""Projected keys and values are held as scenes, and stand behind the model's own prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cloud_server.engine.inject import behind_prefix, hold
from cloud_server.engine.jobs import Job
from cloud_server.engine.scenes import SceneMemory
from cloud_server.engine.work import Work
from projector.models.vlm import VLM
from tests.cloud_server.conftest import Files


@pytest.fixture(scope="module")
def model(files: Files) -> VLM:
    return VLM.load(files.model)


@pytest.fixture
def scenes(model: VLM) -> SceneMemory:
    layout = model.layout
    like = model.constant_prefix()[0][0]
    sizes = layout.layers, layout.kv_heads, layout.head_dim, layout.tokens
    return SceneMemory(1 << 20, like, *sizes)


def group(model: VLM, count: int) -> tuple[Tensor, Tensor]:
    layout = model.layout
    shape = (layout.layers, count, layout.kv_heads, layout.tokens, layout.head_dim)
    made = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    return made[0], made[1]


def work(number: int, hold: int = 1, tokens: int = 0) -> Work:
    job = Job(number, "s", number, f"{number:016x}", "what ?", 4, 0, hold=hold)
    return Work(job, 0, tokens=tokens)


def test_scenes_behind_the_prefix_are_what_was_projected(model: VLM, scenes: SceneMemory) -> None:
    keys, values = group(model, 3)
    works = [work(number) for number in range(3)]
    hold(scenes, works, keys, values)
    held = [one.scene for one in works if one.scene is not None]
    contexts = behind_prefix(model, scenes, [held[2], held[0]])
    start = len(model.prefix_ids)
    for row, (own, scene) in zip((2, 0), contexts, strict=True):
        assert torch.equal(scene[0], keys[:, row]) and torch.equal(scene[1], values[:, row])
        for layer, (own_key, own_value) in enumerate(model.constant_prefix()):
            assert own[0].shape[2] == start
            assert torch.equal(own[0][layer], own_key[0])
            assert torch.equal(own[1][layer], own_value[0])


def test_a_text_is_held_without_its_padding_and_a_frame_for_one_question_under_no_name(
    model: VLM, scenes: SceneMemory
) -> None:
    keys, values = group(model, 2)
    works = [work(1, tokens=3), work(2, hold=0)]
    hold(scenes, works, keys, values)
    text, once = works[0].scene, works[1].scene
    assert text is not None and once is not None
    assert text.tokens == 3 and once.tokens == model.layout.tokens
    assert torch.equal(scenes.read(text)[0], keys[:, 0, :, :3])
    assert ("s", 1) in scenes and ("s", 2) not in scenes and len(scenes) == 1
