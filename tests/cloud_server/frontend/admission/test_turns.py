"""Fair turns: at each level, alarms first within bounds, shares of the engine."""

from __future__ import annotations

from collections import Counter
from random import Random

from cloud_server.frontend.admission.turns import ALARM, BACKGROUND, NORMAL, Item, Lane, Turns


class Desk:
    """Turns, an engine that ends its oldest request, and a clock."""

    def __init__(self, batch: int = 1, ahead: int = 0, window_s: float = 1.0) -> None:
        self.now, self.weights = 0.0, dict[tuple[str, str | None], float]()
        self.turns: Turns[Item] = Turns(
            lambda tenant, device: self.weights.get((tenant, device), 1.0),
            window_s,
            lambda: self.now,
        )
        self.turns.batch, self.turns.ahead = batch, ahead
        self.engine: list[Item] = []

    def add(self, lane: Lane, rank: int = NORMAL, count: int = 1) -> list[Item]:
        made = [Item(lane, rank, 100) for _ in range(count)]
        for item in made:
            self.turns.add(item)
        return made

    def give(self) -> list[Item]:
        given = []
        while (item := self.turns.next(lambda _: True)) is not None:
            given.append(item)
        self.engine += given
        return given

    def serve(self, most: int = 1 << 30) -> list[Item]:
        """Requests in the order in which they are given, until none waits."""
        order = self.give()
        while self.engine and len(order) < most:
            self.turns.remove(self.engine.pop(0))
            order += self.give()
        return order


def lane(tenant: str, device: str = "d", session: str = "s") -> Lane:
    return Lane(tenant, device, session)


def test_tenants_share_alike_however_many_devices_and_sessions_each_has() -> None:
    desk = Desk()
    for device in range(10):
        for session in range(3):
            desk.add(lane("many", f"d{device}", f"s{session}"), count=20)
    desk.add(lane("one"), count=100)
    served = Counter(item.lane.tenant for item in desk.serve(100))
    assert abs(served["one"] - 50) <= 1


def test_weights_are_honoured_between_tenants_and_between_devices() -> None:
    desk = Desk()
    desk.weights = {("a", None): 3.0, ("a", "big"): 2.0}
    for name in ("big", "small"):
        desk.add(lane("a", name), count=200)
    desk.add(lane("b"), count=200)
    served = Counter((item.lane.tenant, item.lane.device) for item in desk.serve(120))
    assert abs(served["b", "d"] - 30) <= 2
    assert abs(served["a", "big"] - 60) <= 2 and abs(served["a", "small"] - 30) <= 2


def test_an_alarm_goes_before_what_waits() -> None:
    desk = Desk()
    for device in range(8):
        desk.add(lane("t", f"d{device}"), count=5)
    (alarm,) = desk.add(lane("t", "d3"), ALARM)
    (other,) = desk.add(lane("u", "new"), ALARM)
    assert {*desk.serve(2)} == {alarm, other}


def test_a_device_that_calls_everything_an_alarm_gets_its_share_and_no_more() -> None:
    desk = Desk()
    desk.add(lane("t", "crier"), ALARM, 200)
    for device in range(4):
        desk.add(lane("t", f"d{device}"), count=200)
    served = Counter(item.lane.device for item in desk.serve(250))
    assert abs(served["crier"] - 50) <= 5
    assert all(abs(served[f"d{device}"] - 50) <= 5 for device in range(4))


def test_a_tenant_that_calls_everything_an_alarm_gets_its_share_and_no_more() -> None:
    desk = Desk()
    for device in range(20):
        desk.add(lane("crier", f"d{device}"), ALARM, 20)
    desk.add(lane("calm"), count=200)
    served = Counter(item.lane.tenant for item in desk.serve(200))
    assert abs(served["calm"] - 100) <= 5


def test_the_background_waits_for_the_others_but_not_for_ever() -> None:
    desk = Desk()
    background = desk.add(lane("t", "a"), BACKGROUND, 5)
    desk.add(lane("t", "a"), NORMAL, 100)
    order = desk.serve(100)
    assert 0 < len(set(order) & set(background)) <= 100 // 16 + 1
    assert order[0] not in background


