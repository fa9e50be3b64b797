"""The service and its standard streams: nothing about a log or a closed stream costs an answer."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


@contextmanager
def serving(files: Files, tmp_path: Path, redirect: str, **streams: Any) -> Iterator[Any]:
    """`cloud-server serve` from a shell that redirects its streams; its readiness from a file."""
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", str(files.model)]
    command += ["--bundles", str(files.bundle), "--ready-file", str(ready), "--port", "0"]
    command += ["--metrics-port", "0", "--threads", "1"]
    process = subprocess.Popen(
        ["sh", "-c", f"exec {shlex.join(command)} {redirect}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **streams,
    )
    try:
        while not ready.exists():
            assert process.poll() is None, f"ended with {process.returncode}"
            signal.sigtimedwait([], 0.05)
        yield process, json.loads(ready.read_text())
    finally:
        process.terminate()
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def ask(port: int, seed: int) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = stage.Client(channel)
        client.negotiate()
        return client.answer(client.frame(seed=seed)).text


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as page:
        text: str = page.read().decode()
        return text


def lost(port: int) -> dict[str, float]:
    found = re.findall(
        r'^neural_bridge_cloud_log_lines_dropped_total{process="(\w+)"} (\S+)',
        get(port, "/metrics"),
        re.M,
    )
    return {process: float(value) for process, value in found}


@pytest.mark.slow
def test_requests_are_answered_after_the_reader_of_the_logs_is_gone(
    files: Files, tmp_path: Path
) -> None:
    with serving(files, tmp_path, "", stderr=subprocess.PIPE) as (process, ready):
        process.stderr.close()
        for seed in range(3):
            assert ask(ready["port"], seed)
        assert get(ready["metrics_port"], "/readyz") == "ready\n"
        assert lost(ready["metrics_port"])["frontend"] > 0


@pytest.mark.slow
def test_requests_are_answered_while_the_reader_of_the_logs_stands_still(
    files: Files, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:  # the pipe is full before the service starts
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    try:
        with serving(files, tmp_path, "", stderr=writing) as (_, ready):
            assert ask(ready["port"], 0)
            assert get(ready["metrics_port"], "/readyz") == "ready\n"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirect", ["2>/dev/full", ">/dev/full", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"]
)
def test_the_service_starts_and_answers_whatever_its_streams_are(
    files: Files, tmp_path: Path, redirect: str
) -> None:
    with serving(files, tmp_path, redirect) as (_, ready):
        assert ask(ready["port"], 0)


@pytest.mark.slow
def test_a_service_whose_readiness_line_nobody_reads_goes_on(files: Files, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with serving(files, tmp_path, "", stdout=write) as (_, ready):
        assert ask(ready["port"], 1)
        assert get(ready["metrics_port"], "/readyz") == "ready\n"
    os.close(write)


@pytest.mark.slow
def test_without_standard_error_the_logs_do_not_go_to_standard_output(
    files: Files, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file, serving(files, tmp_path, "2>&-", stdout=file) as (_, ready):
        assert ask(ready["port"], 0)
    assert [json.loads(line)["event"] for line in out.read_text().splitlines()] == ["ready"]


@pytest.mark.slow
def test_every_line_on_standard_error_is_a_json_object(files: Files, tmp_path: Path) -> None:
    err = tmp_path / "err"
    with err.open("wb") as file, serving(files, tmp_path, "", stderr=file) as (_, ready):
        assert ask(ready["port"], 0)
    rows = [json.loads(line) for line in err.read_text().splitlines()]
    assert "answered" in [row["event"] for row in rows]
