"""Speed and damage figures of `make bench-projectors`: times beside a rival, damage, throughput.

Each time is the best of several rounds, so that other work on the machine does not decide which of
two is faster.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.damage import flips, loader, read_files, tally
from benchmarks.timing import least_seconds
from projector import package
from projector.bundle.describe import BundleInfo
from projector.bundle.load import Bundle
from projector.maps import Map, ServedMap, load
from projector.maps.moments import Moments, ridge
from projector.serving.backends import CloudFiles
from projector.serving.backends.onnxruntime import OnnxRuntimeBackend
from projector.serving.export import Half, export
from protos.errors import BridgeError
from protos.layout import KVLayout
from protos.state import KVState

PAIRS = 100_000
FLIPS_PER_FILE = 200
FLIPS_OF_PACKAGE = 4000
_ROUNDS = 100
_CREATED = "2026-01-31T12:00:00Z"


def ridge_over_gemm() -> dict[str, float]:
    """Ridge on 100,000 pairs 512 -> 4096 against one NumPy GEMM of the same operations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((PAIRS, 512), dtype=np.float32)
    y = rng.standard_normal((PAIRS, 4096), dtype=np.float32)
    flops = 2 * PAIRS * 512 * (512 + 4096)
    inner = flops // (2 * 512 * 4096)
    a = rng.standard_normal((512, inner), dtype=np.float32)
    b = rng.standard_normal((inner, 4096), dtype=np.float32)
    spent = []
    for _ in range(3):
        begun = time.perf_counter()
        moments = Moments.of((x[i : i + 4096], y[i : i + 4096]) for i in range(0, PAIRS, 4096))
        ridge(*moments.normalised(), 1e-3)
        fitted = time.perf_counter() - begun
        begun = time.perf_counter()
        np.matmul(a, b)
        spent.append((fitted, time.perf_counter() - begun))
    fit, gemm = (min(one[i] for one in spent) for i in (0, 1))
    return {"ridge_seconds": fit, "gemm_seconds": gemm, "ratio": fit / gemm, "gflop": flops / 1e9}


def ort_over_eager(bundle: Bundle, members: Iterable[tuple[str, Map]]) -> list[dict[str, Any]]:
    """Cloud halves in ONNX Runtime, eager torch and one bare matrix product, each on one thread."""
    torch.set_num_threads(1)
    info = bundle.info
    own = load(bundle.cloud.weights, info.source, info.target).eval()
    half, wide = ServedMap(own), own.up_rank
    rows = []
    for batch in (1, 4, 16):
        times = _times(half, bundle.cloud, info.target, info.source, info.rank, wide, batch)
        rows.append({"family": f"bundle {info.id}", "batch": batch, **times})
    for name, made in members:
        served = ServedMap(made.eval())
        files = CloudFiles(weights=made.to_bytes(), graph=export(served).graph)
        rank = made.rank
        times = _times(served, files, made.target, made.source, rank, rank, 1)
        rows.append({"family": name, "batch": 1, **times})
    return rows


def _times(
    half: Half,
    files: CloudFiles,
    target: KVLayout,
    source: KVLayout,
    rank: int,
    wide: int,
    batch: int,
) -> dict[str, float]:
    rng, tokens = np.random.default_rng(0), source.tokens
    latents = rng.standard_normal((batch, tokens, rank), dtype=np.float32)
    kept, positions = np.ones((batch, tokens), dtype=np.bool_), np.arange(target.tokens)
    backend = OnnxRuntimeBackend(files, target, rank, threads=1, source=source)
    cos, sin = (torch.from_numpy(table) for table in target.rope.cos_sin(positions))
    z, mask = torch.from_numpy(latents), torch.ones(batch, tokens)
    inner = torch.randn(batch * target.tokens, wide)
    matrix = torch.randn(wide, target.state_dim)
    calls: dict[str, Callable[[], Any]] = {
        "eager_ms": lambda: half(z, mask, cos, sin),
        "onnxruntime_ms": lambda: backend.project(latents, kept, positions),
        "gemm_ms": lambda: torch.mm(inner, matrix),
    }
    with torch.inference_mode():
        spent = least_seconds(_ROUNDS, [*calls.values()], "cloud halves", time.perf_counter)
    found = {name: round(1000 * s, 4) for name, s in zip(calls, spent, strict=True)}
    return {
        **found,
        "speedup": found["eager_ms"] / found["onnxruntime_ms"],
        "over_gemm": found["onnxruntime_ms"] / found["gemm_ms"],
    }


def bit_flips(bundle: Bundle, state: KVState, folder: Path) -> dict[str, dict[str, int]]:
    """Flip single bits of the default bundle and of a memory package, both unsigned."""
    files = read_files(bundle.path)
    load = loader(bundle.info.source, bundle.info.target)
    load(files)
    found = tally(load, flips(files, FLIPS_PER_FILE))
    kept = np.ones(bundle.info.source.tokens, dtype=np.bool_)
    path = folder / f"flipped{package.SUFFIX}"
    _write(state, kept, bundle.info.source, bundle, "fp8_e4m3", path)
    tried, accepted, size = 0, 0, 8 * path.stat().st_size
    file = os.open(path, os.O_RDWR)
    try:
        for bit in np.random.default_rng(0).choice(size, min(size, FLIPS_OF_PACKAGE), False):
            at = int(bit) // 8
            true = os.pread(file, 1, at)
            os.pwrite(file, bytes([true[0] ^ 1 << int(bit) % 8]), at)
            tried += 1
            try:
                package.verify(path)
                accepted += 1
            except BridgeError:
                pass
            os.pwrite(file, true, at)
        package.verify(path)
    finally:
        os.close(file)
        path.unlink()
    return {
        "bundle": {"tried": found.tried, "accepted": len(found.accepted)},
        "package": {"tried": tried, "accepted": accepted},
    }


def verify_mb_s(bundle: Bundle, folder: Path) -> float:
    """Million bytes per second at which a package of 134 MB is verified, best of seven."""
    wide = dataclasses.replace(
        bundle.info.source, layers=16, kv_heads=8, head_dim=128, grid=(32, 32)
    )
    info: BundleInfo = dataclasses.replace(bundle.info, source=wide)
    rng = np.random.default_rng(0)
    shape = (wide.layers, wide.kv_heads, wide.tokens, wide.head_dim)
    state = KVState(
        keys=rng.standard_normal(shape, dtype=np.float32),
        values=rng.standard_normal(shape, dtype=np.float32),
        positions=np.arange(wide.tokens, dtype=np.int64),
        grid=wide.grid,
        attention=np.full(wide.tokens, 1 / wide.tokens, dtype=np.float32),
    )
    kept = np.ones(wide.tokens, dtype=np.bool_)
    path = folder / f"wide{package.SUFFIX}"
    _write(state, kept, wide, dataclasses.replace(bundle, info=info), "float32", path)
    try:
        rates = []
        for _ in range(7):
            begun = time.perf_counter()
            package.verify(path)
            rates.append(path.stat().st_size / 1e6 / (time.perf_counter() - begun))
    finally:
        path.unlink()
    return round(max(rates), 1)


def _write(
    state: KVState, kept: Any, source: KVLayout, bundle: Bundle, codec: str, path: Path
) -> None:
    made = package.create(
        state,
        kept,
        source,
        bundle,
        id="bench",
        created=_CREATED,
        creator="bench-projectors",
        codec=codec,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    package.write(made, path, overwrite=True)
