"""Prometheus and Alertmanager on loopback, with the files of deploy/monitoring, and who is told.

Both run many times faster than in earnest: every duration in rules and routing is divided by one
number (`faster`). Nothing else of the files changes.
"""

from __future__ import annotations

import http.server
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from protos.errors import ConfigError
from reference.demo.processes import ChildError

MONITORING = ROOT / "deploy" / "monitoring"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\b(\d+)(s|m|h|d)\b")
_IN_RULES = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=for: )\d+[smhd]|(?<=interval: )\d+[smhd]")
_IN_ROUTING = re.compile(r"(?<=group_wait: )\d+s|(?<=group_interval: )\d+[sm]")
_START_S = 60.0
_POLL_S = 0.2
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing() -> str:
    """Why there is no Prometheus or Alertmanager here; empty if there are."""
    programs = [one for one in ("prometheus", "prometheus-alertmanager") if not shutil.which(one)]
    return f"no {' and no '.join(programs)}: make prometheus" if programs else ""


def faster(text: str, by: float, where: re.Pattern[str] = _IN_RULES) -> str:
    """Rules or routing with every duration divided, rounded up to whole seconds."""

    def shorter(found: re.Match[str]) -> str:
        whole = _DURATION.fullmatch(found[0])
        assert whole is not None
        return f"{math.ceil(int(whole[1]) * _SECONDS[whole[2]] / by)}s"

    return where.sub(shorter, text)


@dataclass
class Told:
    """A webhook: who is told of alerts.

    Attributes:
        alerts: what came, in order: receiver, status, labels and annotations of each alert.
    """

    alerts: list[dict[str, Any]] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, receiver: str, body: bytes) -> None:
        """Alertmanager has sent a group of alerts."""
        with self._news:
            for one in json.loads(body)["alerts"]:
                self.alerts.append({**one, "receiver": receiver, "at": time.monotonic()})
            self._news.notify_all()

    def wait(self, name: str, status: str, timeout_s: float) -> dict[str, Any]:
        """Wait for an alert.

        Raises:
            ChildError: it did not come in time.
        """

        def there() -> dict[str, Any] | None:
            return next(
                (
                    one
                    for one in self.alerts
                    if one["labels"]["alertname"] == name and one["status"] == status
                ),
                None,
            )

        with self._news:
            if not self._news.wait_for(lambda: there() is not None, timeout_s):
                raise ChildError(
                    f"no '{name}' was {status} within {timeout_s:.0f} s; came: "
                    f"{[(one['labels']['alertname'], one['status']) for one in self.alerts]}"
                )
            found = there()
        assert found is not None
        return found


@dataclass
class Stack:
    """A running Prometheus and Alertmanager.

    Attributes:
        prometheus: its address.
        told: the webhook of both receivers.
        began_s: seconds since 1970.
    """

    prometheus: str
    told: Told
    began_s: float

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask Prometheus's HTTP API; returns `data`.

        Raises:
            ConfigError: Prometheus refused it.
        """
        url = f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with _OPEN.open(url, timeout=60) as page:
                return json.loads(page.read())["data"]
        except urllib.error.HTTPError as error:
            raise ConfigError(
                f"Prometheus refused {parameters}: {error.read().decode()}"
            ) from error

    def values(self, expr: str, step_s: float = 2.0) -> int:
        """How many values a query has from the beginning to now; NaN is none."""
        found = self.ask(
            "query_range",
            query=expr,
            start=str(self.began_s),
            end=str(time.time()),
            step=str(step_s),
        )["result"]
        return sum(value != "NaN" for series in found for _, value in series["values"])

    def until(self, expr: str, timeout_s: float) -> None:
        """Wait until a query has a result.

        Raises:
            ChildError: it had none in time.
        """
        end_s = time.monotonic() + timeout_s
        while not self.ask("query", query=expr)["result"]:
            if time.monotonic() > end_s:
                raise ChildError(f"Prometheus has no result of {expr} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)


@contextmanager
def stack(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    key: str,
    roots_pem: bytes,
    by: float,
) -> Iterator[Stack]:
    """Start both; they end with the block.

    Args:
        folder: emptied; for their files, data and logs.
        targets: host:port of what is scraped, by the name of its file in `targets/`.
        key: for /metrics of the service.
        roots_pem: the service's roots.
        by: how many times faster than in earnest.

    Raises:
        ConfigError: they are not there.
        ChildError: one of them did not start.
    """
    if why := missing():
        raise ConfigError(why)
    shutil.rmtree(folder, ignore_errors=True)
    told, began_s = Told(), time.time()
    with ExitStack() as running:
        hook = running.enter_context(_webhook(told))
        home = _alertmanager(folder / "alertmanager", hook, by)
        port = free_port()
        running.enter_context(
            _started(
                home,
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                "--storage.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            )
        )
        scraped = {**targets, "alertmanager": [f"127.0.0.1:{port}"]}
        home = _prometheus(folder / "prometheus", scraped, key, roots_pem, by)
        mine = free_port()
        running.enter_context(
            _started(
                home,
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{mine}",
            )
        )
        for name, at in (("alertmanager", port), ("prometheus", mine)):
            _wait(f"http://127.0.0.1:{at}/-/ready", folder / name / "log.txt")
        yield Stack(f"http://127.0.0.1:{mine}", told, began_s)


def _alertmanager(home: Path, hook: str, by: float) -> Path:
    home.mkdir(parents=True)
    shipped = (MONITORING / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
    text, count = re.subn(
        r"(?m)^  - name: (\w+)$",
        rf"  - name: \1\n    webhook_configs: [{{url: '{hook}/\1'}}]",
        faster(shipped, by, _IN_ROUTING),
    )
    assert count == shipped.count("- name:"), "a receiver would not be heard"
    (home / "alertmanager.yml").write_text(text, encoding="utf-8")
    return home


def _prometheus(
    home: Path, targets: Mapping[str, Sequence[str]], key: str, roots_pem: bytes, by: float
) -> Path:
    (home / "rules").mkdir(parents=True)
    (home / "targets").mkdir()
    for path in sorted((MONITORING / "prometheus" / "rules").glob("*.yaml")):
        text = faster(path.read_text(encoding="utf-8"), by)
        (home / "rules" / path.name).write_text(text, encoding="utf-8")
    for name, addresses in targets.items():  # JSON is YAML too
        group = json.dumps([{"targets": list(addresses)}])
        (home / "targets" / f"{name}.yaml").write_text(group, encoding="utf-8")
    shipped = (MONITORING / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    text, count = re.subn(r"(_interval|_timeout): \d+s", r"\1: 3s", shipped)
    assert count == 3, "scrape and evaluation intervals, and a scrape's timeout"
    (home / "prometheus.yml").write_text(text, encoding="utf-8")
    (home / "metrics-key").write_text(key, encoding="utf-8")
    (home / "roots.pem").write_bytes(roots_pem)
    return home


@contextmanager
def _started(home: Path, *command: str) -> Iterator[None]:
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _webhook(told: Told) -> Iterator[str]:
    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("content-length", "0"))
            told.take(self.path.strip("/"), self.rfile.read(size))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _wait(url: str, log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while True:
        try:
            with _OPEN.open(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > end_s:
                raise ChildError(f"{url} did not answer: see {log}") from None
            time.sleep(_POLL_S)


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
