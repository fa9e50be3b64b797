"""Whether a model fits is said before it is loaded, and the estimate is near what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import cli, memory_preflight
from edge_agent.memory_preflight import need_of, require_memory
from protos.errors import NoMemoryError
from protos.process.memory import Available, available

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "reference/models/edge-a"
MIB = 1 << 20
_MEASURE = """
import sys
from pathlib import Path
import edge_agent.cli
from protos.process.memory import peak_bytes, resident_bytes
before = resident_bytes()
from edge_agent.prefill import load
from PIL import Image
load(Path(sys.argv[1])).see(Image.new("RGB", (64, 48), (1, 2, 3))).answer("is there a fire ?", 8)
print(peak_bytes() - before)
"""


def checkpoint(folder: Path, numbers: int) -> Path:
    """A checkpoint that claims so many numbers; it holds none."""
    header = {"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    blob = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(blob).to_bytes(8, "little") + blob)
    text = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps({"text_config": text}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_the_estimate_is_within_a_band_of_what_is_measured(export: Path, kind: str) -> None:
    path = export if kind == "export" else REFERENCE
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    measured, need = int(done.stdout), need_of(path, "cpu", "float32", 16)
    assert 0.7 * measured <= need.host <= 1.6 * measured, (measured / MIB, need)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (1200 * MIB, " MiB) or an export by projector export-edge (about 1,1"),
        (1000 * MIB, "use --dtype bfloat16 (about 9"),
        (850 * MIB, "no format of it fits: take a model of at most 704 MiB of weights"),
        (70 * MIB, "nothing fits"),
    ],
)
def test_what_would_fit_is_named(tmp_path: Path, free: int, said: str) -> None:
    path = checkpoint(tmp_path, 1 << 28)
    with pytest.raises(NoMemoryError) as met:
        require_memory(path, "cpu", "float32", 16, Available(free, "memory of the machine"))
    assert said in str(met.value)
    assert "1,024 MiB of weights" in str(met.value)
    need, _ = require_memory(path, "cpu", "float32", 16, Available(2048 * MIB, "memory"))
    assert need.weights == 1 << 30 and need.gpu == 0


def test_a_gpu_that_shares_the_memory_counts_beside_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, free = checkpoint(tmp_path, 1 << 28), Available(2400 * MIB, "memory of the machine")
    monkeypatch.setattr(memory_preflight, "gpu_free_bytes", lambda: None)  # as on a Jetson
    with pytest.raises(NoMemoryError, match="for the GPU, which shares the memory.*--device cpu"):
        require_memory(path, "cuda", "float32", 16, free)
    require_memory(path, "cuda", "float32", 16, free, gpu_free=2000 * MIB)
    with pytest.raises(NoMemoryError, match="on the GPU, 900 MiB are free there"):
        require_memory(path, "cuda", "float32", 16, free, gpu_free=900 * MIB)


@pytest.mark.parametrize("path", ["export", "checkpoint"])
def test_a_model_that_does_not_fit_is_not_loaded(
    export: Path, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Available(20 * MIB, "limit in /sys/fs/cgroup/memory.max")
    monkeypatch.setattr(memory_preflight, "available", lambda: small)
    model = str(export if path == "export" else REFERENCE)
    assert cli.main(["inspect", model]) == NoMemoryError.exit_code
    err = capsys.readouterr().err
    assert "20 MiB are free (limit in /sys/fs/cgroup/memory.max)" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("files", "bytes_free"),
    [
        ({}, 900 * MIB),
        ({"memory.max": "max", "memory.current": "7"}, 900 * MIB),
        ({"memory.max": 300 * MIB, "memory.current": 100 * MIB}, 200 * MIB),
        (
            {
                "memory.max": 300 * MIB,
                "memory.current": 290 * MIB,
                "memory.stat": f"anon 5\ninactive_file {50 * MIB}\n",
            },
            60 * MIB,
        ),
        ({"memory.max": 300 * MIB, "memory.high": 200 * MIB, "memory.current": 0}, 200 * MIB),
        ({"memory.max": 100 * MIB, "memory.current": 200 * MIB}, 0),
    ],
)
def test_the_tightest_bound_is_found(
    tmp_path: Path, files: dict[str, object], bytes_free: int
) -> None:
    group = tmp_path / "sys/fs/cgroup/agent"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {900 * 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/agent\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    for name, content in files.items():
        (group / name).write_text(f"{content}\n")
    found = available(tmp_path)
    assert found is not None and found.bytes == bytes_free
    assert available(tmp_path / "nowhere") is None
