"""Ctrl-C and SIGTERM in training: the step under way is kept, a second one leaves nothing half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from projector.training.descent import Descent, Stage
from projector.training.train import plot_losses
from protos.errors import FitError
from protos.process.files import write_files
from protos.process.stopping import Stopped, Stopping
from tests.fakes.tiny_models import tiny_idefics3, tiny_llava
from tests.fakes.toolkit import pictures_with_questions, toolkit

STEPS = 12


class Line(nn.Module):
    """The smallest thing that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "scale": 1.0}]


def descent(
    folder: Path, at: Callable[[int], None] = lambda _: None, **over: Any
) -> tuple[Line, Descent]:
    line = Line()

    def loss(step: int, _stage: str, _begun: int, rng: np.random.Generator) -> Tensor:
        at(step)
        wanted = torch.from_numpy(rng.standard_normal(3).astype(np.float32))
        return (line.weight - wanted).square().sum()

    settings = {"rate": 0.1, **over.pop("settings", {})}
    return line, Descent(
        line, (Stage("only", STEPS, 0.1),), loss, folder, settings, what="line", **over
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stopped_ends_like_a_straight_one(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, whole = descent(tmp_path / "straight")
    (tmp_path / "straight").mkdir()
    whole.run()

    def stop(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    (tmp_path / "broken").mkdir()
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    _, broken = descent(tmp_path / "broken", stop)
    with pytest.raises(Stopped) as stopped:
        broken.run()
    assert stopped.value.code == 128 + number, "what the shell says of that signal"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert f"stopped by {number.name} after step 6 of {STEPS}" in capsys.readouterr().err
    resumed, rest = descent(tmp_path / "broken")
    rest.run()
    assert torch.equal(resumed.weight, straight.weight)
    assert "from step 6" in capsys.readouterr().err
    log = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert len(log) == STEPS, "no step was taken twice"


def test_what_has_changed_is_said_and_the_earlier_checkpoint_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, one = descent(tmp_path, details={"pictures": "abc"})
    one.run()
    capsys.readouterr()
    changed = {"settings": {"rate": 0.2}, "about": "b", "details": {"pictures": "xyz"}}
    descent(tmp_path, **changed)[1].run()
    told = capsys.readouterr().err
    assert "starts anew" in told
    assert "rate was 0.1, is 0.2" in told and "pictures was abc, is xyz" in told
    kept = torch.load(tmp_path / "line.earlier-1.pt", weights_only=True)
    assert torch.equal(kept["line"]["weight"], first.weight.detach()), "nothing is lost"
    descent(tmp_path, **changed)[1].run()
    assert "anew" not in capsys.readouterr().err, "the same settings go on"
    descent(tmp_path)[1].run()
    assert (tmp_path / "line.earlier-2.pt").exists(), "and none overwrites another"


def test_a_second_signal_while_files_are_written_leaves_no_draft(tmp_path: Path) -> None:
    class Interrupting(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(name)

    write_files(tmp_path, {"state": b"earlier"})
    with pytest.raises(Stopped), Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked == signal.SIGINT
        with stopping.writing():
            write_files(tmp_path, Interrupting(state=b"half"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"state": b"earlier"}


_HANGS = """
import signal, sys
from pathlib import Path
from tests.projector.training.test_stopping import descent
def hang(step):
    if step == 3:
        print("in the step", flush=True)
        while signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            signal.pause()
        print("asked once", flush=True)
        while True:
            signal.pause()
descent(Path(sys.argv[1]), hang, save_every_s=-1.0)[1].run()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_ctrl_c_ends_a_step_that_does_not_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in ("in the step", "asked once"):
        assert process.stdout.readline().strip() == said
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    process.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.pt", "log.jsonl"]
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("name", ["line.pt", "log.jsonl"])
def test_a_pipe_in_the_place_of_a_training_file_is_refused_and_never_waited_for(
    tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((FitError, OSError), match=name):
        descent(tmp_path)[1].run()


def test_a_log_line_that_a_full_disk_cut_off_does_not_cost_the_plot(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [f'{{"step": {step}, "stage": "task", "loss": 1.0}}\n' for step in range(3)]
    log.write_text(rows[0] + rows[1][:9] + "\n" + rows[2])
    plot_losses(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """`projector train` of more steps than anybody waits for."""
    folder = tmp_path_factory.mktemp("stopping")
    models = tiny_idefics3(folder), tiny_llava(folder, text="llama")
    data = folder / "data"
    data.mkdir()
    pictures_with_questions(data, 16)
    assert toolkit(models)("corpus", data, folder / "corpus") == 0
    yield [
        *(sys.executable, "-m", "projector", "train"),
        *(str(data), str(folder / "corpus"), str(folder / "map"), "--family", "mix"),
        *("--set", "width=16", "--set", 'config={"r": 8}', "--batch", "4"),
        *("--reconstruct-steps", "50000", "--task-steps", "50000", "--threads", "1"),
        *("--source", str(models[0]), "--target", str(models[1])),
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_keeps_the_training_and_the_same_command_goes_on(command: list[str]) -> None:
    state = Path(command[6]) / "state" / "map.pt"
    begun = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training the map from step"):
                assert f"from step {begun} of 100000" in line
                break
        process.send_signal(number)
        rest = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=120) == 128 + number, rest
        begun = torch.load(state, weights_only=True)["step"]
        assert f"stopped by {number.name} after step {begun} of 100000" in rest
        assert "the same command goes on" in rest and "Traceback" not in rest
    assert [path.name for path in state.parent.glob("*.part")] == []
