"""What a memory adds to an answer, and that nothing is added without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cloud_server.engine.batch import Row, RunningBatch
from cloud_server.engine.values import Values
from projector.models.vlm import VLM
from protos.errors import FactError
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import rows_of

GAIN = 50.0


@pytest.fixture(scope="module")
def vlm(files: Files) -> VLM:
    return VLM.load(files.model)


def answers(vlm: VLM, added: list[Tensor | None]) -> tuple[list[Row[int]], Tensor]:
    """The rows and their first logits, each row about a scene of its own."""
    batch: RunningBatch[int] = RunningBatch(vlm)
    layout, count = vlm.layout, len(added)
    shape = (layout.layers, count, layout.kv_heads, layout.tokens, layout.head_dim)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    seen: list[Tensor] = []
    asked = vlm.question_ids("Q")
    rows = batch.join(
        rows_of(vlm.scene_cache(keys, values)),
        *([asked] * count, range(count), [6] * count),
        on_first=lambda logits: seen.append(logits.clone()),
        added=added,
    )
    while not all(row.done for row in rows):
        batch.leave()
        batch.step()
    return rows, seen[0]


def test_without_values_every_logit_is_the_frozen_models_beside_whom_ever(vlm: VLM) -> None:
    said = Values(vlm).added([(1.0, "red")], GAIN)
    frozen, logits = answers(vlm, [None, None, None])
    rows, beside = answers(vlm, [None, said, None])
    for row in (0, 2):
        assert torch.equal(logits[row], beside[row])
        assert rows[row].tokens == frozen[row].tokens
    assert not torch.equal(logits[1], beside[1])
    assert Values(vlm).added([], GAIN) is None


@pytest.mark.parametrize("value", ["red", "the red car"])
def test_a_value_is_said_token_by_token_and_then_the_answer_ends(vlm: VLM, value: str) -> None:
    ids = [i for i in vlm.answer_ids(value) if i not in vlm.eos_ids]
    rows, _ = answers(vlm, [Values(vlm).added([(1.0, value)], GAIN), None])
    assert rows[0].tokens == ids and rows[0].done


def test_the_heavier_of_two_values_is_said(vlm: VLM) -> None:
    rows, _ = answers(vlm, [Values(vlm).added([(0.2, "the red car"), (0.8, "dog")], GAIN)])
    assert rows[0].tokens[:1] == vlm.answer_ids("dog")[:1]


def test_what_is_added_has_the_length_asked_for(vlm: VLM) -> None:
    made = Values(vlm).added([(0.3, "the red car"), (0.7, "dog")], 0.25)
    assert made is not None
    torch.testing.assert_close(made.norm(dim=1), torch.full((len(made),), 0.25))


def test_a_value_with_a_reserved_token_is_refused(vlm: VLM) -> None:
    reserved = vlm.tokenizer.eos_token
    with pytest.raises(FactError, match="reserved"):
        Values(vlm).added([(1.0, f"yes {reserved} no")], GAIN)
