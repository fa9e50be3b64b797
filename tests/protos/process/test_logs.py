"""Log lines: never in the way, counted where they are lost."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from protos.process import logs


class Broken(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_stream_that_fails_costs_lines_and_nothing_else() -> None:
    lost: list[int] = []
    lines = logs.Lines(Broken(), lambda: lost.append(1))
    lines.write("a\nb\nhalf")
    assert (lines.dropped, len(lost)) == (2, 2)


def test_a_reader_that_stands_still_costs_lines_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_MOST_LINES", 8)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        lines = logs.Lines(stream)
        for _ in range(1000):
            lines.write("x" * 4095 + "\n")
        assert lines.dropped >= 1000 - 8 - 16 - 1  # a pipe holds 64 KiB
        drained = threading.Thread(target=lambda: os.read(reading, 1 << 20), daemon=True)
        drained.start()
        lines.drain(10)
        drained.join(10)
    os.close(reading)


def test_a_reader_that_comes_back_gets_whole_lines_again(tmp_path: object) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        lines = logs.Lines(stream)
        lines._torn = True  # a line was cut in two by a full disk
        lines.write("whole\n")
        lines.drain(10)
    with os.fdopen(reading) as seen:
        assert seen.read() == "\nwhole\n"


def test_what_libraries_log_is_an_event_like_ours() -> None:
    written = io.StringIO()
    log = logs.configure("info", "here", stream=written)
    logs.adopt_libraries(log)
    try:
        logging.getLogger("some.library").warning("half %s", "full")
    finally:
        root = logging.getLogger()
        for handler in [h for h in root.handlers if isinstance(h, logs._FromLibraries)]:
            root.removeHandler(handler)
        logging.captureWarnings(False)
    row = json.loads(written.getvalue())
    assert (row["component"], row["logger"], row["message"]) == (
        "here",
        "some.library",
        "half full",
    )


def test_a_forked_child_logs_for_itself(tmp_path: Path) -> None:
    code = """
import os, sys
from protos.process import logs
log = logs.configure("info", "parent")
log.info("before")
logs.drain()
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    log.info("after")
else:
    logs.forked()
    log.info("of the child")
    logs.drain()
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert said == ["before", "of the child", "after"]


def test_a_logged_traceback_shows_lines_and_no_values() -> None:
    written = io.StringIO()
    log = logs.configure("info", "here", stream=written)

    def checked(passphrase: str) -> None:
        raise ValueError("it does not fit")

    try:
        checked("the night " + "is young")
    except ValueError:
        log.exception("broken")
    (told,) = json.loads(written.getvalue())["exception"]
    assert told["exc_value"] == "it does not fit"
    assert told["frames"][-1]["name"] == "checked"
    assert "the night is young" not in written.getvalue()
