"""Shadows in the engine: scene and picture compared, and only when nothing else is to be done."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from cloud_server.engine.jobs import Answered, Dropped, Failed, Job, Measured
from cloud_server.engine.shadow import SHADOW_ROWS, relative_errors
from projector.models.vlm import VLM
from protos.errors import PictureError, QuestionTooLongError, UnknownSceneError
from protos.points import PICTURE_POINT
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench, picture

OTHER = "is there a horse ?"


def _file(seed: int = 3) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)
    blob = io.BytesIO()
    Image.fromarray(pixels).save(blob, "PNG")
    return blob.getvalue()


def _shadow(id: int, about: int, file: bytes, *questions: str) -> Job:
    return Job(
        id=id,
        session="s",
        frame_number=about,
        request_id=f"{id + 100:016x}",
        question="",
        max_new_tokens=6,
        received_ns=0,
        point=PICTURE_POINT,
        body=file,
        hold=0,
        shadow=list(questions),
    )


def _ended(bench: Bench, id: int) -> object:
    """The last event of a job; the engine steps until it is there."""
    for _ in range(1_000_000):
        bench.engine.step()
        for event in bench.said:
            if event.job == id and event.ends:
                return event
    raise AssertionError(f"job {id} never ended")


def test_answers_errors_and_divergence_are_those_of_scene_and_picture(
    files: Files, bench: Bench
) -> None:
    file = _file()
    bench.engine.submit(bench.job(1))
    bench.engine.submit(picture(bench, 2, file))
    given, seen = _ended(bench, 1), _ended(bench, 2)
    bench.engine.submit(_shadow(3, 1, file, stage.QUESTION, OTHER))
    measured = _ended(bench, 3)
    assert isinstance(given, Answered) and isinstance(seen, Answered)
    assert isinstance(measured, Measured)
    assert measured.questions == [stage.QUESTION, OTHER]
    assert (measured.given[0], measured.seen[0]) == (given.text, seen.text)
    # from the whole model, in one piece
    vlm, scenes = VLM.load(files.model), bench.engine._scenes
    made, own = (scenes.read(scenes.get(("s", number))) for number in (1, 2))
    wanted = [
        float(
            torch.cat([a[n] - b[n] for a, b in zip(made, own, strict=True)]).norm()
            / torch.cat([b[n] for b in own]).norm()
        )
        for n in range(len(own[0]))
    ]
    assert measured.errors == pytest.approx(wanted, rel=1e-5)
    for place, question in enumerate((stage.QUESTION, OTHER)):
        p, q = (
            vlm.first_token(
                vlm.scene_cache(part[0][:, None], part[1][:, None]), [vlm.question_ids(question)]
            )[0].astype(np.float64)
            for part in (own, made)
        )
        assert measured.kl[place] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-3)


def test_many_questions_are_asked_a_few_at_a_time_and_answered_alike(bench: Bench) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    questions = [f"{stage.QUESTION} {'red ' * n}" for n in range(11)]
    bench.engine.submit(_shadow(2, 1, _file(), *questions))
    most = 0
    while not any(isinstance(event, Measured) for event in bench.said):
        bench.engine.step()
        most = max(most, len(bench.engine._shadows._batch))
    assert 0 < most <= SHADOW_ROWS
    whole = _ended(bench, 2)
    assert isinstance(whole, Measured) and whole.questions == questions
    assert len(whole.given) == len(whole.seen) == len(whole.kl) == 11
    for place in (0, 5, 10):
        bench.engine.submit(_shadow(10 + place, 1, _file(), questions[place]))
        alone = _ended(bench, 10 + place)
        assert isinstance(alone, Measured)
        assert (alone.given[0], alone.seen[0]) == (whole.given[place], whole.seen[place])
        assert alone.kl[0] == pytest.approx(whole.kl[place], rel=1e-3, abs=1e-6)


def test_a_scene_made_from_the_picture_itself_has_no_error(bench: Bench) -> None:
    file = _file()
    bench.engine.submit(picture(bench, 2, file))
    _ended(bench, 2)
    bench.engine.submit(_shadow(3, 2, file, stage.QUESTION))
    measured = _ended(bench, 3)
    assert isinstance(measured, Measured)
    assert max(measured.errors) < 1e-6 and max(measured.kl) < 1e-9
    assert measured.given == measured.seen


def test_the_scene_stays_as_it_was(bench: Bench) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    before = [
        part.clone() for part in bench.engine._scenes.read(bench.engine._scenes.get(("s", 1)))
    ]
    bench.engine.submit(_shadow(3, 1, _file(), stage.QUESTION))
    _ended(bench, 3)
    after = bench.engine._scenes.read(bench.engine._scenes.get(("s", 1)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_waits_for_an_idle_engine_but_not_for_ever(bench: Bench) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    shadows, ids = bench.engine._shadows, itertools.count(10)

    def busy_step() -> None:
        if not len(bench.engine._answering):
            bench.engine.submit(bench.job(next(ids)))
        bench.engine.step()

    busy_step()
    bench.engine.submit(_shadow(2, 1, _file(), stage.QUESTION))
    while not len(shadows):  # the picture is being read
        busy_step()
    waited = 0
    while shadows._now is None:
        busy_step()
        waited += 1
    assert 28 <= waited <= 32
    while not any(isinstance(event, Measured) for event in bench.said):
        assert shadows._passed <= 32
        busy_step()


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (_shadow(2, 7, _file(), stage.QUESTION), UnknownSceneError),
        (_shadow(2, 1, b"no picture", stage.QUESTION), PictureError),
        (_shadow(2, 1, _file(), "is it red ? " * 5000), QuestionTooLongError),
    ],
    ids=["unknown scene", "no picture", "too long"],
)
def test_what_cannot_be_measured_fails_alone(
    bench: Bench, job: Job, error: type[Exception]
) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    bench.engine.submit(job)
    failed = _ended(bench, 2)
    assert isinstance(failed, Failed) and isinstance(failed.error, error)
    bench.engine.submit(_shadow(3, 1, _file(), stage.QUESTION))
    assert isinstance(_ended(bench, 3), Measured)


def test_a_cancelled_one_ends_and_the_next_has_its_turn(bench: Bench) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    for id in (2, 3):
        bench.engine.submit(_shadow(id, 1, _file(), stage.QUESTION))
    while bench.engine._shadows._now is None:
        bench.engine.step()
    bench.engine.cancel(2, begun=True)
    assert isinstance(_ended(bench, 2), Dropped)
    assert isinstance(_ended(bench, 3), Measured)


def test_errors_of_layers_are_relative_to_the_pictures_cache() -> None:
    own = torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    made = own[0].clone(), own[1].clone()
    made[0][1] += 1.0  # half of the second layer is off by as much as it is
    assert relative_errors(made, own) == pytest.approx([0.0, 0.5**0.5])
