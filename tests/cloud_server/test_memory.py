"""What the engine keeps: bit for bit, within its caps, in memory that is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud_server.engine.jobs import Answered, Job
from cloud_server.engine.latents import LATENT_PAGE_BYTES, LatentMemory
from cloud_server.engine.pages import PagePool
from cloud_server.engine.scenes import SceneMemory
from projector.codec.deltas import Held
from protos.errors import UnknownSceneError
from protos.process.memory import MARGIN, MemoryWatch, resident_bytes
from tests.cloud_server.conftest import Files
from tests.cloud_server.test_engine import Bench

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


def test_a_pool_takes_a_block_at_a_time_and_uses_pages_again() -> None:
    pool = PagePool((1 << 20,), torch.uint8, most_bytes=1 << 30)
    assert pool.bytes == 0, "a service without scenes needs no memory for them"
    first = pool.take(3)
    assert pool.bytes == 16 << 20 and len(set(first)) == 3
    more = pool.take(30)
    assert pool.bytes == 48 << 20 and not set(first) & set(more)
    pool.give(first)
    assert set(pool.take(3)) == set(first) and pool.take(0) == [] and pool.bytes == 48 << 20


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


@pytest.mark.parametrize("shape", [(36, 24), (16, 6), (1, 1), (400, 33)])
def test_latents_come_out_bit_for_bit_and_their_copy_is_ones_own(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    held = LatentMemory(1 << 20)
    made = [
        Held(rng.standard_normal(shape, dtype=np.float32), rng.random(shape[0]) < 0.5)
        for _ in range(4)
    ]
    made[0].latents[0, 0] = -0.0
    for number, one in enumerate(made):
        held.put(("s", number), one)
    for number, one in enumerate(made):
        got = held.get(("s", number))
        assert got.latents.tobytes() == one.latents.tobytes()
        assert got.kept.dtype == np.bool_ and (got.kept == one.kept).all()
        got.latents[:] = 7
        assert held.get(("s", number)).latents.tobytes() == one.latents.tobytes()


def test_latents_stay_within_their_cap_and_their_pool() -> None:
    held = LatentMemory(8 * LATENT_PAGE_BYTES)
    one = Held(np.ones((36, 24), np.float32), np.ones(36, np.bool_))  # four pages
    for number in range(500):
        held.put(("s", number), one)
        assert held.bytes <= 8 * LATENT_PAGE_BYTES and held.pool_bytes == 8 * LATENT_PAGE_BYTES
    held.get(("s", 498))
    with pytest.raises(UnknownSceneError):
        held.get(("s", 497))


def _answers(bench: Bench, jobs: list[Job], together: bool) -> dict[int, str]:
    bench.said.clear()
    for job in jobs:
        bench.engine.submit(job)
        if not together:
            bench.drain()
    bench.drain()
    return {event.job: event.text for event in bench.said if isinstance(event, Answered)}


def test_questions_that_join_together_are_answered_from_their_own_scenes_in_a_full_memory(
    files: Files,
) -> None:
    roomy, tight = Bench(files), Bench(files, scene_memory_bytes=1 << 10)
    jobs = [roomy.job(id) for id in range(12)]
    alone = _answers(roomy, jobs, together=False)
    assert len(set(alone.values())) > 3
    assert _answers(tight, jobs, together=True) == alone
    assert tight.engine.status().scenes == 1


class Log:
    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append(fields)


def test_memory_above_base_and_caps_is_warned_of_once_each_time() -> None:
    log = Log()
    watch = MemoryWatch("engine", log)
    limit = int((1000 + 500) * (1 + MARGIN))
    for resident in (1000, 1400, limit, limit + 1, limit + 500, limit, limit + 2):
        watch.see(resident, 500)
    assert [w["resident_bytes"] for w in log.warnings] == [limit + 1, limit + 2]
    watch.restart()
    watch.see(9 * limit, 500)
    assert len(log.warnings) == 2, "the first figure of a new process is its base"


def test_resident_memory_is_that_of_the_process_asked_for() -> None:
    import os
    import subprocess
    import sys

    block = np.ones(64 << 20, dtype=np.uint8)
    assert resident_bytes() > block.nbytes
    assert resident_bytes(os.getpid()) == pytest.approx(resident_bytes(), rel=0.1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert 0 < resident_bytes(child.pid) < block.nbytes
    finally:
        child.communicate(b"\n")
    assert resident_bytes(child.pid) == 0, "a process that is gone"


def test_freed_buffers_leave_the_process_even_above_a_small_one_that_stays() -> None:
    """In a process of its own: the heap's settings are for life."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from protos.process.memory import keep_heap_compact, resident_bytes\n"
        "if not keep_heap_compact(): sys.exit(3)\n"
        "for _ in range(3): np.ones(8 << 20, np.uint8)  # glibc raises its threshold at each free\n"
        "start, small, rng = resident_bytes(), [], np.random.default_rng(0)\n"
        "for _ in range(30):\n"
        "    big = [np.ones(int(rng.integers(1, 4)) << 20, np.uint8) for _ in range(20)]\n"
        "    while len(big) > 2:\n"
        "        big.pop(0); small.append(np.ones(4608, np.uint8))\n"
        "del big\n"
        "print(resident_bytes() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24e6, "2.5 MB of small arrays are left; untuned they hold 56 MB"
