"""The contract that every engine keeps: what becomes of each job, and what a scene is held for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from cloud_server import engine as engines
from cloud_server.engine.base import Engine
from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    BundleEvent,
    Dropped,
    Failed,
    Job,
    JobEvent,
    Load,
    NotLoaded,
    Offer,
    TokenMade,
)
from cloud_server.engine.jobs import Loaded as Loaded_
from cloud_server.settings import load
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from protos.errors import (
    BundleCorruptError,
    BundleMissingError,
    ConfigError,
    QuestionTooLongError,
    SignatureError,
    UnknownSceneError,
)
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files

NAMES = ["transformers"]


LAST = (Answered, Failed, Dropped)


@dataclass
class Loaded:
    """An engine, what it serves, and everything it said since the test began."""

    engine: Engine
    offers: list[Offer]
    said: list[JobEvent]

    def frame(self, id: int, question: str = stage.QUESTION) -> Job:
        encoded = stage.encoder().encode(stage.state(id), stage.encoder().point(stage.FP8))
        return Job(
            id=id,
            session="s",
            frame_number=id,
            request_id=f"{id:016x}",
            question=question,
            max_new_tokens=4,
            received_ns=0,
            bundle=self.offers[0].bundle_digest,
            point=stage.FP8,
            kept=encoded.kept.tobytes(),
            body=encoded.payload,
        )

    def further(self, id: int, about: int) -> Job:
        return Job(id, "s", about, f"{id:016x}", stage.QUESTION, 4, 0)

    def drain(self, *jobs: Job) -> None:
        for job in jobs:
            self.engine.submit(job)
        for _ in range(1000):
            if not self.engine.busy:
                return
            self.engine.step()
        pytest.fail("still busy after a thousand steps")

    def of(self, id: int) -> list[JobEvent]:
        return [event for event in self.said if event.job == id]


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, files: Files) -> Loaded:
    given = {"model": files.model, "bundles": [files.bundle], "threads": 1}
    settings = load({**given, "engine": request.param}, environ=stage.DEVICE)
    said: list[JobEvent] = []
    engine = engines.build(settings, said.append)
    return Loaded(engine, engine.load(), said)


@pytest.fixture
def loaded(made: Loaded) -> Iterator[Loaded]:
    made.said.clear()
    yield made
    made.engine.forget("s")


def test_every_engine_is_under_contract() -> None:
    assert set(NAMES) == set(engines.ENGINES)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest is 'transformers'"):
        engines.check_name("transformer")


def test_a_loaded_engine_offers_its_bundles_names_its_model_and_is_not_busy(
    loaded: Loaded,
) -> None:
    assert len(loaded.offers) == 1 and loaded.offers[0].encoder
    assert loaded.engine.model_id and not loaded.engine.busy
    assert loaded.engine.status().running == 0


def test_a_question_is_accepted_then_spelt_then_answered_once(loaded: Loaded) -> None:
    loaded.drain(loaded.frame(1))
    first, *tokens, last = loaded.of(1)
    assert isinstance(first, Accepted) and isinstance(last, Answered)
    made = [event for event in tokens if isinstance(event, TokenMade)]
    assert len(made) == len(tokens) == last.tokens
    assert [event.index for event in made] == list(range(len(made)))
    assert "".join(event.text for event in made).strip() == last.text


def test_a_frame_without_a_question_ends_accepted_and_is_held_for_questions(
    loaded: Loaded,
) -> None:
    loaded.drain(loaded.frame(2, question=""))
    assert [type(event) for event in loaded.of(2)] == [Accepted]
    loaded.drain(loaded.further(3, about=2), loaded.frame(4))
    loaded.drain(loaded.further(5, about=4))
    again, fresh = loaded.of(5)[-1], loaded.of(4)[-1]
    assert isinstance(loaded.of(3)[-1], Answered)
    assert isinstance(again, Answered) and isinstance(fresh, Answered)
    assert again.text == fresh.text


def test_a_bad_job_fails_by_number_and_its_neighbours_are_answered(loaded: Loaded) -> None:
    bad = replace(loaded.frame(7), question="what " * 2000)
    loaded.drain(loaded.frame(6), bad, loaded.frame(8))
    (failed,) = loaded.of(7)
    assert isinstance(failed, Failed) and failed.code == QuestionTooLongError.code
    assert all(isinstance(loaded.of(id)[-1], Answered) for id in (6, 8))


def test_a_forgotten_sessions_scenes_are_unknown(loaded: Loaded) -> None:
    loaded.drain(loaded.frame(9))
    loaded.engine.forget("s")
    loaded.drain(loaded.further(10, about=9))
    last = loaded.of(10)[-1]
    assert isinstance(last, Failed) and last.code == UnknownSceneError.code


@pytest.mark.parametrize("base", [True, False])
def test_a_dropped_scene_is_unknown_and_its_neighbour_is_not(loaded: Loaded, base: bool) -> None:
    before = loaded.engine.status().scene_bytes
    loaded.drain(loaded.frame(20), loaded.frame(21))
    loaded.engine.drop(("s", 20), base)
    loaded.engine.drop(("s", 4711), base)
    assert loaded.engine.status().scene_bytes > before
    loaded.drain(loaded.further(22, about=20), loaded.further(23, about=21))
    gone, held = loaded.of(22)[-1], loaded.of(23)[-1]
    if not base:
        assert isinstance(gone, Failed) and gone.code == UnknownSceneError.code
    assert isinstance(held, Answered)


@pytest.mark.parametrize("steps", [0, 1], ids=["waiting", "begun"])
def test_a_cancelled_job_ends_dropped_and_says_no_more(loaded: Loaded, steps: int) -> None:
    loaded.engine.submit(loaded.frame(11))
    for _ in range(steps):
        loaded.engine.step()
    loaded.engine.cancel(11, begun=True)
    loaded.drain()
    assert [type(event) for event in loaded.of(11) if isinstance(event, LAST)] == [Dropped]
    assert isinstance(loaded.of(11)[-1], Dropped)


def test_a_job_that_has_ended_stays_so(loaded: Loaded) -> None:
    loaded.drain(loaded.frame(12))
    before = loaded.of(12)
    loaded.engine.cancel(12, begun=True)
    loaded.drain()
    assert loaded.of(12) == before


def news_of(loaded: Loaded, *asked: Load) -> list[BundleEvent]:
    """Ask for bundles while a frame is being answered, and wait for the results."""
    news: list[BundleEvent] = []
    woken = threading.Semaphore(0)
    loaded.engine.news, loaded.engine.wake = news.append, woken.release
    for one in asked:
        loaded.engine.load_bundle(one)
    for _ in asked:
        assert woken.acquire(timeout=60)
        while loaded.engine.busy:
            loaded.engine.step()
    return news


def test_a_second_version_is_loaded_beside_the_first_and_unloaded_again(
    loaded: Loaded, files: Files, tmp_path: Path
) -> None:
    layouts = {name: getattr(Bundle.peek(files.bundle), name) for name in ("source", "target")}
    path = stage.write_random_bundle(
        tmp_path / "two", layouts["target"], layouts["source"], files.cloud, version=2
    )
    digest = Bundle.peek(path).digest
    offer, done = news_of(loaded, Load(digest, str(path)))
    assert isinstance(offer, Offer) and (offer.bundle_digest, offer.bundle_version) == (digest, "2")
    assert isinstance(done, Loaded_) and done.digest == digest
    loaded.drain(replace(loaded.frame(70), bundle=digest), loaded.frame(71))
    assert isinstance(loaded.of(70)[-1], Answered) and isinstance(loaded.of(71)[-1], Answered)
    loaded.engine.unload_bundle(digest)
    loaded.drain(replace(loaded.frame(72), bundle=digest), loaded.frame(73))
    assert isinstance(loaded.of(72)[-1], Failed) and isinstance(loaded.of(73)[-1], Answered)


def test_a_bundle_that_was_swapped_damaged_or_removed_is_not_loaded_and_says_why(
    loaded: Loaded, files: Files, tmp_path: Path
) -> None:
    info = Bundle.peek(files.bundle)
    damaged = Path(shutil.copytree(files.bundle, tmp_path / "damaged"))
    with (damaged / "cloud.onnx").open("r+b") as graph:
        graph.seek(100)
        graph.write(b"\0\0\0\0\0\0\0\0")
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[keys]\n"build server" = "{SigningKey.create(tmp_path / "k").public}"\n')
    news = news_of(
        loaded,
        Load("0" * 64, str(files.bundle)),
        Load("1" * 64, str(tmp_path / "nothing")),
        Load(info.digest[::-1], str(damaged)),
        Load(info.digest, str(files.bundle), str(trusted)),
    )
    assert all(isinstance(one, NotLoaded) for one in news)
    why = {one.digest: (one.code, one.message) for one in news if isinstance(one, NotLoaded)}
    assert why["0" * 64][0] == BundleCorruptError.code and "replaced on disk" in why["0" * 64][1]
    assert why["1" * 64][0] == BundleMissingError.code
    assert why[info.digest[::-1]][0] == BundleCorruptError.code
    assert why[info.digest][0] == SignatureError.code
    loaded.drain(loaded.frame(74))
    assert isinstance(loaded.of(74)[-1], Answered), "what was loaded before is served on"
