"""A demo must not hang on a child that died, nor leave one behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reference.demo.processes import Child, ChildError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "some_child.py").write_text(source)
        return "some_child"

    return write


def test_the_first_json_object_is_the_readiness_line(module, tmp_path: Path) -> None:
    name = module(
        "print('hello')\nprint('{\"port\": 7}', flush=True)\nimport signal\nsignal.pause()\n"
    )
    with Child("c", [name], tmp_path / "log") as child:
        assert child.ready(30) == {"port": 7}


def test_a_child_that_dies_is_reported_with_its_last_words(module, tmp_path: Path) -> None:
    name = module("raise SystemExit('no model here')\n")
    with (
        Child("server", [name], tmp_path / "log") as child,
        pytest.raises(ChildError, match=r"server ended with status 1(.|\n)*no model here"),
    ):
        child.ready(30)


def test_a_child_that_stays_silent_is_given_up(module, tmp_path: Path) -> None:
    name = module("import signal\nsignal.pause()\n")
    with (
        Child("server", [name], tmp_path / "log") as child,
        pytest.raises(ChildError, match="not ready"),
    ):
        child.ready(0.3)


def test_the_block_ends_the_child(module, tmp_path: Path) -> None:
    name = module("print('{}', flush=True)\nimport signal\nsignal.pause()\n")
    with Child("c", [name], tmp_path / "log") as child:
        child.ready(30)
    assert child.wait(lambda: None, 5) != 0


def test_a_failed_status_is_an_error(module, tmp_path: Path) -> None:
    name = module("raise SystemExit(3)\n")
    with Child("agent", [name], tmp_path / "log") as child:
        status = child.wait(lambda: None, 30)
        with pytest.raises(ChildError, match="status 3"):
            child.check(status)


_PARENT = """
import sys, time
import os
import subprocess
import sys
import time
from pathlib import Path
from reference.demo.processes import Child
with Child("c", sys.argv[2:], Path(sys.argv[1])) as child:
    print(child.pid, child.ready(60)["grandchild"], flush=True)
    time.sleep(600)
"""
_CHILD = """
import json, subprocess, sys, time
from protos.process import children
made = subprocess.Popen(children.command("some_grandchild"))
print(json.dumps({"grandchild": made.pid}), flush=True)
time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "some_child.py").write_text(_CHILD)
    (tmp_path / "some_grandchild.py").write_text("import time\ntime.sleep(600)\n")
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log"), "some_child"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(tmp_path)])},
    )
    assert parent.stdout is not None
    below = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(below) == 2 and all(map(_runs, below))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(_runs, below)):
        assert time.monotonic() < deadline, "a child goes on without its parent"
        time.sleep(0.05)
