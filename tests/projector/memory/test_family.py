"""What every member promises."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from projector.memory import MEMBERS, Fact, Memory, make
from projector.memory.base import LINKS, VALUE_BYTES
from protos.errors import (
    BridgeError,
    ConfigError,
    FactError,
    MemoryCorruptError,
    MemoryForeignError,
)
from tests.projector.memory.keys import RANK, basis, fact, key

NAMES = sorted(MEMBERS)


@pytest.fixture(params=NAMES)
def memory(request: pytest.FixtureRequest) -> Memory:
    return make(request.param, basis())


def test_an_empty_memory_answers_nothing(memory: Memory) -> None:
    reading = memory.read(key(5))
    assert not reading.open and reading.recalled == ()
    assert memory.gate(key(5)) < memory.basis.reading.threshold


def test_what_was_told_is_read_by_each_of_its_keys_and_by_nothing_else(memory: Memory) -> None:
    for seed in range(5):
        assert memory.write(fact(seed)).stored
    for seed in range(5):
        for each in fact(seed).keys:
            assert memory.read(each).open
    assert not memory.read(key(999)).open


def test_the_same_events_give_the_same_bytes(memory: Memory) -> None:
    other = make(memory.name, basis())
    for one in (memory, other):
        for seed in (3, 1, 2, 3, 7):
            one.write(fact(seed))
        one.forget(fact(1).id)
    assert memory.state() == other.state() and memory.digest == other.digest


def test_a_state_is_restored_to_the_byte_and_reads_alike(memory: Memory) -> None:
    for seed in range(4):
        memory.write(fact(seed))
    other = make(memory.name, basis())
    other.restore(memory.state())
    assert other.state() == memory.state()
    assert memory.bytes == len(memory.state()) == other.bytes
    assert other.read(key(0)) == memory.read(key(0))


def test_what_is_forgotten_is_not_read(memory: Memory) -> None:
    memory.write(fact(1))
    assert memory.forget(fact(1).id) and not memory.forget(fact(1).id)
    assert not memory.read(key(2)).open


def test_no_changed_or_cut_byte_of_a_state_is_accepted(memory: Memory) -> None:
    for seed in range(3):
        memory.write(fact(seed))
    state = memory.state()
    for at in range(len(state)):
        with pytest.raises(MemoryCorruptError):
            memory.restore(state[:at] + bytes([state[at] ^ 1 << at % 8]) + state[at + 1 :])
        with pytest.raises(MemoryCorruptError):
            memory.restore(state[:at])
    assert memory.state() == state


def test_a_state_of_another_basis_is_refused(memory: Memory) -> None:
    memory.write(fact(1))
    with pytest.raises(MemoryForeignError):
        make(memory.name, basis(seed=1)).restore(memory.state())


def test_the_state_stays_within_its_limit_over_many_writes(memory: Memory) -> None:
    small = make(memory.name, basis(), 2048)
    sizes = set()
    for seed in range(300):
        small.write(fact(seed, value="x" * (seed % VALUE_BYTES + 1)))
        sizes.add(small.bytes)
    assert max(sizes) <= 2048 and small.read(key(2 * 299)).open


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"value": ""}, "empty"),
        ({"value": "  "}, "empty"),
        ({"value": "x" * 65}, "65 bytes, at most 64"),
        ({"value": "é" * 33}, "66 bytes, at most 64"),
        ({"value": "a\nb"}, "cannot be printed"),
        ({"keys": np.zeros((0, RANK), np.int8)}, "0 keys"),
        ({"keys": np.ones((LINKS + 1, RANK), np.int8)}, "5 keys"),
        ({"keys": np.ones((1, RANK + 1), np.int8)}, "[1, 33]"),
        ({"keys": np.ones((1, RANK), np.float32)}, "float32"),
        ({"keys": np.zeros((1, RANK), np.int8)}, "zero everywhere"),
        ({"id": b"short"}, "5 bytes"),
        ({"when": -1}, "1970"),
        ({"when": 1 << 32}, "1970"),
    ],
)
def test_a_bad_fact_is_refused_and_changes_nothing(
    memory: Memory, bad: dict[str, object], said: str
) -> None:
    memory.write(fact(1))
    before = memory.state()
    with pytest.raises(FactError) as caught:
        memory.write(replace(fact(2), **bad))  # type: ignore[arg-type]
    assert said in str(caught.value) and memory.state() == before


@pytest.mark.parametrize("bad", [np.ones(RANK - 1, np.int8), np.zeros(RANK, np.int8)])
def test_a_bad_key_is_refused(memory: Memory, bad: np.ndarray) -> None:
    with pytest.raises(FactError):
        memory.read(bad)


def test_an_unknown_member_and_a_limit_below_one_fact_are_named() -> None:
    with pytest.raises(ConfigError, match="slots"):
        make("nothing", basis())
    for name in NAMES:
        with pytest.raises(BridgeError):
            make(name, basis(), 64)


def test_values_in_any_script_are_kept_as_they_are(memory: Memory) -> None:
    said = "Ворота 3 – 門三"
    memory.write(Fact(fact(1).keys, said, 1, b"12345678"))
    other = make(memory.name, basis())
    other.restore(memory.state())
    recalled = other.read(key(2)).recalled
    assert not recalled or recalled[0].value == said


def test_reading_a_memory_needs_no_torch() -> None:
    asked = "import sys, projector.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked]).returncode == 0
