"""Who has to go where room is short."""

from __future__ import annotations

from cloud_server.frontend.crowd import Crowd


def test_the_next_to_go_is_the_longest_unused_of_the_largest_group() -> None:
    crowd: Crowd[str, int] = Crowd()
    for group, key in (("a", 1), ("b", 2), ("b", 3), ("c", 4), ("c", 5), ("c", 6)):
        crowd.add(group, key)
    gone = []
    while len(crowd):
        gone.append(crowd.next_to_go())
        crowd.remove(gone[-1])
    assert gone == [4, 2, 5, 1, 3, 6]
    crowd.add("a", 1)
    crowd.add("b", 2)
    crowd.touch(1)
    assert crowd.next_to_go() == 2 and crowd.size("a") == 1 and 1 in crowd and 3 not in crowd
