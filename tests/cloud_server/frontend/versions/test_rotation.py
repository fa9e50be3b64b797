"""Outcomes that wait for a partner: bounded, and each owner has its turn."""

from __future__ import annotations

from collections import Counter

from cloud_server.frontend.versions.rotation import Rotation

A, B, C = ("t", "a"), ("t", "b"), ("u", "a")


def test_owners_are_heard_in_turn_however_many_outcomes_each_has() -> None:
    made: Rotation[str] = Rotation(100)
    for number in range(50):
        made.add(A, f"a{number}")
    made.add(B, "b0")
    made.add(C, "c0")
    made.add(C, "c1")
    assert [made.take() for _ in range(7)] == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_memory_is_bounded_and_who_has_most_loses_its_oldest() -> None:
    made: Rotation[int] = Rotation(90)
    for number in range(1000):
        made.add(A, number)
    assert len(made) == 90 and next(iter(made)) == (A, 910)
    for number in range(1000):
        made.add(B, number)
        made.add(C, number)
    assert Counter(owner for owner, _ in made) == {A: 30, B: 30, C: 30}
    for number in range(10_000):
        made.add(("flood", str(number)), number)
    assert len(made) == 90
