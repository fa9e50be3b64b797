"""The bundles that an engine has loaded; a thread loads further ones while steps go on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from cloud_server.engine import load
from cloud_server.engine.jobs import Load, Loaded, NotLoaded, Offer
from cloud_server.engine.precision import backend_of
from cloud_server.settings import Settings
from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from projector.serving.backends import Backend
from protos.errors import BridgeError, BundleCorruptError, BundleFormatError
from protos.layout import KVLayout
from protos.process.memory import resident_bytes

_log = structlog.get_logger(component="engine")


@dataclass(frozen=True)
class _Read:
    """A bundle that the thread has read, or its error."""

    asked: Load
    bundle: Bundle | None
    backend: Backend | None
    error: BridgeError | None
    memory_bytes: int
    seconds: float


class LoadedBundles:
    """The bundles of an engine by digest, each with its backend, which those of a hub share.

    Args:
        settings: backend, device, and trusted signers.
        wake: called in the thread when a bundle was read.
    """

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self._settings, self._wake = settings, wake
        self._held: dict[str, tuple[Bundle, Backend]] = {}
        self._wanted: deque[Load] = deque()
        self._read: deque[_Read] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._threads = 1
        self._target: KVLayout | None = None

    def open(self, bundles: Sequence[Bundle], target: KVLayout, threads: int) -> list[Offer]:
        """Open the bundles that the engine starts with.

        Args:
            bundles: checked against the live model.
            target: the live model's cache layout.
            threads: CPU threads of each backend.

        Raises:
            ConfigError, BundleFormatError: the backend is not available, or cannot run one.
        """
        self._target, self._threads = target, threads
        for bundle in bundles:
            self._held[bundle.digest] = self._with_backend(bundle)
        return [load.offer(bundle) for bundle in bundles]

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def __getitem__(self, digest: str) -> tuple[Bundle, Backend]:
        return self._held[digest]

    def get(self, digest: str) -> Bundle | None:
        """The bundle with this digest, if it is loaded."""
        found = self._held.get(digest)
        return found[0] if found is not None else None

    @property
    def ready(self) -> bool:
        """Whether `take` has anything."""
        return bool(self._read)

    def load(self, asked: Load) -> None:
        """Start to load a bundle in the thread; `take` returns the result."""
        with self._lock:
            self._wanted.append(asked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bundles", daemon=True)
                self._thread.start()

    def unload(self, digest: str) -> None:
        """Unload a bundle."""
        if self._held.pop(digest, None) is not None:
            _log.info("bundle unloaded", digest=digest)

    def take(self) -> Iterator[Offer | Loaded | NotLoaded]:
        """Serve each bundle that was read; yields its offer and `Loaded`, or `NotLoaded`."""
        while self._read:
            read = self._read.popleft()
            asked = read.asked
            if read.bundle is None or read.backend is None:
                error = read.error or BundleFormatError("the bundle was not read")
                yield NotLoaded(asked.digest, error.code, error.message)
                continue
            self._held.setdefault(asked.digest, (read.bundle, read.backend))
            _log.info("bundle loaded", digest=asked.digest, seconds=round(read.seconds, 3))
            yield load.offer(read.bundle)
            yield Loaded(asked.digest, read.memory_bytes, read.seconds)

    def _with_backend(self, bundle: Bundle) -> tuple[Bundle, Backend]:
        """A bundle and what runs its cloud half; edge halves of one hub share both."""
        held = list(self._held.values())
        for other, backend in held:
            if bundle.same_half(other):
                return bundle.sharing([other]), backend
        settings = self._settings
        return bundle, bundle.backend(
            backend_of(settings),
            threads=self._threads,
            device=settings.backend_device,
            plans=settings.plans,
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                asked = self._wanted.popleft()
            self._read.append(self._read_one(asked))
            self._wake()

    def _read_one(self, asked: Load) -> _Read:
        started, before = time.perf_counter(), resident_bytes()
        bundle: Bundle | None = None
        backend: Backend | None = None
        error: BridgeError | None = None
        try:
            # Whom we trust may have changed since a bundle was loaded.
            held = None if asked.trusted_keys else self._held.get(asked.digest)
            bundle, backend = held or self._open(asked)
        except BridgeError as typed:
            error = typed
        except Exception as other:  # a library's own error must not end the thread
            _log.exception("a bundle could not be loaded", digest=asked.digest)
            error = BundleFormatError(f"{asked.path}: {type(other).__name__}: {other}")
        took = max(0, resident_bytes() - before)
        return _Read(asked, bundle, backend, error, took, time.perf_counter() - started)

    def _open(self, asked: Load) -> tuple[Bundle, Backend]:
        """Read every byte once, check it, and open it.

        Raises:
            BridgeError: it cannot be served.
            BundleCorruptError: the folder now holds another bundle.
        """
        keys = asked.trusted_keys
        trusted = TrustedKeys.load(Path(keys)) if keys else None
        folder = Path(asked.path)
        target = self._target
        assert target is not None, "`open` comes first"
        bundle = Bundle.load(folder, Bundle.peek(folder).source, target, trusted=trusted)
        if bundle.digest != asked.digest:
            raise BundleCorruptError(
                f"{folder} holds the bundle {bundle.digest[:12]}…, not {asked.digest[:12]}…: it "
                "was replaced on disk; add what is there as a version of its own"
            )
        return self._with_backend(bundle)
