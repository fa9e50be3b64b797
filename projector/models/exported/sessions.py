"""Opens an export's graphs in ONNX Runtime, and says which processor really runs them.

ONNX Runtime falls back to the CPU without an error: a missing library or a GPU that is busy is
enough. So what runs is read back from the session, and a device that was asked for must run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from projector.models.exported.manifest import AGAIN, DECODER, VISION, Manifest
from projector.models.foreign import in_words
from projector.models.running import AUTO, Running, has_gpu
from protos.errors import ModelError
from protos.process.files import writing
from protos.process.threads import choose

_CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
}
"""Providers of each device. The first must run; the others take the nodes that it does not.
TensorRT runs the vision tower, whose shapes are fixed; CUDA then runs the decoder."""
_RELEASE = Path("/etc/nv_tegra_release")  # of JetPack
_BOARD, _GPUS = Path("/proc/device-tree/model"), Path("/proc/driver/nvidia/gpus")
_MODULE = Path("/sys/module/nvidia/version")
_KEPT_ENGINES = 4
"""Folders of engines that stay: two slots, each before and after a change of JetPack."""


@dataclass(frozen=True)
class Sessions:
    """Both graphs, opened."""

    vision: Any
    decoder: Any
    running: Running


def open_sessions(
    folder: Path,
    manifest: Manifest,
    device: str = AUTO,
    threads: int = 0,
    engines: Path | None = None,
) -> Sessions:
    """Open both graphs.

    Args:
        folder: the export, its files verified.
        manifest: of the export.
        device: auto (the GPU if the runtime can use it, else the CPU), cpu, cuda, cuda:1, tensorrt.
        threads: CPU threads; 0 for as many as fit.
        engines: folder for TensorRT's engines, kept between starts; None to keep none.

    Raises:
        ModelError: the device is unknown or does not run, or a graph cannot be opened.
    """
    name, _, number = device.partition(":")
    there = onnxruntime.get_available_providers()
    if name == AUTO:
        name = "cuda" if PROVIDERS["cuda"][0] in there else "cpu"
    if name not in PROVIDERS or (number and not number.isdecimal()):
        raise ModelError(
            f"an edge export has no device '{device}': it runs on auto, {', '.join(PROVIDERS)}"
        )
    if PROVIDERS[name][0] not in there:
        raise ModelError(
            f"--device {device}: this onnxruntime has no {PROVIDERS[name][0]} (it has "
            f"{', '.join(there)}): install the build for this GPU, or use --device cpu"
        )
    graphs = {VISION: name, DECODER: "cuda" if name == "tensorrt" else name}
    opened, slower, nodes = [], "", Counter[str]()
    for graph, wanted in graphs.items():
        options = [
            (one, _options(one, number or "0", manifest, engines))
            for one in PROVIDERS[wanted]
            if one in there
        ]
        session = _open(folder / graph, options, threads)
        placed, asked = _nodes(session), PROVIDERS[wanted][0]
        if session.get_providers()[0] != asked or (placed and not placed[asked]):
            slower = asked
        opened.append(session)
        nodes.update(placed)
    runs, fallback = name, ""
    if slower:
        on_cuda = all(one.get_providers()[0] != _CPU for one in opened)
        runs = "cuda" if name == "tensorrt" and on_cuda and set(nodes) != {_CPU} else "cpu"
        fallback = f"{slower} could not be started, so {runs} runs the model"
        if not device.startswith(AUTO):
            raise ModelError(f"--device {device}: {fallback}; see onnxruntime's requirements")
    elif device.startswith(AUTO) and runs == "cpu" and has_gpu():
        fallback = (
            f"this machine has a GPU, but this onnxruntime cannot use it ({', '.join(there)})"
        )
    return Sessions(opened[0], opened[1], Running(runs, device, fallback, dict(nodes)))


def _open(file: Path, providers: list[tuple[str, dict[str, str]]], threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = choose(threads).count
    options.log_severity_level = 3
    # A thread that waits must not keep the one it waits for from running.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what runs is read back below
            return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its exceptions share no public base
        raise ModelError(
            f"{file}: onnxruntime cannot run it: {in_words(error)}; {AGAIN}"
        ) from error


def _nodes(session: Any) -> Counter[str]:
    """Nodes of a session by provider; empty if the runtime is too old to tell."""
    found: Counter[str] = Counter()
    with contextlib.suppress(Exception):
        for part in session.get_provider_graph_assignment_info():
            found[str(part.ep_name)] += len(part.get_nodes())
    return found


def _options(
    provider: str, number: str, manifest: Manifest, engines: Path | None
) -> dict[str, str]:
    """A provider's options; TensorRT's engines are kept in a folder of their own key."""
    if provider == _CPU:
        return {}
    if provider.startswith("CUDA"):
        return {"device_id": number, "use_tf32": "0"}
    chosen = {"device_id": number}
    if engines is not None:
        kept = engine_folder(engines, manifest, number)
        chosen |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(kept),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(kept),
        }
    return chosen


def engine_folder(engines: Path, manifest: Manifest, number: str = "0") -> Path:
    """The folder for one model's engines here; those used longest ago are removed.

    Each new JetPack, driver or model needs another folder, and a device may run for years.

    Args:
        engines: where all such folders are.
        manifest: the model's.
        number: of the GPU.

    Raises:
        DiskFullError, ConfigError: it cannot be made.
    """
    kept = engines / engine_key(manifest, number)
    with writing(kept):
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(kept)
        others = [one for one in engines.iterdir() if one != kept and one.is_dir()]
        others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    for old in others[_KEPT_ENGINES - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return kept


def engine_key(manifest: Manifest, number: str = "0") -> str:
    """Name of the folder for one model's engines on one GPU, driver and JetPack.

    An engine is code for exactly these: another value in any of them needs another engine.
    """
    told = {
        "model": manifest.digest,
        "gpu": [_read(file) for file in sorted(_GPUS.glob("*/information"))],
        "board": _read(_BOARD),
        "driver": _read(_MODULE),
        "jetpack": _read(_RELEASE),
        "runtime": onnxruntime.__version__,
        "build": onnxruntime.get_build_info(),
        "number": number,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path) -> str:
    """A small file's text; empty if there is none."""
    try:
        return file.read_bytes()[:4096].decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""
