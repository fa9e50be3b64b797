"""An engine process without a model: the question says what it does. Starts in a moment.

"count 3" makes three tokens; "hold" waits for the next job that says "release", "begin" makes a
token first; "slow" takes a while; "die" ends the process; "hang" never returns; "leak" takes memory
for good; "where" answers with the process id, about a scene that is held; anything else answers at
once. While the file that the variable FAKE_ENGINE_SILENT_IF names is there, nothing is answered.
The variable FAKE_ENGINE_FAILS names how loading ends: "typed", "silent", or "once" (silent, the
first time; FAKE_ENGINE_STARTS is a file that gets a line for each).

Bundles are folders that `stage.describe` wrote; `fake.json` may hold a canary set, the answer to
every question about its frames, and whether devices' frames are refused.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cloud_server import engine as engines
from cloud_server.engine import process as engine_main
from cloud_server.engine.base import Emit, Engine
from cloud_server.engine.frame_numbers import FrameNumbers
from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Dropped,
    Job,
    Load,
    Loaded,
    Measured,
    NotLoaded,
    Offer,
    PartWanted,
    Status,
    TokenMade,
    failed,
)
from cloud_server.engine.store import Name
from cloud_server.settings import Settings
from projector.bundle.load import Bundle
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    BundleLayoutError,
    FrameNumberError,
    MissingKeyFrameError,
    NonFiniteError,
    QuestionError,
    SignatureError,
    UnknownSceneError,
)
from tests.cloud_server import stage


class FakeEngine(Engine):
    def __init__(self, settings: Settings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._jobs: list[Job] = []
        self._leaked: list[bytes] = []
        self._held: list[Job] = []
        self._asked: list[Load] = []
        self._bundles: dict[str, dict[str, Any]] = {}
        self._scenes: set[tuple[str, int]] = set()
        self._numbers = FrameNumbers(self._scenes.__contains__)

    def prepare(self) -> None:
        """Nothing is worth keeping."""

    def load(self) -> list[Offer]:
        fails = os.environ.get("FAKE_ENGINE_FAILS", "")
        if fails == "typed":
            raise BundleLayoutError("made for another model")
        if fails == "once":
            with open(os.environ["FAKE_ENGINE_STARTS"], "a+") as starts:
                starts.write(f"start {os.getppid()}\n")
                starts.seek(0)
                if len(starts.readlines()) == 1:
                    os._exit(3)
        if fails == "silent":
            os._exit(3)
        return [self._offer(path) for path in self._settings.bundles]

    def _offer(self, path: Path) -> Offer:
        """What `stage.describe` wrote into a folder."""
        info, plain = Bundle.peek(path), json.loads((path / "fake.json").read_text())
        self._bundles[info.digest] = plain
        return replace(
            stage.offer(plain.get("risky", False)),
            bundle_digest=info.digest,
            bundle_version=str(info.version),
            canary=json.dumps(plain["canary"]).encode() if "canary" in plain else b"",
        )

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def load_bundle(self, asked: Load) -> None:
        self._asked.append(asked)

    def unload_bundle(self, digest: str) -> None:
        self._bundles.pop(digest, None)

    def _load(self, asked: Load) -> None:
        try:
            if (digest := Bundle.peek(asked.path).digest) != asked.digest:
                raise BundleCorruptError(f"replaced on disk by {digest}")
            if asked.trusted_keys:
                raise SignatureError("no bundle of this engine is signed")
            self.news(self._offer(Path(asked.path)))
        except BridgeError as error:
            self.news(NotLoaded(asked.digest, error.code, error.message))
            return
        self.news(Loaded(asked.digest, 1 << 20, 0.001))

    def forget(self, session: str) -> None:
        self._scenes -= {scene for scene in self._scenes if scene[0] == session}

    def drop(self, name: Name, base: bool) -> None:
        if not base:  # this engine has no latents apart
            self._scenes.discard(name)

    def cancel(self, job: int, begun: bool) -> None:
        for jobs in (self._jobs, self._held) if begun else (self._jobs,):
            for waiting in jobs:
                if waiting.id == job:
                    jobs.remove(waiting)
                    self._emit(Dropped(job))
                    return

    def step(self) -> None:
        if self._asked:
            self._load(self._asked.pop(0))
            return
        job = self._jobs.pop(0)
        if os.path.exists(os.environ.get("FAKE_ENGINE_SILENT_IF", "")):
            return
        if job.question == "die":
            os._exit(9)
        if job.question == "hang":
            threading.Event().wait()
        if job.question == "leak":
            self._leaked.append(b"\1" * (256 << 20))
        if job.question == "where" and not job.has_frame and job.scene not in self._scenes:
            self._emit(failed(job.id, UnknownSceneError("not held")))
            return
        if job.base >= 0 and (job.session, job.base) not in self._scenes:
            self._emit(failed(job.id, MissingKeyFrameError("the base is not held")))
            return
        if job.question == "slow":
            threading.Event().wait(0.3)
        if job.question == "no":
            self._emit(failed(job.id, QuestionError("no")))
            return
        if self._bundles.get(job.bundle, {}).get("refuses") and "judge" not in job.session:
            self._emit(failed(job.id, NonFiniteError("it overflows")))
            return
        if job.look:
            self._emit(PartWanted(job.id, [0, 0, 500, 500], 0.75))
            return
        if job.shadow:
            self._measure(job)
            return
        if job.box:
            text = f"{len(job.body)} bytes of {job.box}"
            self._emit(Answered(job.id, text, 1, 0.001, 0.001, 0.001))
            return
        try:
            if job.has_frame:
                self._numbers.claim(job.scene, job.request_id)
        except FrameNumberError as error:
            self._emit(failed(job.id, error))
            return
        if job.hold:
            self._scenes.add(job.scene)
        self._numbers.end_step()
        score = 0.0 if self._bundles.get(job.bundle, {}).get("risky") else math.nan
        far = bytes(48 * bool(each) for each in job.kept)
        spans = [("decode", job.received_ns + 1, job.received_ns + 2)] if job.trace else []
        said = Accepted(job.id, 0.001, 0.001, 0.001, 0.001, moments_score=score, far=far)
        self._emit(replace(said, spans=spans))
        if job.question == "begin":
            self._emit(TokenMade(job.id, 0, "0 "))
        if job.question in ("hold", "begin"):
            self._held.append(job)
        elif job.question:
            self._answer(job)
            if job.question == "release":
                for held in self._held:
                    self._answer(held)
                self._held.clear()

    def _measure(self, job: Job) -> None:
        """Compare with a file that says how many of the answers differ; "never" is not measured."""
        if job.scene not in self._scenes:
            self._emit(failed(job.id, UnknownSceneError("not held")))
        elif job.body == b"never":
            self._held.append(job)
        else:
            count = len(job.shadow)
            seen = ["no" if n < int(job.body) else "yes" for n in range(count)]
            figures = [0.4, 0.6], job.shadow, ["yes"] * count, seen, [0.02] * count
            self._emit(Measured(job.id, 0.001, *figures))

    def _answer(self, job: Job) -> None:
        tokens = int(job.question.split()[1]) if job.question.startswith("count") else 1
        for index in range(tokens):
            self._emit(TokenMade(job.id, index, f"{index} "))
        text = " ".join(str(i) for i in range(tokens))
        text = str(os.getpid()) if job.question == "where" else text
        text = self._bundles.get(job.bundle, {}).get("answer", text)
        spans = [("generate", job.received_ns + 2, job.received_ns + 3)] if job.trace else []
        self._emit(Answered(job.id, text, tokens, 0.001, 0.001, 0.001, spans=spans))

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self._asked)

    @property
    def model_id(self) -> str:
        return "fake"

    def status(self) -> Status:
        return Status(running=len(self._held), scenes=len(self._scenes))


if __name__ == "__main__":
    engines.ENGINES["fake"] = ("tests.cloud_server.fake_engine", "FakeEngine")
    sys.exit(engine_main.main())
