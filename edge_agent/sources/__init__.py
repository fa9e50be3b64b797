"""Where captures come from: a family of sources, found by the scheme of a URI.

A scheme's factory is an entry point of the group `neural_bridge.sources`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from PIL import Image

from edge_agent.cameras.triggers import Trigger
from edge_agent.sources.address import shown
from protos.errors import BridgeError, SourceError

GROUP = "neural_bridge.sources"
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):")


@dataclass(frozen=True)
class Capture:
    """One picture or text as its source made it, or the reason why there is none.

    Attributes:
        name: unique within its source; a file's name, a camera's frame label.
        picture: RGB, or another mode of 8 bits a sample, which is laid over white; None for a text
            or an error.
        captured_at: seconds since the Unix epoch.
        questions: the source's own questions about it; may be empty.
        error: set exactly when there is neither picture nor text.
        text: for a model that reads texts.
        priority: of its requests, one of `protos.calls.PRIORITIES` by its number; None: the
            agent's setting.
        camera: name of the camera; empty for a source without a name.
        captured_monotonic_s: `captured_at` on the machine's monotonic clock; None if unknown.
        number: counts the camera's pictures from 1; None for other sources.
        trigger: why a camera's picture was taken; None for other sources.
        set_aside: whether it was not read because it ended several starts of the agent.
        work: to be entered by whoever works on it in C, see `Tries`.
    """

    name: str
    picture: Image.Image | None
    captured_at: float
    questions: tuple[str, ...] = ()
    error: BridgeError | None = None
    text: str | None = None
    priority: int | None = None
    camera: str = ""
    captured_monotonic_s: float | None = None
    number: int | None = None
    trigger: Trigger | None = None
    set_aside: bool = False
    work: Callable[[], AbstractContextManager[object]] = field(
        default=nullcontext, compare=False, repr=False
    )

    @property
    def age_s(self) -> float | None:
        """Seconds since it was made; None if unknown."""
        made_s = self.captured_monotonic_s
        return None if made_s is None else time.monotonic() - made_s

    @cached_property
    def content(self) -> str:
        """Digest of the picture (size and pixels) or text; empty if there is none to read."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()
        if self.picture is None:
            return ""
        digest = hashlib.blake2b(repr(self.picture.size).encode(), digest_size=16)
        try:
            digest.update(self.picture.tobytes())
        except Exception:  # a source may hand out pictures undecoded; `as_rgb` says what is wrong
            return ""
        return digest.hexdigest()


@runtime_checkable
class Source(Protocol):
    """Yields captures in a fixed order; a capture that fails is yielded with its error.

    A source that does not end says so by an attribute `endless`, True; its length is 0.
    """

    def __iter__(self) -> Iterator[Capture]:
        """Yield the captures, decoding each only when its turn comes."""

    def __len__(self) -> int:
        """Tell how many captures one pass over the source yields."""


@runtime_checkable
class LiveSource(Source, Protocol):
    """A source whose iterator waits for the next capture, such as a camera.

    Attributes:
        endless: true, as nobody knows its length.
    """

    endless: bool

    def close(self) -> None:
        """End the iteration, from any thread; it may be called twice."""

    def request(self, camera: str = "") -> None:
        """Have the next picture taken, whatever the triggers say.

        Args:
            camera: its name; empty for every one.

        Raises:
            ConfigError: there is no camera of that name.
        """


Factory = Callable[[str], Source]


def endless(source: Source) -> bool:
    """Whether a source goes on for ever, as a camera does."""
    return bool(getattr(source, "endless", False))


def scheme_of(uri: str) -> str:
    """Name the scheme of a source URI; a plain path is a `folder`."""
    match = _SCHEME.match(uri)
    return match.group(1) if match else "folder"


def schemes() -> dict[str, EntryPoint]:
    """List every scheme that can be opened; `folder` needs no installed metadata."""
    found = {"folder": EntryPoint("folder", "edge_agent.sources.folder:open_source", GROUP)}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found


def open_source(uri: str) -> Source:
    """Open the source behind a URI (`folder:///path`, a plain path, `yard://test?count=50`).

    Raises:
        SourceError: nobody registered the scheme, its factory cannot be imported, or the factory
            finds nothing to read.
    """
    scheme = scheme_of(uri)
    known = schemes()
    if scheme not in known:
        near = difflib.get_close_matches(scheme, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(
            f"source {shown(uri)!r}: no source is registered for the scheme {scheme!r} "
            f"(known: {', '.join(sorted(known))}){hint}"
        )
    point = known[scheme]
    try:
        factory: Factory = point.load()
    except (ImportError, AttributeError) as error:
        raise SourceError(
            f"source {shown(uri)!r}: the entry point {point.name} = {point.value} does not load: "
            f"{error}"
        ) from error
    return factory(uri)