def test_beside_active_neighbours_nobody_has_more_than_its_share_at_the_engine() -> None:
    desk = Desk(batch=16, ahead=16)
    for device in range(8):
        desk.add(lane("t", f"polite {device}"))
    desk.add(lane("t", "greedy"), count=64)
    given = Counter(item.lane.device for item in desk.give())
    assert given["greedy"] <= 4 and len(given) == 9
    for item in [item for item in desk.engine if item.lane.device == "greedy"]:
        desk.turns.remove(item)
        desk.engine.remove(item)
    assert len(desk.give()) == 1, "16 / 9, rounded down: the others have what they asked for"
    for item in desk.engine:
        desk.turns.remove(item)
    desk.engine.clear()
    desk.now += 2.0  # nobody else was active lately
    assert len(desk.give()) == 32


def test_when_all_want_more_the_engine_is_filled() -> None:
    desk = Desk(batch=16, ahead=16)
    for device in range(9):
        desk.add(lane("t", f"d{device}"), count=64)
    given = Counter(item.lane.device for item in desk.give())
    assert sum(given.values()) >= 24 and max(given.values()) - min(given.values()) <= 1


def test_the_estimate_of_requests_ahead_is_right() -> None:
    desk = Desk()
    for device in range(6):
        desk.add(lane("t", f"d{device}"), count=10)
    expected = desk.turns.ahead_of(lane("t", "new"), NORMAL)
    (mine,) = desk.add(lane("t", "new"))
    assert abs(desk.serve().index(mine) - expected) <= 6
    desk.add(lane("t", "long"), count=30)
    assert desk.turns.ahead_of(lane("t", "long"), NORMAL) == 30.0


def test_nothing_is_lost_or_given_twice_in_a_long_random_run() -> None:
    random, desk = Random(3), Desk(batch=4, ahead=4)
    waiting: set[Item] = set()
    engine: set[Item] = set()
    for _ in range(4000):
        desk.now += random.random() * 0.2
        step = random.random()
        if step < 0.5:
            where = lane(f"t{random.randrange(3)}", f"d{random.randrange(4)}", "s")
            waiting |= set(desk.add(where, random.randrange(3)))
        elif step < 0.55 and waiting:
            gone = random.choice(list(waiting))
            waiting.remove(gone)
            desk.turns.remove(gone)
        elif engine:
            done = random.choice(list(engine))
            engine.remove(done)
            desk.turns.remove(done)
        for item in desk.give():
            assert item in waiting
            waiting.remove(item)
            engine.add(item)
        assert desk.turns.waiting == len(waiting) and desk.turns.given == len(engine)
        assert desk.turns.places == len(waiting) + len(engine)
        assert desk.turns.bytes == 100 * desk.turns.places
        assert engine or not waiting, "who waits is given something as long as there is room"


def test_a_greedy_device_fills_a_step_up_to_the_shares_of_those_who_wait() -> None:
    desk = Desk(batch=32)
    desk.turns.step = 32
    for device in range(7):
        desk.add(lane("t", f"polite{device}"))
    assert {item.step_rows for item in desk.give()} == {0}
    desk.add(lane("t", "greedy"), count=40)
    assert [item.step_rows for item in desk.give()] == [4] * 4
    desk.add(lane("t", "other"), count=40)
    assert [item.step_rows for item in desk.give()] == [7] * 3
    (alarm,) = desk.add(lane("t", "greedy"), ALARM)
    assert desk.give() == [alarm] and not alarm.step_rows


def test_nobody_who_is_alone_or_like_its_neighbours_is_greedy() -> None:
    desk = Desk(batch=32, ahead=32)
    desk.turns.step = 32
    desk.add(lane("t"), count=60)
    assert {item.step_rows for item in desk.serve()} == {0}
    for device in range(8):
        desk.add(lane("t", f"d{device}"), count=20 + device)
    assert {item.step_rows for item in desk.give()} == {0}


def test_requests_in_advance_wait_for_those_that_have_a_share_left() -> None:
    desk = Desk(batch=4, ahead=8)
    desk.add(lane("t", "a"), count=8)
    desk.add(lane("t", "b"), count=8)
    assert Counter(item.lane.device for item in desk.give()[:4]) == {"a": 2, "b": 2}
