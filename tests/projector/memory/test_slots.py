"""The default member: what it replaces, evicts and weighs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from projector.memory import Fact, Slots
from tests.projector.memory.keys import basis, fact, key


def near(one: Fact, seed: int) -> Fact:
    """A fact about the same thing under another id."""
    noise = np.random.default_rng(seed).integers(-9, 10, one.keys.shape)
    keys = np.clip(one.keys.astype(int) + noise, -127, 127).astype(np.int8)
    return replace(one, keys=keys, id=b"other" + seed.to_bytes(3, "big"))


def test_the_newest_about_the_same_thing_takes_its_place() -> None:
    memory = Slots(basis())
    memory.write(fact(1, "Rome", when=10))
    written = memory.write(replace(near(fact(1), 3), value="Oslo", when=11))
    assert written.stored and written.contradicts
    assert written.replaced is not None and written.replaced.value == "Rome"
    assert [one.value for one in memory.facts] == ["Oslo"]
    assert memory.read(key(2)).recalled[0].value == "Oslo"


def test_an_older_fact_that_comes_late_changes_nothing() -> None:
    memory = Slots(basis())
    memory.write(fact(1, "Oslo", when=11))
    written = memory.write(replace(near(fact(1), 3), value="Rome", when=10))
    assert not written.stored and written.cause == "older"
    assert [one.value for one in memory.facts] == ["Oslo"]


def test_a_fact_that_is_told_again_is_known() -> None:
    memory = Slots(basis())
    memory.write(fact(1))
    assert memory.write(fact(1)).cause == "known"


def test_the_oldest_are_evicted_and_named() -> None:
    memory = Slots(basis(), limit_bytes=1000)
    evicted = [one for seed in range(20) for one in memory.write(fact(seed)).evicted]
    held = [one.id for one in memory.facts]
    assert evicted + held == [fact(seed).id for seed in range(20)]
    assert len(held) > 5 and memory.bytes <= 1000


def test_weights_follow_similarity_and_add_up_to_one_at_most() -> None:
    memory = Slots(basis())
    for seed in range(8):
        memory.write(fact(seed))
    reading = memory.read(key(6))
    assert reading.open and reading.similarity == reading.recalled[0].similarity
    assert reading.recalled[0].value == "value 3"
    weights = [one.weight for one in reading.recalled]
    assert weights == sorted(weights, reverse=True) and 0.5 < sum(weights) <= 1 + 1e-6


def test_a_key_is_the_same_whatever_its_length() -> None:
    memory = Slots(basis())
    memory.write(fact(1))
    asked = (key(2) // 2).astype(np.int8)
    assert memory.read(asked).open
