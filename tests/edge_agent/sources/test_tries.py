"""A file that ends the agent's process comes back three times, then it is set aside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from PIL import Image

from edge_agent.sources.folder import Folder, read_file
from edge_agent.sources.tries import FILE, MOST_TRIES, Tries, key_of
from tests.fakes.fake_run import Run

_CRASHES = """
import os, signal, sys
from pathlib import Path
from edge_agent.settings import load
from edge_agent.sources import folder, open_source
from edge_agent.sources.opened import open_sources

def read(path, *given, real=folder.read_picture):
    if path.name == "bad.png":
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(path, *given)

folder.read_picture = read
for _ in range(5):
    child = os.fork()
    if not child:
        chosen = load({"source": [sys.argv[1]]}, environ={})
        for capture in open_sources(chosen, open_source, Path(sys.argv[2])):
            print(capture.name, capture.error, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def died(tries: Tries, *keys: str) -> None:
    """The process ends while it works on these."""
    working = [tries.on(key) for key in keys]
    for one in working:
        one.__enter__()
    tries.close()


def test_a_picture_that_crashes_the_process_is_set_aside_and_the_others_come(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "bad.png", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "in" / name)
    done = subprocess.run(
        [sys.executable, "-c", _CRASHES, str(tmp_path / "in"), str(tmp_path / "memory")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    crashed, (a, bad, c, ok) = ["a.png None", "-11"], done.stdout.splitlines()[6:10]
    assert done.stdout.splitlines()[:6] == crashed * MOST_TRIES, done.stderr
    assert (a, c, ok) == ("a.png None", "c.png None", "0") and "bad.png is set aside" in bad
    assert len(done.stdout.splitlines()) == 14, "it stays aside"


def test_a_file_that_was_written_anew_is_tried_again(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "memory"
    Image.new("RGB", (9, 9)).save(path)
    for _ in range(MOST_TRIES):
        died(Tries(memory), key_of(path))
    tries = Tries(memory)
    assert read_file(path, tries=tries).set_aside
    os.utime(path, (1, 1))
    capture = read_file(path, tries=tries)
    assert capture.picture is not None and not capture.set_aside


def test_a_run_says_counts_and_records_what_is_set_aside(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "memory"
    Image.new("RGB", (9, 9)).save(path)
    for _ in range(MOST_TRIES):
        died(Tries(memory), key_of(path))
    run = Run(list(Folder((path,), tries=Tries(memory))), tmp_path, questions=("x",))
    assert run().failed == 1
    assert run.value("source_entries_skipped_total", kind="set_aside") == 1
    assert '"event": "set_aside"' in run.logged.getvalue() and "a.png" in run.logged.getvalue()


def test_the_small_model_counts_as_work_on_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), (200, 9, 9)).save(path)
    tries, seen = Tries(tmp_path / "memory"), list[str]()
    run = Run(list(Folder((path,), tries=tries)), tmp_path, questions=("x",))
    see = run.model.see

    def watched(picture: Image.Image) -> object:
        seen.append((tmp_path / "memory" / FILE).read_text())
        return see(picture)

    run.model.see = watched  # type: ignore[method-assign, assignment]
    assert run().answered == 1
    assert len(seen) == 1 and str(path) in seen[0]
    assert str(path) not in (tmp_path / "memory" / FILE).read_text()


def test_what_was_beside_a_crash_is_not_blamed_with_it_again(tmp_path: Path) -> None:
    """After one crash both are suspects; a suspect is worked on alone, so only one is blamed."""
    died(Tries(tmp_path), "good", "bad")
    tries, entered = Tries(tmp_path), threading.Event()

    def good() -> None:
        with tries.on("good"):
            entered.set()

    with tries.on("bad"), tries.on("bad"):
        thread = threading.Thread(target=good)
        thread.start()
        assert not entered.wait(0.05)
    thread.join(10)
    assert entered.is_set()


def test_ends_that_touched_no_file_a_bad_disk_and_a_second_agent_count_nothing(
    tmp_path: Path,
) -> None:
    first = Tries(tmp_path)
    with first.on("a"):
        second = Tries(tmp_path)
        died(second, "b")
    first.close()
    for damage in (b"", b"{", b'{"counts": {"a": "x"}, "on": 3}\n', b"\xff" * 99):
        (tmp_path / FILE).write_bytes(damage)
        tries = Tries(tmp_path)
        assert not tries.set_aside("a") and not tries.set_aside("b")
        with tries.on("a"):
            pass
        tries.close()
    died(Tries(tmp_path / FILE), "a")
    for number in range(200):
        died(Tries(tmp_path), f"{number}")
    assert (tmp_path / FILE).stat().st_size < 4096, "bounded"
