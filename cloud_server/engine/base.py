"""The base of all engines: takes jobs, works in steps, emits events of each job.

A step is the smallest piece of work between two looks at the inbox, so that jobs can join a running
batch. The base uses no tensor library, socket or thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from cloud_server.engine.jobs import BundleEvent, Job, JobEvent, Load, Offer, Status
from cloud_server.engine.store import Name

Emit = Callable[[JobEvent], None]
"""Takes each event the moment it happens; they leave together, after the step or at `flush`."""


class Engine(ABC):
    """Base of the family.

    The calls, in order: `prepare`, if a spare makes engines by fork; `load`; then `submit`,
    `cancel`, `forget`, `load_bundle`, `unload_bundle` and `step`, over and over.

    A job ends with exactly one of `Accepted` (if it is a frame without a question), `Answered`,
    `Compressed`, `PartWanted`, `Measured`, `Failed` or `Dropped`.

    Attributes:
        wake: called by an engine that works between steps, from any thread, when there is a step
            to do.
        news: called with the result of each load of a bundle.
        flush: sends the events so far, during a long step.
    """

    wake: Callable[[], None] = staticmethod(lambda: None)
    news: Callable[[BundleEvent], None] = staticmethod(lambda _: None)
    flush: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def prepare(self) -> None:
        """Do the part of `load` whose result a fork can share.

        Called at most once, in a thread that ends before the fork; what is made here may hold no
        thread, socket or device. `load` is then called in the fork.

        Raises:
            BridgeError: as `load`.
        """

    @abstractmethod
    def load(self) -> list[Offer]:
        """Load the model and every bundle against it.

        Raises:
            BridgeError: the model, a bundle or a backend cannot be used; numbered, with the reason.
        """

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job; it is worked on by later steps."""

    @abstractmethod
    def cancel(self, job: int, begun: bool) -> None:
        """Drop a job, with `Dropped` as its last event; a job that has ended is left alone.

        Args:
            job: its id.
            begun: drop it even if it has begun; its scene stays held if it was accepted.
        """

    @abstractmethod
    def forget(self, session: str) -> None:
        """Let go of a session's scenes."""

    @abstractmethod
    def drop(self, name: Name, base: bool) -> None:
        """Let go of one scene.

        Args:
            name: its session and frame number.
            base: keep its latents, on which later frames may build.
        """

    @abstractmethod
    def load_bundle(self, asked: Load) -> None:
        """Load one more bundle while steps go on.

        A later step calls `news` with its `Offer` and `Loaded`, or with `NotLoaded`.
        """

    @abstractmethod
    def unload_bundle(self, digest: str) -> None:
        """Unload a bundle; jobs that name it fail from now on."""

    @abstractmethod
    def step(self) -> None:
        """Do the next piece of work; called while `busy`. A bad job ends in `Failed`."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    @property
    @abstractmethod
    def model_id(self) -> str:
        """The loaded model's id."""

    @abstractmethod
    def status(self) -> Status:
        """The present load; called from another thread."""
