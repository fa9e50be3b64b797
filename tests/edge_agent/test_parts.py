"""The small parts: store, picture codec, metrics port, import hygiene."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.encode import Plan, encode_state
from edge_agent.health import HealthServer
from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.pipeline import check_size
from edge_agent.uplink.store import EncoderStore
from protos.errors import BundleCorruptError, ConfigError, DiskFullError, FrameTooLargeError
from protos.limits import Limits
from tests.fakes.fake_edge import make_encoder, state_of

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ the store


def test_an_encoder_is_kept_under_its_digest(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path / "new")
    digest = hashlib.sha256(b"blob").hexdigest()
    assert store.get(digest) is None
    store.put(digest, b"blob")
    assert store.get(digest) == b"blob"
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"{digest}.safetensors"]


def test_a_blob_that_is_another_one_is_neither_kept_nor_handed_out(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    digest = hashlib.sha256(b"blob").hexdigest()
    with pytest.raises(BundleCorruptError):
        store.put(digest, b"other")
    (tmp_path / f"{digest}.safetensors").write_bytes(b"other")
    assert store.get(digest) is None


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(BundleCorruptError):
        EncoderStore(tmp_path).get(digest)


def test_of_many_encoders_those_used_last_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    blobs = [bytes([i]) * 9 for i in range(10)]
    names = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    (tmp_path / "cut-off.part").write_bytes(b"half")
    os.utime(tmp_path / "cut-off.part", (1.0, 1.0))
    for age, (name, blob) in enumerate(zip(names[:9], blobs, strict=False)):
        store.put(name, blob)
        os.utime(tmp_path / f"{name}.safetensors", (100.0 + age, 100.0 + age))
    assert store.get(names[1]) == blobs[1]  # used again
    store.put(names[9], blobs[9])
    kept = [name for name in names if store.get(name) is not None]
    assert kept == [names[1], *names[3:]]
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_told_apart_from_a_wrong_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError, match="No space left"):
        EncoderStore(tmp_path).put(hashlib.sha256(b"x").hexdigest(), b"x")
    assert not list(tmp_path.iterdir())


def test_a_state_directory_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"):
        EncoderStore(tmp_path / "file").put(hashlib.sha256(b"x").hexdigest(), b"x")


# ------------------------------------------------------------------ encoding


@pytest.mark.parametrize(("codec", "format"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_picture_point_writes_a_file_that_reads_back(codec: str, format: str) -> None:
    picture = Image.linear_gradient("L").resize((64, 32))
    blob = PictureCodec(codec, 90, 32).encode(picture)
    with Image.open(io.BytesIO(blob)) as read:
        assert (read.format, read.size) == (format, (32, 16))
    with Image.open(io.BytesIO(PictureCodec(codec, 90, 640).encode(picture))) as read:
        assert read.size == (64, 32)


def test_a_lower_quality_takes_fewer_bytes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    sizes = [len(PictureCodec("jpeg", quality).encode(noise)) for quality in (10, 50, 90)]
    assert sizes == sorted(sizes)


def test_budget_threshold_and_selector_decide_which_tokens_travel() -> None:
    encoder = replace(make_encoder(), selector="symmetric_focus")
    state = state_of(Image.new("RGB", (8, 8)))
    point = encoder.points[1]  # a budget of 4
    best = set(np.argsort(-state.attention)[:4])
    coded = encode_state(state, encoder, point, Plan())
    assert set(np.flatnonzero(coded.kept)) == best
    assert encode_state(state, encoder, point, Plan(token_budget=2)).kept.sum() == 2
    spread = encode_state(state, encoder, point, Plan(selector="uniform")).kept
    assert spread.sum() == 4
    everything = encode_state(state, encoder, encoder.points[0], Plan())
    assert everything.kept.all()
    half = encode_state(state, encoder, encoder.points[0], Plan(token_threshold=0.5)).kept
    assert (
        state.attention[half].sum()
        >= 0.5
        > state.attention[half].sum() - min(state.attention[half])
    )
    assert coded.distortion is not None
    assert coded.distortion.dropped_attention == pytest.approx(
        1 - state.attention[list(best)].sum(), abs=1e-5
    )


def test_a_frame_over_the_servers_limit_says_what_to_change() -> None:
    encoder, state = make_encoder(), state_of(Image.new("RGB", (8, 8)))
    coded = encode_state(state, encoder, encoder.points[0], Plan())
    with pytest.raises(FrameTooLargeError, match="choose a point of fewer bytes"):
        check_size(coded, Limits(max_payload_bytes=10))
    with pytest.raises(FrameTooLargeError, match="9 tokens"):
        check_size(coded, Limits(max_tokens=8))


# ------------------------------------------------------------------ the metrics port


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_port_shows_metrics_health_and_readiness() -> None:
    metrics, missing = Metrics(), ["no session with the server"]
    metrics.answers.inc(3)
    server = HealthServer(metrics.registry, lambda: missing[0])
    try:
        status, text = fetch(server.port, "/metrics")
        assert status == 200 and "neural_bridge_edge_answers_total 3.0" in text
        assert fetch(server.port, "/healthz") == (200, "ok\n")
        assert fetch(server.port, "/readyz") == (503, "no session with the server\n")
        missing[0] = ""
        assert fetch(server.port, "/readyz") == (200, "ready\n")
        assert fetch(server.port, "/other")[0] == 404
        with pytest.raises(ConfigError, match="cannot be bound"):
            HealthServer(metrics.registry, lambda: "", port=server.port)
    finally:
        server.close()


def test_metric_names_follow_the_rules() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith("neural_bridge_edge_")
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_bytes", "_tokens", "_ratio"))
        assert not (family.type == "gauge" and family.name.endswith("_total"))


# ------------------------------------------------------------------ imports


def test_the_agent_starts_without_torch_and_without_the_cloud() -> None:
    script = (
        "import sys, edge_agent.cli, edge_agent.pipeline, edge_agent.prefill\n"
        "import edge_agent.uplink.uplink\n"
        "bad = ('torch', 'transformers', 'onnxruntime', 'cloud_server', 'reference', 'zmq')\n"
        "print([m for m in sys.modules if m.split('.')[0] in bad])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_metrics_show_the_agents_memory_as_it_is_now() -> None:
    metrics = Metrics()

    def shown() -> float:
        return metrics.registry.get_sample_value("neural_bridge_edge_resident_memory_bytes") or 0.0

    before = shown()
    block = np.ones(128 << 20, dtype=np.uint8)
    assert shown() > before + block.nbytes / 2
