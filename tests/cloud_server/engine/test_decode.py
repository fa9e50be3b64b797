"""Delta frames change what earlier frames left."""

from __future__ import annotations

from msgspec import structs

from cloud_server.engine.jobs import Failed, Job
from cloud_server.frontend.scenes import HeldScenes
from projector.codec.deltas import Held
from protos.errors import (
    MissingKeyFrameError,
)
from protos.state import KVState
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench
from tests.cloud_server.frontend.test_scenes import scene


def _delta(bench: Bench, id: int, base: int, held: Held) -> tuple[Job, Held]:
    """Another picture's first three tokens over what is held."""
    now, then = stage.state(id), stage.state(base)
    x = then.flat().copy()
    x[:3] = now.flat()[:3]
    changed = KVState.from_flat(x, stage.SOURCE, then.positions, then.attention)
    encoded = bench.encoder.encode(changed, bench.encoder.point(stage.FP8), base=held)
    job = structs.replace(
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
    exact = structs.replace(
        bench.job(3),
        point=stage.NONE,
        body=(held.latents - bench.encoder.centre).astype("<f4").tobytes(),
    )
    bench.engine.submit(exact)
    bench.drain()
    answers = bench.answers()
    assert sorted(answers) == [0, 1, 2, 3]
    assert answers[2].text == answers[3].text


def test_another_engine_makes_a_delta_frames_scene_from_the_frames_that_are_held(
    files: Files,
) -> None:
    """What `HeldScenes` gives is enough: the answer is that of the engine which had the scene."""
    bench, scenes = Bench(files), HeldScenes(1 << 20, lambda *_: 0)
    held = bench.encoder.encode(stage.state(0), bench.encoder.point(stage.FP8)).held
    delta, held = _delta(bench, 1, 0, held)
    chained, _ = _delta(bench, 2, 1, held)
    for job in (bench.job(0), delta, chained):
        bench.engine.submit(job)
        bench.drain()
        scenes.hold(scene(job), job)
    other = Bench(files)
    for number, again in enumerate(scenes.frames(("s", 2)), 10):
        other.engine.submit(structs.replace(again, id=number))
    other.engine.submit(other.ask(20, about=2))
    other.drain()
    assert not [event for event in other.said if isinstance(event, Failed)]
    assert other.answers()[20].text == bench.answers()[2].text != bench.answers()[0].text


def test_a_delta_frame_without_its_base_is_refused_and_the_next_key_frame_is_not(
    files: Files,
) -> None:
    bench = Bench(files)
    held = bench.encoder.encode(stage.state(0), bench.encoder.point(stage.FP8)).held
    delta, _ = _delta(bench, 1, 0, held)
    bench.engine.submit(delta)
    bench.engine.submit(bench.job(0))
    bench.engine.submit(structs.replace(delta, id=2))
    bench.drain()
    (refused,) = (event for event in bench.said if isinstance(event, Failed))
    assert (refused.job, refused.code) == (1, MissingKeyFrameError.code)
    assert sorted(bench.answers()) == [0, 2]
    bench.engine.forget("s")
    bench.engine.submit(structs.replace(delta, id=3))
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
