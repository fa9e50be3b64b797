"""64 questions at once get, token for token, the answers that each gets alone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from cloud_server.engine.jobs import Answered, Failed, Job, JobEvent, Load, Offer
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import load
from projector.bundle.load import Bundle
from projector.codec.encoder import Encoder
from protos.layout import KVLayout
from protos.points import PICTURE_POINT
from protos.state import KVState
from reference.demo.halves import BUNDLE, CLOUD_MODEL
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench

QUESTIONS = (
    "what is this ?",
    "how many cars are there ?",
    "what is left of the red car ?",
    "is there a tree above the red dog ? " * 3,
    "dog ?",
)


class Engine:
    """An engine whose answers are kept; a few sessions of two owners send the jobs."""

    def __init__(self, engine: TransformersEngine, said: list[JobEvent], jobs: list[Job]) -> None:
        self.engine, self.said, self.jobs = engine, said, jobs
        self._woken = threading.Event()
        engine.wake = self.wake = self._woken.set

    def drain(self) -> dict[int, tuple[str, int]]:
        while self.engine.busy or self.engine.status().waiting:
            if self.engine.busy:
                self.engine.step()
            else:  # a picture is being read
                self._woken.wait(60)
                self._woken.clear()
        assert not [event for event in self.said if isinstance(event, Failed)], self.said
        ends = [event for event in self.said if isinstance(event, Answered)]
        self.said.clear()
        return {event.job: (event.text, event.tokens) for event in ends}

    def serial(self) -> dict[int, tuple[str, int]]:
        made: dict[int, tuple[str, int]] = {}
        for job in self.jobs:
            self.engine.submit(structs.replace(job, session=f"alone-{job.session}"))
            made |= self.drain()
        return made

    def together(self) -> dict[int, tuple[str, int]]:
        for job in self.jobs:
            self.engine.submit(job)
        return self.drain()


def frame(offer: Offer, number: int) -> Job:
    """A frame of a scene that differs from any other, with a question."""
    encoder, layout = (
        Encoder.from_bytes(offer.encoder),
        KVLayout.from_json(offer.source_layout_json),
    )
    point = next(p for p in encoder.points if p.name == offer.default_point)
    rng = np.random.default_rng(number)
    noise = rng.standard_normal((layout.tokens, len(encoder.x_mean)), dtype=np.float32)
    state = KVState.from_flat(
        encoder.x_mean + noise * encoder.x_scale, layout, np.arange(layout.tokens)
    )
    encoded = encoder.encode(state, point)
    return Job(
        id=number,
        session=f"s{number % 7}",
        frame_number=number,
        request_id=f"{number:016x}",
        question=QUESTIONS[number % len(QUESTIONS)],
        max_new_tokens=1 + number % 9,
        received_ns=0,
        bundle=offer.bundle_digest,
        point=point.index,
        kept=encoded.kept.tobytes(),
        body=encoded.payload,
        owner=f"tenant-{number % 2}/gate-{number % 7}",
    )


def picture(job: Job) -> Job:
    return structs.replace(
        job, point=PICTURE_POINT, kept=b"", body=stage.picture_file(job.frame_number)
    )


def mixed(offer: Offer) -> list[Job]:
    """64 jobs; every eighth brings a picture instead of a frame."""
    made = [frame(offer, number) for number in range(64)]
    return [picture(job) if job.id % 8 == 3 else job for job in made]


@pytest.fixture
def tiny(files: Files) -> Engine:
    bench = Bench(files, batch_size=64)
    return Engine(bench.engine, bench.said, mixed(bench.offer))


@pytest.fixture
def reference() -> Engine:
    return real("float32")


@pytest.fixture
def bfloat16() -> Engine:
    return real("bfloat16")


def real(precision: str) -> Engine:
    """An engine with the reference model."""
    said: list[JobEvent] = []
    sizes = {"threads": 1, "batch_size": 64, "precision": precision}
    given = {"model": CLOUD_MODEL, "bundles": [BUNDLE], **sizes}
    engine = TransformersEngine(load(given, environ=stage.DEVICE), said.append)
    (offer,) = engine.load()
    return Engine(engine, said, mixed(offer))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["tiny", "reference", "bfloat16"])
def test_64_at_once_are_answered_as_each_alone(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    alone = engine.serial()
    together = engine.together()
    assert len(alone) == 64 and together == alone
    assert len({text for text, _ in alone.values()}) > 3


@pytest.mark.slow
def test_64_at_once_on_two_versions_of_a_bundle_are_answered_as_each_alone(
    tiny: Engine, files: Files, tmp_path: Path
) -> None:
    info = Bundle.peek(files.bundle)
    cloud = stage.random_cloud(info.target, seed=4)
    path = stage.write_random_bundle(tmp_path / "two", info.target, info.source, cloud, version=2)
    digest, read = Bundle.peek(path).digest, threading.Event()
    tiny.engine.wake = read.set
    tiny.engine.load_bundle(Load(digest, str(path)))
    assert read.wait(60)
    tiny.engine.wake = tiny.wake
    before = tiny.serial()
    for job in tiny.jobs:
        tiny.engine.forget(f"alone-{job.session}")
    tiny.jobs = [
        structs.replace(job, bundle=digest) if job.id % 2 and job.point != PICTURE_POINT else job
        for job in tiny.jobs
    ]
    alone = tiny.serial()
    assert len(alone) == 64 and tiny.together() == alone
    changed = {number for number in alone if alone[number] != before[number]}
    assert changed and all(number % 2 for number in changed), "each had its own version"
