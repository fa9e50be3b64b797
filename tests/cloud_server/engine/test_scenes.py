"""Scenes come out bit for bit, within their cap, in memory that is used again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cloud_server.engine.jobs import Answered, Job
from cloud_server.engine.scenes import SceneMemory
from protos.errors import UnknownSceneError
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench

LAYERS, HEADS, DIM, PAGE = 3, 2, 8, 16


PAGE_BYTES = 2 * LAYERS * HEADS * PAGE * DIM * 4


def memory(pages: int, page_tokens: int = PAGE) -> SceneMemory:
    return SceneMemory(pages * PAGE_BYTES, torch.zeros(1), LAYERS, HEADS, DIM, page_tokens)


def some(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    made = torch.randn(2, LAYERS, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(seed))
    return made[0], made[1]


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 40, 48])
def test_a_scene_comes_out_bit_for_bit_whatever_its_length(tokens: int) -> None:
    held = memory(64)
    made = {number: some(tokens, number) for number in range(5)}
    for number, (keys, values) in made.items():
        held.put(("s", number), keys, values, use=False)
    for number, (keys, values) in made.items():
        scene = held.get(("s", number))
        got = held.read(scene)
        assert torch.equal(got[0], keys) and torch.equal(got[1], values)
    assert held.bytes == 5 * -(-tokens // PAGE) * PAGE_BYTES


def test_thousands_of_scenes_pass_through_the_memory_of_a_few() -> None:
    held = memory(4)
    seen = set()
    for number in range(3000):
        keys, values = some(1 + number % 40, number % 7)
        held.put(("s", number), keys, values, use=number % 2 == 0)
        held.end_step()
        assert held.bytes <= 4 * PAGE_BYTES
        seen.add(held.pool_bytes)
    assert len(seen) == 1, "the pool has grown after its first block"


def test_what_a_step_reads_stays_until_its_end_even_if_newer_scenes_push_it_out() -> None:
    held = memory(2)
    keys, values = some(PAGE, 1)
    scene = held.put(("s", 1), keys, values, use=True)
    for number in range(2, 9):
        held.put(("s", number), *some(PAGE, number), use=False)
    with pytest.raises(UnknownSceneError):
        held.get(("s", 1))
    assert torch.equal(held.read(scene)[0], keys), "another scene was written over it"
    grown = held.pool_bytes
    held.end_step()
    for number in range(9, 30):
        held.put(("s", number), *some(PAGE, number), use=False)
    assert held.pool_bytes == grown


def test_a_scene_of_one_step_pushes_none_out_and_leaves_nothing() -> None:
    held = memory(2)
    for number in (1, 2):
        held.put(("s", number), *some(PAGE, number), use=False)
    keys, values = some(PAGE, 3)
    scene = held.put(None, keys, values, use=True)
    assert torch.equal(held.read(scene)[0], keys) and torch.equal(held.read(scene)[1], values)
    held.end_step()
    assert len(held) == 2
    for number in (1, 2):
        assert torch.equal(held.read(held.get(("s", number)))[0], some(PAGE, number)[0])
    grown = held.pool_bytes
    for _ in range(9):
        held.put(None, keys, values, use=True)
        held.end_step()
    assert held.pool_bytes == grown, "its pages were not given back"


def test_forgetting_a_session_gives_its_pages_to_others() -> None:
    held = memory(4)
    for number in range(4):
        held.put(("s", number), *some(PAGE, number), use=False)
    held.forget("s")
    assert len(held) == held.bytes == 0
    before = held.pool_bytes
    for number in range(4):
        held.put(("t", number), *some(PAGE, number), use=False)
    assert held.pool_bytes == before


def _answers(bench: Bench, jobs: list[Job], together: bool) -> dict[int, str]:
    bench.said.clear()
    for job in jobs:
        bench.engine.submit(job)
        if not together:
            bench.drain()
    bench.drain()
    return {event.job: event.text for event in bench.said if isinstance(event, Answered)}


@pytest.mark.slow
def test_questions_that_join_together_are_answered_from_their_own_scenes_in_a_full_memory(
    files: Files,
) -> None:
    roomy, tight = Bench(files), Bench(files, scene_memory_bytes=1 << 10)
    jobs = [roomy.job(id) for id in range(12)]
    alone = _answers(roomy, jobs, together=False)
    assert len(set(alone.values())) > 3
    assert _answers(tight, jobs, together=True) == alone
    assert tight.engine.status().scenes == 1
