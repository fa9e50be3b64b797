"""The order in which a full store evicts names."""

from __future__ import annotations

from random import Random

from cloud_server.crowd import Crowd


def test_the_next_to_go_is_the_longest_unused_of_the_largest_group() -> None:
    crowd: Crowd[int] = Crowd()
    for group, key in (("a", 1), ("b", 2), ("b", 3), ("c", 4), ("c", 5), ("c", 6)):
        crowd.add((group,), key)
    gone = []
    while len(crowd):
        gone.append(crowd.next_to_go())
        crowd.remove(gone[-1])
    assert gone == [4, 2, 5, 1, 3, 6]
    crowd.add(("a",), 1)
    crowd.add(("b",), 2)
    crowd.touch(1)
    assert crowd.next_to_go() == 2 and crowd.size("a") == 1 and 1 in crowd and 3 not in crowd


def test_the_largest_tenant_loses_and_in_it_the_largest_device_by_bytes() -> None:
    crowd: Crowd[str] = Crowd()
    for number in range(10):
        crowd.add(("small", "only"), f"small {number}", 10)
    for number in range(3):
        crowd.add(("large", "a"), f"a {number}", 30)
    crowd.add(("large", "b"), "b", 50)
    assert (crowd.cost, crowd.size("large"), crowd.size("large", "a")) == (240, 140, 90)
    gone = []
    while crowd.size("large") > crowd.size("small"):
        gone.append(crowd.next_to_go())
        crowd.remove(gone[-1])
    assert gone == ["a 0", "a 1"] and crowd.of("large", "b") == ["b"]


def test_the_evicted_name_is_the_one_that_a_plain_search_finds() -> None:
    random = Random(7)
    crowd: Crowd[int] = Crowd()
    held: dict[int, tuple[tuple[str, str], int]] = {}
    used: list[int] = []
    for key in range(3000):
        path = (f"t{random.randrange(3)}", f"d{random.randrange(4)}")
        held[key] = (path, random.randrange(1, 9))
        crowd.add(path, key, held[key][1])
        used.append(key)
        if random.random() < 0.5:
            again = random.choice(list(held))
            crowd.touch(again)
            used.remove(again)
            used.append(again)
        while crowd.cost > 200:
            last, of = {k: i for i, k in enumerate(used)}, set(range(key + 1)) & set(held)
            for depth in (1, 2):  # the largest tenant, then its largest device
                owners: dict[tuple[str, ...], tuple[int, int]] = {}
                for name in of:
                    whole, cost = held[name]
                    sum, recent = owners.get(whole[:depth], (0, 0))
                    owners[whole[:depth]] = (sum + cost, max(recent, last[name]))
                most = max(owners, key=lambda owner: (owners[owner][0], -owners[owner][1]))
                of = {name for name in of if held[name][0][:depth] == most}
            expected = min(of, key=last.__getitem__)
            assert crowd.next_to_go() == expected
            crowd.remove(expected)
            used.remove(expected)
            del held[expected]
    assert len(crowd) == len(held)
