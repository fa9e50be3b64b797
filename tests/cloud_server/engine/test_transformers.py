"""The step loop: batches, joins, leaves and scenes, against the model itself."""

from __future__ import annotations

import pytest
from msgspec import structs

from cloud_server.engine.jobs import Accepted, Dropped, Failed, TokenMade
from projector.bundle.load import Bundle
from projector.models.vlm import VLM
from protos.errors import (
    UnknownSceneError,
)
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench

QUESTIONS = ["what ?", stage.QUESTION, "how many red car dog cat tree are there ? none", "Q"]


def _reference(files: Files, vlm: VLM, bench: Bench, id: int, question: str, limit: int) -> str:
    """One frame alone, through the public pieces and the model's own greedy loop."""
    bundle = Bundle.load(files.bundle, stage.SOURCE, vlm.layout)
    encoded = bench.encoder.encode(stage.state(id), bench.encoder.point(stage.FP8))
    z = bundle.encoder.decode(encoded.payload, encoded.kept, bundle.encoder.point(stage.FP8))
    keys, values = bundle.backend("torch").project(
        bundle.encoder.scatter(z, encoded.kept)[None], encoded.kept[None], vlm.positions
    )
    layers = vlm.scene_cache(keys, values)
    return vlm.text(vlm.answer(layers, [vlm.question_ids(question)], limit)[0])


def test_a_batch_with_joins_and_leaves_gives_the_models_own_answers(
    files: Files, bench: Bench
) -> None:
    plan = [(i, QUESTIONS[i % 4], 1 + (5 * i) % 9) for i in range(10)]
    for index, (id, question, limit) in enumerate(plan):
        bench.engine.submit(bench.job(id, question, limit))
        if index % 3:  # some join together, some while others are in the making
            bench.engine.step()
    bench.drain()
    answers = bench.answers()
    vlm = VLM.load(files.model)
    for id, question, limit in plan:
        assert answers[id].text == _reference(files, vlm, bench, id, question, limit), id
        assert answers[id].tokens <= limit
    assert len({answer.text for answer in answers.values()}) > 3


def test_a_frame_that_is_not_to_be_held_is_answered_alike_and_takes_no_place(bench: Bench) -> None:
    bench.engine.submit(bench.job(41))
    bench.drain()
    before = bench.engine.status().scenes, bench.engine._latents.bytes
    bench.engine.submit(structs.replace(bench.job(41), id=42, frame_number=42, hold=0))
    bench.drain()
    assert bench.answers()[42].text == bench.answers()[41].text
    assert (bench.engine.status().scenes, bench.engine._latents.bytes) == before


def test_a_first_token_leaves_before_the_second_is_made(bench: Bench) -> None:
    leave: list[list[type]] = []
    bench.engine.flush = lambda: leave.append([type(event) for event in bench.said])
    bench.engine.submit(bench.job(1, limit=3))
    bench.engine.step()
    assert leave == [[Accepted], [Accepted, TokenMade]]
    assert [type(event) for event in bench.said] == [Accepted, TokenMade, TokenMade]


def test_more_questions_than_slots_wait_and_are_all_answered(files: Files) -> None:
    bench = Bench(files, batch_size=2)
    for id in range(5):
        bench.engine.submit(bench.job(id, limit=3))
    bench.engine.step()
    assert bench.engine.status().running <= 2 and bench.engine.status().waiting == 3
    bench.drain()
    assert set(bench.answers()) == set(range(5))


def test_one_bad_frame_of_a_group_fails_alone(bench: Bench) -> None:
    good, bad = bench.job(1), bench.job(2)
    spoilt = structs.replace(bad, body=bad.body[:-1])
    for job in (good, spoilt, bench.job(3)):
        bench.engine.submit(job)
    bench.drain()
    failures: dict[int, int] = {e.job: e.code for e in bench.said if isinstance(e, Failed)}
    assert failures == {2: 201} and set(bench.answers()) == {1, 3}


