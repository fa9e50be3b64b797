"""A device of the bench: the product's agent, over cameras or over captures at given times.

`python -m benchmarks.edge.device JOB` in a namespace. It prints a line when it begins to watch and,
with given captures, waits for one; then a line for each answer, and one at its end.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_agent import settings
from edge_agent.assemble import run_agent, state_directory
from edge_agent.exported_model import ExportedModel
from edge_agent.output import Answered, RecordWriter
from edge_agent.record import AnswerRecord
from edge_agent.sight import Seen, Sight
from edge_agent.sources import Capture, Source, open_source
from edge_agent.sources.opened import open_sources
from edge_agent.spool.prepare import Kept, spool_folder
from projector.models.pictures import read


@dataclass(frozen=True)
class Due:
    """A capture that is due at a time.

    Attributes:
        at_s: seconds after the beginning.
        picture: number of the picture.
        question: asked about it.
        ago_s: how long before now it was made, for a backlog; 0: when it is due.
    """

    at_s: float
    picture: int
    question: str
    ago_s: float = 0.0


@dataclass(frozen=True)
class DeviceJob:
    """What a device does.

    Attributes:
        settings: of the agent, by name.
        pictures: folder with 0.png, 1.png, ….
        captures: in order; empty: the settings name the sources.
        newest: a capture that waits gives way to the next one, as a camera's does.
        name: stands before a capture's number in records.
        see_every: the small model sees every so-manieth picture; the others take what it saw last.
        say_every: one of so many records is told.
    """

    settings: dict[str, Any]
    pictures: str = ""
    captures: Sequence[Due] = ()
    newest: bool = False
    name: str = "capture"
    see_every: int = 1
    say_every: int = 1

    def write(self, path: Path) -> None:
        """To a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> DeviceJob:
        """From that file."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "captures": [Due(**due) for due in told["captures"]]})


@dataclass
class Paced:
    """A source whose captures come at their times.

    Attributes:
        job: names them.
        go: waits for the beginning.
        skipped: captures that gave way to newer ones.
    """

    job: DeviceJob
    go: Callable[[], None]
    skipped: int = 0
    endless: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def __iter__(self) -> Iterator[Capture]:
        """Yield each capture when it is due."""
        folder = Path(self.job.pictures)
        shown = {due.picture for due in self.job.captures}
        pictures = {number: read(folder / f"{number}.png") for number in shown}
        if not self._stopped.is_set():
            self.go()
        began, captures = time.monotonic(), self.job.captures
        for number, due in enumerate(captures):
            at = began + due.at_s
            if self._stopped.wait(max(0.0, at - time.monotonic())):
                return
            later = captures[number + 1] if number + 1 < len(captures) else None
            if self.job.newest and later and began + later.at_s <= time.monotonic():
                self.skipped += 1
                continue
            yield Capture(
                f"{self.job.name}-{number}",
                pictures[due.picture],
                time.time() - due.ago_s,
                (due.question,),
                captured_monotonic_s=at,
            )

    def __len__(self) -> int:
        return len(self.job.captures)

    def request(self) -> None:
        """Do nothing: every capture has its time."""

    def close(self) -> None:
        """End the iteration."""
        self._stopped.set()


class ModelClock:
    """CPU time that the model's own graphs take, on the threads that call them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def install(self) -> None:
        """Time every run of ONNX Runtime from now on; right with one thread (`threads` 1)."""
        import onnxruntime

        run, clock = onnxruntime.InferenceSession.run, self

        def timed(session: Any, *given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return run(session, *given, **named)
            finally:
                clock.seconds += time.thread_time() - began

        onnxruntime.InferenceSession.run = timed


def see_seldom(every: int) -> None:
    """Let the small model see every so-manieth picture only, from now on."""
    see = ExportedModel.see
    kept: list[Sight] = []
    count = itertools.count()

    def seldom(model: ExportedModel, seen: Seen) -> Sight:
        if next(count) % every == 0:
            kept[:] = [see(model, seen)]
        return kept[0]

    setattr(ExportedModel, "see", seldom)  # noqa: B010 (mypy refuses the assignment)


def main(path: Path) -> int:
    """Run the agent; returns its exit code."""
    job = DeviceJob.read(path)
    chosen = settings.load(job.settings, environ={})
    model = ModelClock()
    model.install()
    if job.see_every > 1:
        see_seldom(job.see_every)
    count = itertools.count()
    dues = {f"{job.name}-{number}": due for number, due in enumerate(job.captures)}
    began = [0.0]

    def go() -> None:
        _say(watching=True)
        sys.stdin.readline()
        began[0] = time.monotonic()

    paced = Paced(job, go)
    source: Source = paced if job.captures else open_sources(chosen, open_source)
    writer = RecordWriter(chosen.output)

    def on_record(record: AnswerRecord) -> None:
        writer.write(record)
        if next(count) % job.say_every:
            return
        due = dues.get(record.capture)
        _say(
            capture=record.capture,
            due_s=None if due is None else due.at_s,
            took_s=None if due is None else time.monotonic() - began[0] - due.at_s,
            answer=record.answer,
            error=record.error["name"] if record.error else None,
            point=record.point,
            message_bytes=record.message_bytes,
            edge_ms=record.edge_ms,
            server_ms=record.server_ms.get("total", 0.0),
            attempts=record.attempts,
            at_s=time.monotonic(),
            cpu_s=time.process_time(),
            model_s=model.seconds,
        )

    folder = spool_folder(chosen, source, state_directory(chosen))
    if not job.captures:
        _say(watching=True)
    try:
        kept = None if folder is None else Kept(folder, writer)
        code = run_agent(chosen, source, on_record, Answered(), kept, lambda: chosen)
    finally:
        writer.close()
    _say(ended=code, skipped=paced.skipped, torch="torch" in sys.modules)
    return code


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
