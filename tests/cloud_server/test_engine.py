"""The embedded engine on its own: batches, joins, leaves and scenes, against the model itself."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_server.engine.batch import RunningBatch
from cloud_server.engine.jobs import Accepted, Answered, Failed, Job, JobEvent, TokenMade
from cloud_server.engine.picture import open_picture
from cloud_server.engine.reader import PictureReader
from cloud_server.engine.store import Store
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import Settings, load
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.codec.arrays import Floats
from projector.codec.deltas import Held
from projector.models.vlm import VLM
from projector.serving.backends import Backend
from protos.errors import (
    BundleLayoutError,
    ConfigError,
    MissingKeyFrameError,
    NonFiniteError,
    PictureError,
    SignatureError,
    UnknownSceneError,
)
from protos.points import PICTURE_POINT
from protos.state import KVState
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.fakes import tiny_models


class Bench:
    """An engine and everything it said."""

    def __init__(self, files: Files, **settings: object) -> None:
        given = {"model": files.model, "bundles": [files.bundle], "threads": 1} | settings
        self.settings: Settings = load(given, environ=stage.DEVICE)
        self.said: list[JobEvent] = []
        self.engine = TransformersEngine(self.settings, self.said.append)
        (self.offer,) = self.engine.load()
        self.encoder = stage.encoder()

    def job(self, id: int, question: str = stage.QUESTION, limit: int = 6) -> Job:
        encoded = self.encoder.encode(stage.state(id), self.encoder.point(stage.FP8))
        return Job(
            id=id,
            session="s",
            frame_number=id,
            request_id=f"{id:016x}",
            question=question,
            max_new_tokens=limit,
            received_ns=0,
            bundle=self.offer.bundle_digest,
            point=stage.FP8,
            kept=encoded.kept.tobytes(),
            body=encoded.payload,
        )

    def ask(self, id: int, about: int) -> Job:
        return Job(id, "s", about, f"{id:016x}", stage.QUESTION, 6, 0)

    def drain(self) -> None:
        while self.engine.busy:
            self.engine.step()

    def answers(self) -> dict[int, Answered]:
        return {event.job: event for event in self.said if isinstance(event, Answered)}


@pytest.fixture(scope="module")
def bench(files: Files) -> Bench:
    return Bench(files)


@pytest.fixture(autouse=True)
def _silence(request: pytest.FixtureRequest) -> None:
    if "bench" in request.fixturenames:
        request.getfixturevalue("bench").said.clear()


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
    bench.engine.submit(dataclasses.replace(bench.job(41), id=42, frame_number=42, hold=0))
    bench.drain()
    assert bench.answers()[42].text == bench.answers()[41].text
    assert (bench.engine.status().scenes, bench.engine._latents.bytes) == before


def test_tokens_arrive_one_by_one_and_spell_the_answer(bench: Bench) -> None:
    bench.engine.submit(bench.job(3))
    bench.engine.step()
    kinds = [type(event) for event in bench.said]
    assert kinds[:2] == [Accepted, TokenMade] and Answered not in kinds
    bench.drain()
    pieces = [event for event in bench.said if isinstance(event, TokenMade)]
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert "".join(piece.text for piece in pieces) == bench.answers()[3].text


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
    spoilt = Job(**{**bad.__dict__, "body": bad.body[:-1]})
    for job in (good, spoilt, bench.job(3)):
        bench.engine.submit(job)
    bench.drain()
    failures: dict[int, int] = {e.job: e.code for e in bench.said if isinstance(e, Failed)}
    assert failures == {2: 201} and set(bench.answers()) == {1, 3}


def test_a_bad_frame_that_is_a_group_of_its_own_does_not_end_the_engine(bench: Bench) -> None:
    bad = bench.job(2)
    bench.engine.submit(Job(**{**bad.__dict__, "body": bad.body[:-1]}))
    bench.drain()
    bench.engine.submit(bench.job(1))
    bench.drain()
    failures: dict[int, int] = {e.job: e.code for e in bench.said if isinstance(e, Failed)}
    assert failures == {2: 201} and set(bench.answers()) == {1}


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


def test_an_engine_has_tried_every_way_before_it_is_ready_and_nothing_of_it_is_left(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []
    submit = TransformersEngine.submit

    def watch(self: TransformersEngine, job: Job) -> None:
        tried.append((job.bundle, job.point))
        submit(self, job)

    monkeypatch.setattr(TransformersEngine, "submit", watch)
    read_now = PictureReader.read_now

    def watch_pictures(self: PictureReader[Any], job: Job) -> Any:
        tried.append((job.bundle, job.point))
        return read_now(self, job)

    monkeypatch.setattr(PictureReader, "read_now", watch_pictures)
    given = {"model": files.model, "bundles": [files.bundle, files.other_bundle], "threads": 1}
    said: list[JobEvent] = []
    engine = TransformersEngine(load(given, environ=stage.DEVICE), said.append)
    offers = engine.load()
    alone = [(offer.bundle_digest, stage.FP8) for offer in offers] + [("", PICTURE_POINT)]
    assert tried == alone + [("", -1)] * engine._settings.batch_size
    status = engine.status()
    assert said == [] and not engine.busy
    assert status.scenes == status.scene_bytes == status.running == status.waiting == 0


def test_an_engine_that_cannot_answer_never_becomes_ready(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(self: Backend, latents: Floats, *_: object) -> tuple[Floats, Floats]:
        layout = self.target
        shape = (layout.layers, len(latents), layout.kv_heads, layout.tokens, layout.head_dim)
        return np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)

    monkeypatch.setattr("projector.serving.backends.base.Backend.project", overflows)
    settings = load({"model": files.model, "bundles": [files.bundle]}, environ=stage.DEVICE)
    with pytest.raises(NonFiniteError):
        TransformersEngine(settings, lambda event: None).load()


def test_two_bundles_for_one_edge_model_are_refused_at_start(files: Files, tmp_path: Path) -> None:
    target = VLM.load(files.model).layout
    twin = stage.write_random_bundle(
        tmp_path / "twin", target, stage.SOURCE, files.cloud, version=2
    )
    settings = load({"model": files.model, "bundles": [files.bundle, twin]}, environ=stage.DEVICE)
    with pytest.raises(ConfigError, match="same edge"):
        TransformersEngine(settings, lambda event: None).load()


def test_a_bundle_for_another_large_model_is_refused_at_start(files: Files, tmp_path: Path) -> None:
    other = tiny_models.tiny_llava(tmp_path, seed=9)
    settings = load({"model": other, "bundles": [files.bundle]}, environ=stage.DEVICE)
    with pytest.raises(BundleLayoutError, match="weights_digest"):
        TransformersEngine(settings, lambda event: None).load()


def test_columns_that_no_row_sees_any_more_are_cut_out(files: Files) -> None:
    vlm = VLM.load(files.model)
    batch: RunningBatch[str] = RunningBatch(vlm)
    layout = vlm.layout
    shape = (layout.layers, 1, layout.kv_heads, layout.tokens, layout.head_dim)
    torch.manual_seed(0)
    scene = vlm.scene_cache(torch.randn(shape), torch.randn(shape))
    batch.join(scene, [vlm.question_ids("what " * 50)], ["long"], [1])
    batch.join(scene, [vlm.question_ids("Q")], ["short"], [8])
    held = scene[0][0].shape[2]
    batch.leave()
    assert [row.owner for row in batch.rows] == ["short"]
    width = batch._layers[0][0].shape[2]
    assert width == held + len(vlm.question_ids("Q"))


def test_the_scene_store_counts_bytes_and_replaces_a_scene_of_the_same_name() -> None:
    dropped: list[str] = []
    store: Store[str] = Store(100, dropped.append)
    store.put(("s", 1), "a", 60)
    store.put(("s", 1), "b", 30)
    assert (store.get(("s", 1)), store.bytes, len(store)) == ("b", 30, 1)
    store.put(("t", 1), "huge", 500)
    assert len(store) == 1 and store.get(("t", 1)) == "huge"
    with pytest.raises(UnknownSceneError):
        store.get(("s", 1))


def test_any_damage_to_a_picture_file_is_a_picture_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    outcomes: dict[str, int] = defaultdict(int)
    for kind in ("PNG", "JPEG", "WEBP"):
        file = stage.picture_file(3, kind)
        for _ in range(60):
            copy = bytearray(file)
            for position in rng.integers(0, len(copy), 4):
                copy[position] = rng.integers(0, 256)
            cut = int(rng.integers(1, len(copy) + 1))
            for damaged in (bytes(copy), file[:cut]):
                try:
                    assert open_picture(damaged, 256).mode == "RGB"
                    outcomes["picture"] += 1
                except PictureError:
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 20


def test_with_trusted_keys_only_what_they_signed_is_served(files: Files, tmp_path: Path) -> None:
    mine = tmp_path / "bundle"
    shutil.copytree(files.bundle, mine)
    key = SigningKey.create(tmp_path / "key.pem")
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[keys]\n"build server" = "{key.public}"\n')
    given = {"model": files.model, "bundles": [mine], "threads": 1, "trusted_keys": trusted}
    with pytest.raises(SignatureError, match="not signed"):
        TransformersEngine(load(given, environ=stage.DEVICE), lambda event: None).load()
    sign_bundle(mine, key)
    (offer,) = TransformersEngine(load(given, environ=stage.DEVICE), lambda event: None).load()
    assert offer.bundle_digest == Bundle.peek(mine).digest


# -------------------------------------------------------------------------------- delta frames


def _delta(bench: Bench, id: int, base: int, held: Held) -> tuple[Job, Held]:
    """Another picture's first three tokens over what is held."""
    now, then = stage.state(id), stage.state(base)
    x = then.flat().copy()
    x[:3] = now.flat()[:3]
    changed = KVState.from_flat(x, stage.SOURCE, then.positions, then.attention)
    encoded = bench.encoder.encode(changed, bench.encoder.point(stage.FP8), base=held)
    job = dataclasses.replace(
        bench.job(id),
        kept=encoded.kept.tobytes(),
        body=encoded.payload,
        base=base,
        differences=int(encoded.differences),
    )
    return job, encoded.held