def test_a_bad_frame_that_is_a_group_of_its_own_does_not_end_the_engine(bench: Bench) -> None:
    bad = bench.job(2)
    bench.engine.submit(structs.replace(bad, body=bad.body[:-1]))
    bench.drain()
    bench.engine.submit(bench.job(1))
    bench.drain()
    failures: dict[int, int] = {e.job: e.code for e in bench.said if isinstance(e, Failed)}
    assert failures == {2: 201} and set(bench.answers()) == {1}


@pytest.mark.slow
def test_scenes_beyond_the_memory_are_forgotten_longest_unused_first(files: Files) -> None:
    bench = Bench(files)
    one = bench.job(0, question="")
    bench.engine.submit(one)
    bench.drain()
    size = bench.engine.status().scene_bytes
    assert size == 2 * 4 * 3 * 2 * 16 * 16  # keys and values, float32, layers, heads, tokens, dim

    bench = Bench(files, scene_memory_bytes=3 * size)
    for id in range(3):
        bench.engine.submit(bench.job(id, question=""))
    bench.drain()
    bench.engine.submit(bench.ask(10, about=0))
    bench.drain()
    bench.engine.submit(bench.job(3, question=""))
    bench.drain()
    bench.engine.submit(bench.ask(11, about=0))
    bench.engine.submit(bench.ask(12, about=1))
    bench.drain()
    assert set(bench.answers()) == {10, 11}
    (lost,) = [event for event in bench.said if isinstance(event, Failed)]
    assert (lost.job, lost.code) == (12, UnknownSceneError.code)
    bench.engine.forget("s")
    assert bench.engine.status().scenes == bench.engine.status().scene_bytes == 0


def test_a_job_that_waits_is_dropped_before_it_costs_anything(bench: Bench) -> None:
    for id in (1, 2):
        bench.engine.submit(bench.job(id))
    bench.engine.cancel(1, begun=False)
    bench.engine.cancel(1, begun=True)  # it is gone: nothing more is said
    bench.drain()
    assert [event for event in bench.said if isinstance(event, Dropped)] == [Dropped(1)]
    assert {event.job for event in bench.said if not isinstance(event, Dropped)} == {2}


def test_an_alarm_is_answered_before_those_that_wait_for_a_slot(files: Files) -> None:
    bench = Bench(files, batch_size=2)
    for id in range(8):
        bench.engine.submit(structs.replace(bench.job(id), session=f"s{id}"))
    bench.engine.step()
    bench.engine.submit(structs.replace(bench.job(8), session="s8", rank=0))
    bench.drain()
    order = list(bench.answers())
    assert set(order) == set(range(9)) and order.index(8) <= 3


@pytest.mark.slow
def test_a_job_cancelled_in_mid_decode_has_no_row_in_the_next_step(files: Files) -> None:
    bench = Bench(files, batch_size=2)
    for id in range(3):
        bench.engine.submit(bench.job(id, limit=6 if id == 2 else 40))
    bench.engine.step()
    assert bench.engine.status().running == 2
    bench.engine.cancel(0, begun=True)
    assert bench.engine.status().running == 1, "its slot is free at once"
    said = len(bench.said)
    bench.drain()
    assert 0 not in {event.job for event in bench.said[said:]}
    assert set(bench.answers()) == {1, 2}


def test_a_traced_job_gets_the_engines_spans_and_another_one_none(bench: Bench) -> None:
    traced = structs.replace(bench.job(1, limit=2), trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    bench.engine.submit(traced)
    bench.engine.submit(bench.job(2, limit=2))
    bench.drain()
    accepted = {one.job: one for one in bench.said if isinstance(one, Accepted)}
    answered = bench.answers()
    names = [name for name, *_ in accepted[1].spans + answered[1].spans]
    assert names == ["decode", "project", "inject", "prefill", "generate"]
    times = [span[1:] for span in accepted[1].spans + answered[1].spans]
    assert all(begin <= end for begin, end in times)
    assert [begin for begin, _ in times] == sorted(begin for begin, _ in times)
    assert times[0][0] >= traced.received_ns
    assert not accepted[2].spans and not answered[2].spans
