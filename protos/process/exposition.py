"""The page of /metrics: Prometheus's text, or OpenMetrics with exemplars if the scraper asks.

`prometheus_client` writes most of it. Metrics with a series for each device (`Collected`) are
written here, some twenty times as fast, so a scrape stays short with a thousand devices.
"""

from __future__ import annotations

import gzip
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from protos.process.metric_kinds import Collected

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment  # from Python 3.11 on

_OPENMETRICS = "application/openmetrics-text"
_END = b"# EOF\n"
_LEVEL = 1  # of gzip: nine times as fast as its default, and a third longer


class Registry(CollectorRegistry):
    """A registry that keeps the metrics with many series apart, for `page`."""

    def __init__(self) -> None:
        super().__init__()
        self.many: list[Collected] = []

    def register(self, collector: Collector) -> None:
        """Add a metric."""
        if isinstance(collector, Collected):
            self.many.append(collector)
        else:
            super().register(collector)

    def few(self) -> Iterator[Metric]:
        """The metrics without those of many series."""
        yield from super().collect()

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield from self.few()
        for one in self.many:
            yield from one.collect()


class _Few(Collector):
    """What `prometheus_client` writes of a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        registry = self._registry
        return registry.few() if isinstance(registry, Registry) else registry.collect()


class Page:
    """The page, as a WSGI application.

    One page is made at a time, and scrapes that come before it is begun share it, so scrapers
    cannot take the process's time from its work.

    Args:
        registry: what it shows.
        clock: seconds, monotonic.
    """

    def __init__(
        self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._clock = registry, clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, bytes]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one scrape."""
        encode, kind = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        headers = [("Content-Type", kind)]
        body = self._body(encode, kind)
        if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
            body = gzip.compress(body, _LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", headers)
        return [body]

    def _body(self, encode: Callable[[Any], bytes], kind: str) -> bytes:
        came = self._clock()
        with self._lock:
            begun, body = self._kept.get(kind, (-math.inf, b""))
            if begun < came:
                begun = self._clock()
                body = text(self._registry, encode, kind)
                self._kept = {kind: (begun, body)}
            return body


def text(registry: CollectorRegistry, encode: Callable[[Any], bytes], kind: str) -> bytes:
    """The page's bytes.

    Args:
        registry: what it shows.
        encode: writes a registry in the format.
        kind: the format's content type.
    """
    body = encode(_Few(registry))
    many = registry.many if isinstance(registry, Registry) else []
    if not many:
        return body
    openmetrics = kind.startswith(_OPENMETRICS)
    known: dict[tuple[str, ...], str] = {}
    rest = "".join(part for one in many for part in _lines(one, openmetrics, known)).encode()
    if openmetrics:
        return body.removesuffix(_END) + rest + _END
    return body + rest


def _lines(one: Collected, openmetrics: bool, known: dict[tuple[str, ...], str]) -> Iterator[str]:
    """A metric's lines; `known` keeps labels that several metrics share."""
    family = one.empty()
    name = family.name + ("_total" if family.type == "counter" else "")
    shown = family.name if openmetrics else name
    yield f"# HELP {shown} {_escaped(family.documentation)}\n"
    yield f"# TYPE {shown} {family.type}\n"
    if openmetrics and family.unit:
        yield f"# UNIT {shown} {family.unit}\n"
    template = ",".join(f'{label}="%s"' for label in one.names)
    for values, value in one.samples():
        key = template, *values
        labels = known.get(key)
        if labels is None:
            labels = known[key] = template % tuple(map(_escaped, values))
        yield f"{name}{{{labels}}} {float(value)!r}\n"


def _escaped(value: str) -> str:
    if value.isalnum():  # most are
        return value
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
