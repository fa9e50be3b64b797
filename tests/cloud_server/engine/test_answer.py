"""Answers come token by token, and end at once when nobody wants them."""

from __future__ import annotations

from cloud_server.engine.jobs import Accepted, Answered, Dropped, TokenMade
from tests.cloud_server.engine_bench import Bench


def test_tokens_arrive_one_by_one_and_spell_the_answer(bench: Bench) -> None:
    bench.engine.submit(bench.job(3))
    bench.engine.step()
    kinds = [type(event) for event in bench.said]
    assert kinds[:2] == [Accepted, TokenMade] and Answered not in kinds
    bench.drain()
    pieces = [event for event in bench.said if isinstance(event, TokenMade)]
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert "".join(piece.text for piece in pieces) == bench.answers()[3].text


def test_a_running_answer_ends_at_once_and_its_neighbours_are_what_they_were(
    bench: Bench,
) -> None:
    for id in (1, 2, 3):
        bench.engine.submit(bench.job(id))
    bench.drain()
    alone = {id: answer.text for id, answer in bench.answers().items()}
    bench.engine.forget("s")
    bench.said.clear()
    for id in (1, 2, 3):
        bench.engine.submit(bench.job(id))
    bench.engine.step()
    bench.engine.cancel(2, begun=False)
    assert bench.engine.status().running == 3, "it has begun"
    bench.engine.cancel(2, begun=True)
    assert bench.engine.status().running == 2
    said = len(bench.said)
    bench.drain()
    assert bench.said[said - 1] == Dropped(2)
    assert not [event for event in bench.said[said:] if event.job == 2]
    assert {id: answer.text for id, answer in bench.answers().items()} == {
        id: text for id, text in alone.items() if id != 2
    }
    bench.engine.submit(bench.ask(9, about=2))
    bench.drain()
    assert isinstance(bench.said[-1], Answered), "its scene was accepted, so it is held"


def test_the_last_running_answer_can_be_cancelled(bench: Bench) -> None:
    bench.engine.submit(bench.job(1))
    bench.engine.step()
    bench.engine.cancel(1, begun=True)
    assert not bench.engine.busy
    bench.engine.submit(bench.job(2))
    bench.drain()
    assert set(bench.answers()) == {2}
