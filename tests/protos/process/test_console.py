"""What every console script does with streams, pipes and optimised Python."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from protos.errors import ERRORS, DiskFullError
from protos.process import console

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ("edge_agent", "cloud_server", "projector")
BUNDLES = ROOT / "reference" / "bundles"


_OURS = ("NEURAL_BRIDGE", "TORCHINDUCTOR")
"""What this process's own environment may hold; torch names its cache folder there."""


def shell(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    script = script.replace("python", sys.executable)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith(_OURS)} | environ,
    )


@pytest.mark.quick(3)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&-", "<&-", ">&- 2>&- <&-"])
def test_a_program_ends_well_whatever_its_streams_are(program: str, streams: str) -> None:
    done = shell(f"python -m {program} --version {streams}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.quick(2)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", ["--help", "--version", "--no-such-flag"])
def test_what_cannot_be_printed_never_ends_in_a_traceback(program: str, flag: str) -> None:
    done = shell(f"python -m {program} {flag} >/dev/full")
    expected = 10 if flag == "--no-such-flag" else DiskFullError.exit_code
    assert done.returncode == expected
    assert len(done.stderr.splitlines()) == 1
    assert shell(f"python -m {program} {flag} >/dev/full 2>/dev/full").returncode == expected


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "command",
    [
        "edge_agent --help",
        "cloud_server --help",
        "projector --help",
        f"projector catalogue {BUNDLES}",
        f"projector catalogue {BUNDLES} --json",
    ],
)
def test_a_closed_pipe_ends_a_program_as_a_shell_expects(command: str) -> None:
    script = f"exec 3> >(exec true); wait $!; python -m {command} >&3"
    done = shell(script)
    assert (done.returncode, done.stderr) == (141, "")


def full_pipe() -> tuple[int, int]:
    """A pipe that takes no byte more until somebody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"-" * select.PIPE_BUF)
    os.set_blocking(write, True)
    return read, write


@pytest.mark.quick(1)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_although_nobody_reads_its_complaint(program: str) -> None:
    read, write = full_pipe()
    command = [sys.executable, "-m", program, "--no-such-flag"]
    done = subprocess.run(command, cwd=ROOT, stderr=write, timeout=120)
    os.close(read)
    os.close(write)
    assert done.returncode == 10


def test_standard_error_is_written_again_once_its_reader_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_PATIENCE_S", 0.01)
    read, write = full_pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as reader:
        error = console._Error(stream)
        for _ in range(3):
            error.write("lost\n")
        while set(reader.read(select.PIPE_BUF)) == {ord("-")} and stuffed(read):
            pass
        error.write("said\n")
        assert reader.read(select.PIPE_BUF) == b"said\n"


def stuffed(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_exit_codes_are_explained_where_python_strips_docstrings(program: str) -> None:
    done = shell(f"python -m {program} --help", PYTHONOPTIMIZE="2")
    assert done.returncode == 0, done.stderr
    for error in ERRORS.values():
        line = next(r for r in done.stdout.splitlines() if r.startswith(f"  {error.exit_code} "))
        assert line.endswith("."), line
    assert "None" not in done.stdout


def test_every_error_has_a_summary_of_its_own() -> None:
    assert all("summary" in vars(error) for error in ERRORS.values())


@pytest.mark.slow
def test_text_that_the_terminal_cannot_show_is_escaped_instead_of_failing() -> None:
    done = shell(
        "python -m edge_agent --help | cat; exit ${PIPESTATUS[0]}", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr


_LIKE_A_STRANGER = (
    "env -u HOME -u XDG_STATE_HOME PYTHONDONTWRITEBYTECODE=1 "
    "setpriv --reuid 12345 --regid 12345 --clear-groups "
)
_WITHOUT_TEMPORARY = (
    "unshare -m bash -c 'mount -t tmpfs -o ro none /tmp && mount -t tmpfs -o ro none /var/tmp "
    '&& cd / && exec "$0" "$@"\' '
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv"
)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "edge_agent --version",
        "edge_agent run --help",
        f"edge_agent run --check-config --model {ROOT}/reference/models/edge-a",
        f"edge_agent inspect {ROOT}/reference/models/edge-a",
        "cloud_server serve --help",
        f"cloud_server serve --check-config --model {ROOT}/reference/models/cloud "
        f"--bundles {BUNDLES}/edge-a-cloud",
        "projector --version",
        f"projector catalogue {BUNDLES} --json",
        f"projector layout {ROOT}/reference/models/edge-a",
    ],
)
def test_a_program_runs_for_a_user_without_home_or_name(command: str) -> None:
    done = shell(f"{_LIKE_A_STRANGER} python -m {command}", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "edge_agent --version",
        f"edge_agent inspect {ROOT}/reference/models/edge-a",
        f"projector layout {ROOT}/reference/models/edge-a",
        "reference.demo --help",
    ],
)
def test_a_program_runs_where_no_usual_temporary_folder_can_be_written(command: str) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = shell(
        f"{_WITHOUT_TEMPORARY} {_LIKE_A_STRANGER} python -m {command}", PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_socket_path_that_is_too_long_leaves_nothing_behind_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    serve = (
        f"python -m cloud_server serve --model {ROOT}/reference/models/cloud "
        f"--bundles {BUNDLES}/edge-a-cloud --port 0 --metrics-port 0"
    )
    done = shell(serve, TMPDIR=str(folder))
    assert done.returncode == 10
    assert "--engine-socket-dir" in done.stderr.splitlines()[-1]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_libraries_are_imported_is_no_traceback(program: str, tmp_path: Path) -> None:
    (tmp_path / "pydantic_settings.py").write_text("raise KeyboardInterrupt\n")
    done = shell(f"python -m {program} --version", PYTHONPATH=f"{tmp_path}:{ROOT}")
    name = program.replace("_", "-")
    assert (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")
