"""Transformed states on disk: found only by what made them, bounded, shared, never damaged."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from projector.package.state_cache import StateCache, key_of
from protos.errors import ConfigError, DiskFullError

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
SHAPE = (2, 3, 4, 8)


def state(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    keys, values = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    return keys, values


def test_a_state_is_found_by_source_bundle_and_precision_alone(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 1 << 20)
    cache.put(A, B, "float32", *state(0))
    found = cache.get(A, B, "float32")
    assert found is not None
    for got, put in zip(found, state(0), strict=True):
        np.testing.assert_array_equal(got, put)
    for other in ((C, B, "float32"), (A, C, "float32"), (A, B, "float16"), (B, A, "float32")):
        assert cache.get(*other) is None


def test_half_precision_costs_half_and_little(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 1 << 20)
    cache.put(A, B, "float32", *state(0))
    whole = cache.size_bytes()
    cache.put(A, B, "float16", *state(0))
    assert cache.size_bytes() - whole < 0.6 * whole
    found = cache.get(A, B, "float16")
    assert found is not None
    np.testing.assert_allclose(found[0], state(0)[0], atol=2e-3)


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 1 << 20)
    cache.put(A, B, "float32", *state(0))
    small = StateCache(tmp_path, int(2.5 * cache.size_bytes()))
    small.put(B, B, "float32", *state(1))
    for place, name in enumerate((A, B)):
        os.utime(tmp_path / f"{key_of(name, B, 'float32')}.state", (place, place))
    assert small.get(A, B, "float32") is not None  # now the most recently used
    small.put(C, B, "float32", *state(2))
    assert small.size_bytes() <= small.most_bytes
    assert small.get(B, B, "float32") is None
    assert small.get(A, B, "float32") is not None and small.get(C, B, "float32") is not None
    StateCache(tmp_path / "tiny", 10).put(A, B, "float32", *state(0))
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_damaged_entry_is_a_miss_and_goes(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 1 << 20)
    cache.put(A, B, "float32", *state(0))
    (path,) = tmp_path.iterdir()
    blob = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in [*range(0, 800), *rng.integers(0, 8 * len(blob), 400).tolist()]:
        altered = bytearray(blob)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        assert cache.get(A, B, "float32") is None
        assert not path.exists()
    for cut in (0, 5, 40, len(blob) - 1):
        path.write_bytes(blob[:cut])
        assert cache.get(A, B, "float32") is None


def test_out_of_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StateCache(tmp_path, 1 << 20)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("projector.package.state_cache.os.replace", full)
    with pytest.raises(DiskFullError, match="No space left"):
        cache.put(A, B, "float32", *state(0))
    assert list(tmp_path.iterdir()) == []


def _busy(folder: Path, seed: int) -> None:
    cache = StateCache(folder, 40_000)
    rng = np.random.default_rng(seed)
    for turn in range(150):
        source = f"{int(rng.integers(6)):064x}"
        found = cache.get(source, B, "float32")
        if found is not None:
            np.testing.assert_array_equal(found[0], state(int(source, 16))[0])
        if turn % 2:
            cache.put(source, B, "float32", *state(int(source, 16)))


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_busy, args=(tmp_path, seed)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert not list(tmp_path.glob("*.part"))


def test_keys_of_what_is_no_digest_are_refused() -> None:
    with pytest.raises(ConfigError, match="precision 'int8'"):
        key_of(A, B, "int8")
    with pytest.raises(ConfigError, match="no SHA-256"):
        key_of("../../etc/passwd", B, "float32")
