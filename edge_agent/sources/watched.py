"""A folder that is watched: its files, then each new or replaced one, as soon as it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.sources import Capture
from edge_agent.sources.taken import Mark, TakenFiles
from edge_agent.sources.tries import Tries
from edge_agent.sources.turns import Turns
from projector.models.pictures import MAX_PIXELS
from protos.process.folders import list_files, open_file
from protos.process.logs import Logger

LOOK_S = 0.5
"""Time between two looks; a file that changed in between is not whole yet."""
_LOOKS = 8
"""Looks at a file that cannot be read before it counts as broken."""


class WatchedFolder:
    """New files of a folder, in the order in which they were written.

    A file counts as whole when it did not change between two looks and nobody has it open for
    writing. A file that is replaced under its name comes again. One that is gone before its turn is
    left out.

    Args:
        path: the folder; it may come and go.
        read: makes a file's capture; is told the most pixels to decode, and `tries`.
        beside: names of files that are passed over.

    Attributes:
        change: applied to every capture: names it, paints masks.
        max_pixels: most pixels of a picture that are decoded.
        tries: knows which files ended a start of the agent.
        endless: true.
        done: whether it was closed.
    """

    endless = True

    def __init__(
        self, path: Path, read: Callable[[Path, int, Tries], Capture], beside: Sequence[str] = ()
    ) -> None:
        self.change: Callable[[Capture], Capture] = lambda capture: capture
        self.max_pixels, self.tries = MAX_PIXELS, Tries()
        self.done = False
        self._path, self._read, self._beside = path, read, beside
        self._memory: TakenFiles | None = None
        self._given: tuple[Path, Mark] | None = None
        self._whole: deque[tuple[Path, Mark]] = deque()
        self._marks: dict[Path, Mark] = {}
        self._taken: dict[Path, Mark] = {}
        self._again: deque[tuple[Path, Mark]] = deque()
        self._looks: Counter[tuple[Path, Mark]] = Counter()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._log: Logger | None = None
        self._gone = False

    def __iter__(self) -> Iterator[Capture]:
        """The captures of this folder alone; ends after `close`."""
        return iter(Turns([self]))

    def __len__(self) -> int:
        """See `Source`: unknown."""
        return 0

    def remember(self, folder: Path) -> None:
        """Remember on the disk which files were taken, and give none again; before `start`.

        A file counts once the next one is asked for, or after `finished`: an agent that is killed,
        or ends with an error, before gets it again.

        Args:
            folder: where to.
        """
        self._memory = TakenFiles(folder, self._path)

    def attach(self, metrics: Metrics, log: Logger) -> None:
        """Log there from now on."""
        self._log = log

    def start(self, wake: Callable[[], None]) -> None:
        """See `Member`."""
        self._thread = threading.Thread(
            target=self._watch, args=(wake,), name=f"folder {self._path}", daemon=True
        )
        self._thread.start()

    def take(self) -> Capture | None:
        """See `Member`."""
        self._note()
        while self._whole:
            path, mark = self._whole.popleft()
            if mark_of(path) != mark:
                continue  # gone, or changed again: the next look finds it
            capture = self._read(path, self.max_pixels, self.tries)
            if mark_of(path) != mark:
                continue
            passing = capture.error is not None and not capture.set_aside
            if passing and self._looks[path, mark] < _LOOKS:
                self._again.append((path, mark))  # perhaps its writer only paused
                continue
            self._given = path, mark
            return self.change(capture)
        return None

    def request(self, camera: str = "") -> None:
        """Do nothing: every file is taken anyway."""

    def close(self) -> None:
        """See `Member`."""
        self.done = True  # before the thread's last call of `wake`
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def finished(self) -> None:
        """Every capture that was given has been worked on: the run ends well."""
        self._note()

    def _was_taken(self, path: Path, mark: Mark) -> bool:
        before = self._memory.marks.get(path.name) if self._memory is not None else None
        return mark in (self._taken.get(path), before)

    def _note(self) -> None:
        """The file that was given last has been worked on."""
        given, self._given = self._given, None
        if given is not None and self._memory is not None:
            self._memory.add(given[0].name, given[1])

    def _watch(self, wake: Callable[[], None]) -> None:
        while not self._closing.is_set():
            self._look()
            if self._whole:
                wake()
            self._closing.wait(LOOK_S)
        wake()

    def _look(self) -> None:
        """Find the files that are whole now and were not taken."""
        try:
            files = list_files(self._path).files
        except OSError as error:
            if not self._gone and self._log is not None:
                self._log.warning("folder", folder=str(self._path), cause=str(error))
            self._gone = True
            return
        self._gone = False
        before, self._marks = self._marks, {}
        whole = []
        while self._again:
            path, mark = self._again.popleft()
            self._looks[path, mark] += 1
            self._taken.pop(path, None)
        for path in files:
            if path.name in self._beside:
                continue
            now = mark_of(path)
            if now is None:
                continue
            self._marks[path] = now
            same = before.get(path) == now
            if same and not self._was_taken(path, now) and not being_written(path):
                self._taken[path] = now
                whole.append((path, now))
        self._taken = {path: mark for path, mark in self._taken.items() if path in self._marks}
        if self._memory is not None:
            self._memory.tidy({path.name for path in self._marks})
        for key in [key for key in self._looks if self._marks.get(key[0]) != key[1]]:
            del self._looks[key]
        self._whole.extend(sorted(whole, key=lambda found: (found[1][1], found[0])))


def mark_of(path: Path) -> Mark | None:
    """Which file a name stands for now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def being_written(path: Path) -> bool:
    """Whether a process has the file open for writing; false if the system does not tell.

    The kernel refuses a read lease on such a file. It tells the owner of the file and root.
    """
    with contextlib.suppress(OSError), open_file(path) as file:
        # By default the signal for "somebody opens it now" would end this process.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