def test_a_delta_frame_is_answered_like_the_key_frame_of_the_same_latents(files: Files) -> None:
    bench = Bench(files)
    held = bench.encoder.encode(stage.state(0), bench.encoder.point(stage.FP8)).held
    delta, held = _delta(bench, 1, 0, held)
    chained, held = _delta(bench, 2, 1, held)
    assert delta.kept_mask.sum() < 16
    for job in (bench.job(0), delta, chained):
        bench.engine.submit(job)
        bench.drain()
    exact = dataclasses.replace(
        bench.job(3),
        point=stage.NONE,
        body=(held.latents - bench.encoder.centre).astype("<f4").tobytes(),
    )
    bench.engine.submit(exact)
    bench.drain()
    answers = bench.answers()
    assert sorted(answers) == [0, 1, 2, 3]
    assert answers[2].text == answers[3].text


def test_a_delta_frame_without_its_base_is_refused_and_the_next_key_frame_is_not(
    files: Files,
) -> None:
    bench = Bench(files)
    held = bench.encoder.encode(stage.state(0), bench.encoder.point(stage.FP8)).held
    delta, _ = _delta(bench, 1, 0, held)
    bench.engine.submit(delta)
    bench.engine.submit(bench.job(0))
    bench.engine.submit(dataclasses.replace(delta, id=2))
    bench.drain()
    (refused,) = (event for event in bench.said if isinstance(event, Failed))
    assert (refused.job, refused.code) == (1, MissingKeyFrameError.code)
    assert sorted(bench.answers()) == [0, 2]
    bench.engine.forget("s")
    bench.engine.submit(dataclasses.replace(delta, id=3))
    bench.drain()
    assert [e.job for e in bench.said if isinstance(e, Failed)] == [1, 3]


def test_bases_are_held_in_bounded_memory(files: Files) -> None:
    held_bytes = 16 * (4 * stage.RANK + 1)
    bench = Bench(files, latent_memory_bytes=max(1024, 3 * held_bytes))
    held = bench.encoder.encode(stage.state(0), bench.encoder.point(stage.FP8)).held
    delta, _ = _delta(bench, 50, 0, held)
    for id in range(1 + max(1024, 3 * held_bytes) // held_bytes):
        bench.engine.submit(bench.job(id))
    bench.engine.submit(delta)
    bench.drain()
    (refused,) = (event for event in bench.said if isinstance(event, Failed))
    assert (refused.job, refused.code) == (50, MissingKeyFrameError.code)
