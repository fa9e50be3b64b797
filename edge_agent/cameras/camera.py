"""One camera as the agent sees it: starts its process, watches it, ends it, starts it again.

A thread of its own does all that; the agent takes the newest picture that a trigger chose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from edge_agent.cameras import ring
from edge_agent.cameras.link import Beat, Handover, Job, receive, send
from edge_agent.cameras.mask import Mask
from edge_agent.cameras.states import ADVICE
from edge_agent.cameras.triggers import MOTION, Trigger, Triggers
from edge_agent.cameras.watch import PATIENCE, Patience, Watch
from edge_agent.metrics import Metrics
from edge_agent.sources import Capture
from edge_agent.sources.address import Address
from edge_agent.sources.turns import Turns
from protos.errors import BridgeError, MaskError, SourceError
from protos.process import children
from protos.process.files import expanded
from protos.process.logs import Logger
from protos.process.memory import resident_bytes

PROCESS = "edge_agent.cameras.process"
MAX_FPS = 5.0
"""Pictures a second that are taken from a live camera unless `fps` says otherwise."""
_LOOK_S = 0.2
_END_S = 5.0
_STEADY_S = 60.0
_LAST_WORDS = 2000


class Run:
    """One process of a camera, with its socket and its shared memory.

    Args:
        job: what it has to do.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, job: Job) -> None:
        self._job, self.masks = job, job.masks
        self._words = b""
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = ring.create()
        try:
            self.process = subprocess.Popen(
                children.command(PROCESS, str(theirs.fileno()), str(memory)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), memory),
                start_new_session=True,  # a Ctrl-C in the terminal is for the agent alone
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            os.close(memory)
            self.link.close()
            raise
        finally:
            theirs.close()
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self.link.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self.link, select.POLLIN)
        self._poll.register(self.process.stderr, select.POLLIN)
        self._ring = ring.Ring(memory, writable=False)
        with contextlib.suppress(OSError):  # it has ended already: `messages` finds out
            send(self.link, dataclasses.asdict(job))

    def messages(self, timeout_s: float) -> list[dict[str, Any]] | None:
        """Wait for news and return it; None once the process has closed its end."""
        assert self.process.stderr is not None
        words = self.process.stderr
        ready = {number for number, _ in self._poll.poll(1000 * timeout_s)}
        if words.fileno() in ready and not self._hear():
            self._poll.unregister(words)
        found: list[dict[str, Any]] = []
        while self.link.fileno() in ready:
            try:
                message = receive(self.link)
            except BlockingIOError:
                break
            except ConnectionResetError:  # it ended with messages unread; its own still wait here
                continue
            except (OSError, ValueError):
                message = None
            if message is None:
                return found or None
            found.append(message)
        return found

    def give_back(self, slot: int) -> None:
        """Let the process fill a slot again."""
        with contextlib.suppress(OSError):
            send(self.link, {"free": slot})

    def read(self, what: Handover) -> bytes:
        """Copy a picture's samples out of the shared memory."""
        return self._ring.read(what.slot, what.width, what.height)

    def end(self) -> str:
        """Kill the process and wait for its end; returns its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(_END_S)
        assert self.process.stderr is not None
        self._hear()
        self.process.stderr.close()
        return self._job.address.scrub(self._words.decode(errors="replace").strip())

    def _hear(self) -> bool:
        """Take what the process wrote to standard error; false once it can write no more."""
        assert self.process.stderr is not None
        with contextlib.suppress(OSError):
            while words := os.read(self.process.stderr.fileno(), 1 << 16):
                self._words = (self._words + words)[-_LAST_WORDS:]
            return False
        return True


@dataclass(frozen=True)
class Waiting:
    """A picture that nobody has taken yet, and the trigger that chose it."""

    run: Run
    what: Handover
    number: int
    trigger: Trigger


class Camera:
    """A camera or video file in a process of its own.

    Args:
        address: where it is.
        name: stands in records, logs and metrics.
        masks: regions that may never be seen, as the setting has them.
        rules: when a picture is taken.
        patience: when the process counts as broken.

    Attributes:
        state: one of `states.STATES`.
        cause: of a state that is a failure, in words.
        ended: it gives no more pictures.
        endless: true, as nobody knows its length.
    """

    endless = True

    def __init__(
        self,
        address: Address,
        name: str = "",
        masks: Sequence[str] = (),
        rules: Sequence[Trigger] = (),
        patience: Patience = PATIENCE,
    ) -> None:
        options = address.options
        self.address, self.masks, self.rules = address, tuple(masks), tuple(rules)
        self.name = name or str(options.get("name", "camera"))
        self.live = address.scheme != "file" or bool(options.get("realtime"))
        given = {key: options[key] for key in ("open_s", "stall_s", "frozen_s") if key in options}
        self.patience = dataclasses.replace(patience, **given)
        self.state, self.cause, self.ended = "waiting", "", False
        self.metrics, self.log = Metrics(), None
        self._triggers = Triggers(self.rules)
        self._pending: deque[Waiting] = deque()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._wake: Callable[[], None] = lambda: None
        self._error: BridgeError | None = None
        self._number = 0
        self._newest_s = 0.0
        self._told = ""
        self._counted: Counter[str] = Counter()

    # ------------------------------------------------------------------ the agent's side

    def __iter__(self) -> Iterator[Capture]:
        """The pictures of this camera alone; ends after `close`, or with the file."""
        return iter(Turns([self]))

    def __len__(self) -> int:
        """See `Source`: unknown."""
        return 0

    def attach(self, metrics: Metrics, log: Logger) -> None:
        """Count and log there from now on; before `start`."""
        self.metrics, self.log = metrics, log

    def start(self, wake: Callable[[], None]) -> None:
        """Start seeing; `wake` is called, from another thread, when `take` may have something."""
        self._wake = wake
        age = self.metrics.camera_age.labels(self.name)
        self._newest_s = time.monotonic()  # until the first picture: since the start
        age.set_function(lambda: time.monotonic() - self._newest_s)
        self._thread = threading.Thread(target=self._work, name=f"camera {self.name}", daemon=True)
        self._thread.start()

    def request(self, camera: str = "") -> None:
        """Take the next picture, whatever the triggers say."""
        with self._lock:
            self._triggers.request()

    def change(self, masks: Sequence[str], rules: Sequence[Trigger]) -> None:
        """Other masks and triggers from now on; other masks start the process again.

        No picture that was made with the old masks is taken any more.
        """
        with self._lock:
            if list(rules) != list(self.rules):
                self.rules, self._triggers = tuple(rules), Triggers(tuple(rules))
            if tuple(masks) != self.masks:
                self.masks = tuple(masks)
                self._pending.clear()  # their process ends, and the slots with it

    def take(self) -> Capture | None:
        """The newest picture that a trigger chose and nobody has taken yet; None for none."""
        with self._lock:
            if not self._pending:
                error, self._error = self._error, None
                return None if error is None else self._failed(error)
            waiting = self._pending.popleft()
            what = waiting.what
            samples = waiting.run.read(what)
            waiting.run.give_back(what.slot)
        return Capture(
            name=f"{self.name}-{waiting.number:06d}",
            picture=Image.frombuffer("RGB", (what.width, what.height), samples, "raw", "RGB", 0, 1),
            captured_at=what.at,
            priority=waiting.trigger.priority,
            camera=self.name,
            captured_monotonic_s=what.monotonic_s,
            number=waiting.number,
            trigger=waiting.trigger,
        )

    @property
    def broken(self) -> str:
        """What ended if this camera's thread failed, so that nobody starts its process again."""
        thread = self._thread
        failed = thread is not None and not thread.is_alive() and not self.ended
        return f"camera {self.name}" if failed else ""

    @property
    def done(self) -> bool:
        """Whether `take` will never return anything again."""
        with self._lock:
            return self.ended and not self._pending and self._error is None

    def close(self) -> None:
        """End the process and the thread; pictures that nobody took are dropped."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._pending.clear()
            self.ended = True
        self._wake()

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        failures = 0
        while not self._closing.is_set():
            began = time.monotonic()
            state, cause = self._once()
            if self._closing.is_set():
                break
            if not state:  # other masks
                continue
            if self.address.scheme == "file":
                if not self.address.options.get("loop"):
                    if state != "ended":
                        failure = f"source {self.address.shown!r}: {state}: {cause}"
                        self._error = SourceError(failure)
                    self._enter(state, cause)
                    break
                if state == "ended":
                    continue
            failures = 0 if time.monotonic() - began >= _STEADY_S else failures + 1
            self.metrics.camera_restarts.labels(self.name, state).inc()
            self._enter(state, cause)
            self._closing.wait(self.patience.pause_s(failures, state))
        with self._lock:
            self.ended = True
        self._wake()

    def _once(self) -> tuple[str, str]:
        """One process from its start to its end: the state it ended in, and the cause."""
        self._counted = Counter()
        try:
            Mask.of(self.masks)
            run = Run(self._job())
        except MaskError as error:
            return "mask", str(error)
        except OSError as error:
            return "crashed", f"its process cannot be started: {error}"
        if self.state in ("waiting", "seeing"):  # a failure is shown until a picture comes
            self._enter("starting")
        watch = Watch(self.patience, self.live, time.monotonic())
        state, cause = "", ""
        try:
            while not (state or self._closing.is_set() or run.masks != self.masks):
                state, cause = self._listen(run, watch)
        finally:
            words = run.end()
        if state == "crashed":
            cause = f"{_how(run.process.returncode)}{'; it said: ' + words if words else ''}"
        return state, cause

    def _listen(self, run: Run, watch: Watch) -> tuple[str, str]:
        """Take what the process says; how it ended, or nothing while it goes on."""
        for message in (news := run.messages(_LOOK_S)) or ():
            try:
                if "frame" in message:
                    self._arrive(run, Handover(**message["frame"]))
                elif "beat" in message:
                    beat = Beat(**message["beat"])
                    watch.beat(beat, time.monotonic())
                    self._count(beat)
                elif "failed" in message:
                    return str(message["failed"]), str(message["cause"])
                elif message.get("ended"):
                    return "ended", ""
            except (TypeError, ValueError, KeyError) as error:
                return "crashed", f"its process sent nonsense: {error}"
        if news is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(_END_S)
            return "crashed", ""
        verdict = watch.verdict(time.monotonic(), resident_bytes(run.process.pid))
        return verdict, _WHY.get(verdict, "")

    def _arrive(self, run: Run, what: Handover) -> None:
        """A picture came: keep it if a trigger chose it, in place of an older one."""
        self._newest_s = what.monotonic_s
        self.metrics.camera_frames.labels(self.name).inc()
        self.metrics.camera_motion.labels(self.name).set(what.motion_us / 1e6)
        with self._lock:
            if run.masks != self.masks:
                run.give_back(what.slot)
                return
            self._number += 1
            now = what.monotonic_s
            if not self.live and what.media_s is not None:
                now = what.media_s
            trigger = self._triggers.judge(now, what.motion)
            older = self._pending[-1] if self._pending and self.live else None
            if trigger is None and older is not None and older.trigger.kind != MOTION:
                trigger = older.trigger  # chosen, but not taken yet: a newer one is better
            if trigger is None:
                run.give_back(what.slot)
                self._drop("no_trigger")
                return
            if older is not None:
                self._pending.pop()
                older.run.give_back(older.what.slot)
                self._drop("newer")
            self._pending.append(Waiting(run, what, self._number, trigger))
        if self.state != "seeing":
            self._enter("seeing", size=f"{what.width}x{what.height}")
        self._wake()

    def _count(self, beat: Beat) -> None:
        """Count what the process has dropped since its last beat."""
        for cause, number in beat.dropped.items():
            self._drop(cause, number - self._counted[cause])
            self._counted[cause] = number

    def _drop(self, cause: str, number: int = 1) -> None:
        self.metrics.camera_drops.labels(self.name, cause).inc(number)

    def _enter(self, state: str, cause: str = "", **more: object) -> None:
        """Change the state; a camera that fails the same way again and again is logged once."""
        self.metrics.camera_state.labels(self.name, self.state).set(0)
        self.metrics.camera_state.labels(self.name, state).set(1)
        self.cause, self.state = cause, state
        if self.log is None or state in ("starting", self._told):
            return
        self._told = state
        said = {"camera": self.name, "state": state, "address": self.address.shown, **more}
        if cause:
            self.log.warning("camera", **said, cause=cause, advice=ADVICE.get(state, ""))
        else:
            self.log.info("camera", **said)

    def _job(self) -> Job:
        options = self.address.options
        fps = options.get("fps", MAX_FPS if self.live else 0.0)
        patience = self.patience
        return Job(
            self.address, self.masks, patience.open_s, patience.stall_s, float(fps), self.live
        )

    def _failed(self, error: BridgeError) -> Capture:
        return Capture(self.name, None, time.time(), error=error, camera=self.name)


_WHY = {
    "silent": "no picture came in time",
    "slow": "fewer than half the pictures that came at first",
    "frozen": "exactly the same picture over and over",
    "memory": "its process took more memory than it may",
}


def _how(code: int | None) -> str:
    if code is None:
        return "its process does not end, though killed"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def open_source(uri: str) -> Camera:
    """Open `csi://0`, `v4l2:///dev/video0`, `rtsp://…` or `file://clip.mp4`.

    A camera that is not there is waited for; a file has to be there.

    Raises:
        SourceError: the address or an option cannot be used, or there is no such file.
    """
    address = Address.parse(uri)
    if address.scheme == "file":
        path = expanded(Path(address.place))
        if not path.is_file():
            raise SourceError(f"source {address.shown!r}: there is no such file: {path}")
        address = dataclasses.replace(address, place=str(path))
    return Camera(address)
