"""A service, a narrow link to it, and devices behind that link: the product's own on both sides."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.edge.device import DeviceJob, Due
from benchmarks.edge.narrow import Narrow, Shape, narrow
from benchmarks.serve.identities import Identities
from benchmarks.serve.site import Site, site, stubbed
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from projector.codec.answers import same_answer
from projector.commands import cli as projector
from protos.errors import BridgeError
from protos.process import children
from reference.demo.halves import EDGE_MODEL, ENVIRONMENT, MAX_NEW_TOKENS
from reference.demo.testset import TestSet

_END_S = 60.0
_DAY_S = 86400
_EVERYWHERE = ("--host", "0.0.0.0")


@dataclass
class RunningDevice:
    """A running device.

    Attributes:
        process: of its agent.
        log: file with its standard error.
        answers: what it said of each record so far.
        ended: what it said at its end; empty before.
    """

    process: subprocess.Popen[str]
    log: Path
    answers: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] = field(default_factory=dict)
    _watching: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def go(self) -> float:
        """Wait until it watches, then let its captures come; returns when, seconds, monotonic.

        Raises:
            BridgeError: it ended before.
        """
        self.watching()
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return time.monotonic()

    def watching(self) -> None:
        """Wait until it watches.

        Raises:
            BridgeError: it ended before.
        """
        while not self._watching.wait(0.1):
            if not self._reader.is_alive():
                raise BridgeError(f"a device ended early: see {self.log}")

    def wait(self, timeout_s: float) -> None:
        """Wait for its end.

        Raises:
            BridgeError: it has not ended in time, or ended badly.
        """
        self._reader.join(timeout_s)
        if self._reader.is_alive() or not self.ended:
            raise BridgeError(f"a device did not end as it should: see {self.log}")

    def stop(self) -> None:
        """End it as systemd would; frames that wait stay on the disk."""
        self.process.send_signal(signal.SIGTERM)
        self.wait(_END_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "ended" in told:
                self.ended = told
            elif "watching" in told:
                self._watching.set()
            else:
                self.answers.append(told)


@dataclass
class Stage:
    """Where devices are measured.

    Attributes:
        folder: for states, outputs and logs.
        link: to the service.
        site: the service.
        model: an edge export, run without torch.
    """

    folder: Path
    link: Narrow
    site: Site
    model: Path

    def settings(self, name: str, number: int = 0, **more: Any) -> dict[str, Any]:
        """Settings of an enrolled device whose state is kept under its name.

        Args:
            name: of its folder.
            number: which of the service's devices it is.
            more: further settings.
        """
        home = self.folder / name
        known = self.site.identities.devices[number]
        (home / "state").mkdir(parents=True, exist_ok=True)
        file = IdentityFile.under(home / "state")
        if file.load() is None:
            now_s = int(time.time())
            file.save(
                Identity(
                    known.tenant,
                    known.device,
                    "",
                    known.key.decode(),
                    known.chain.decode(),
                    self.site.identities.authority.trusted_pem.decode(),
                    now_s,
                    now_s + 30 * _DAY_S,
                )
            )
        port = self.site.at.address.rpartition(":")[2]
        return {
            "model": str(self.model),
            "threads": 1,
            "server": [f"{self.link.inside.address}:{port}"],
            "server_name": "localhost",
            "state_dir": str(home / "state"),
            "output": str(home / "answers.jsonl"),
            "max_new_tokens": MAX_NEW_TOKENS,
            "progress": False,
            "log_level": "warning",
            **more,
        }

    @contextmanager
    def device(self, job: DeviceJob) -> Iterator[RunningDevice]:
        """Start a device behind the link; it ends with the block."""
        home = Path(job.settings["state_dir"]).parent
        job.write(home / "job.json")
        command = children.command("benchmarks.edge.device", str(home / "job.json"))
        with (home / "agent.log").open("w") as log:
            process = subprocess.Popen(
                self.link.inside.command(*command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
            )
        try:
            yield RunningDevice(process, home / "agent.log")
        finally:
            process.kill()
            process.wait()


@contextmanager
def stage(
    folder: Path, shape: Shape, devices: int = 1, seed: int = 0, stub: bool = False
) -> Iterator[Stage]:
    """Start a service behind a link.

    Args:
        folder: emptied.
        shape: of the link.
        devices: that the service knows.
        seed: of the link's losses.
        stub: an engine that answers at once in place of the reference's large model.

    Raises:
        ConfigError: this needs root, iproute2 and /dev/net/tun.
    """
    model = exported(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    identities = Identities.make(folder / "directory", devices)
    begun = (
        stubbed(folder, identities, "0.0.0.0") if stub else site(folder, identities, *_EVERYWHERE)
    )
    with narrow(shape, seed) as link, begun as running:
        yield Stage(folder, link, running, model)


def exported(folder: Path) -> Path:
    """The reference's edge model as a device without torch runs it; made once."""
    made = folder / "export"
    if not (made / "export.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        if projector.main(["export-edge", str(EDGE_MODEL), str(made)]):
            raise BridgeError("the reference model cannot be exported")
    return made


def pictures(folder: Path, test: TestSet) -> str:
    """Write the pictures of a test set where a device finds them; returns the folder."""
    made = folder / "pictures"
    made.mkdir(exist_ok=True)
    for number, each in enumerate(test.pictures):
        each.save(made / f"{number}.png")
    return str(made)


def rounds(test: TestSet, times_s: Sequence[float]) -> list[Due]:
    """Captures at these times, over the questions of a test set in turn."""
    asked = test.asked
    return [
        Due(at_s, asked[i % len(asked)].picture, asked[i % len(asked)].text)
        for i, at_s in enumerate(times_s)
    ]


def right(test: TestSet, answer: Mapping[str, Any]) -> bool:
    """Whether what a device said of a capture of `rounds` is the true answer."""
    number = int(answer["capture"].rpartition("-")[2])
    truth = test.asked[number % len(test.asked)].truth
    return answer["answer"] is not None and same_answer(answer["answer"], truth)


def clip(path: Path, fps: int, test: TestSet) -> Path:
    """A film of a test set's pictures, each for a second, for a camera's process to read."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = test.pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in test.pictures:
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), "rgb24")
            for packet in (found for _ in range(fps) for found in stream.encode(frame)):
                container.mux(packet)
        container.mux(stream.encode())
    return path
