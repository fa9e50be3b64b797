"""Checks of the machine: processors, memory, GPUs, open files, disks, the clock."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cloud_server.frontend import descriptors
from cloud_server.settings import Settings
from protos.errors import ConfigError
from protos.process import findings
from protos.process.findings import GREEN, RED, YELLOW, Finding
from protos.process.threads import cpu_share

_GB = 1 << 30
_LITTLE_BYTES, _FULL_BYTES = 2 * _GB, 256 << 20
_PLANNED = 256
"""Connections that a service should have room for."""
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def processors(settings: Settings) -> Iterator[Finding]:
    """CPU features, and the CPUs that this process may use."""
    share = cpu_share()
    name, flags = _cpu()
    known = {
        "x86_64": ("avx2", "avx512f", "avx512_bf16", "amx_bf16"),
        "aarch64": ("asimd", "bf16", "i8mm", "sve"),
    }.get(platform.machine(), ())
    has = [flag for flag in known if flag in flags]
    found = f"{name}, {share.cpus:g} CPUs ({share.because}), {', '.join(has) or 'no vector units'}"
    if known and known[0] not in flags:
        yield Finding(
            "processor", YELLOW, found, f"without {known[0]} everything is several times slower"
        )
    elif settings.threads > share.threads:
        yield Finding(
            "processor",
            YELLOW,
            f"{found}; --threads {settings.threads}",
            f"set --threads {share.threads}, or 0 to have it chosen: more wait for one another",
        )
    else:
        yield Finding("processor", GREEN, found)


def memory(settings: Settings) -> Iterator[Finding]:
    """Free memory against what weights, scenes and answers need with these settings."""
    free, bound = _memory()
    weights = _weights(settings)
    on_gpu = settings.device.startswith("cuda")
    kept = settings.scene_memory_bytes + settings.latent_memory_bytes
    front = settings.held_scene_bytes + settings.answer_memory_bytes + (256 << 20)
    engines = settings.engines * (kept + (0 if on_gpu else weights) + (512 << 20))
    spare = settings.engines * (512 << 20) if settings.spare else 0  # weights are shared
    need = front + engines + spare
    found = (
        f"{_gb(free)} free ({bound}); about {_gb(need)} needed: {settings.engines} × weights "
        f"{_gb(0 if on_gpu else weights)} and scenes {_gb(kept)}"
    )
    advice = (
        "lower --scene-memory-bytes or --engines, load the weights as bfloat16 (--dtype), or take "
        "a larger machine"
    )
    if need > free:
        yield Finding("memory", RED, found, advice)
    elif need > 0.8 * free:
        yield Finding("memory", YELLOW, found, advice)
    else:
        yield Finding("memory", GREEN, found)


def gpus(settings: Settings) -> Iterator[Finding]:
    """NVIDIA GPUs that the driver lists against the devices in the settings."""
    wanted = [name for name in (settings.device, settings.backend_device) if name != "cpu"]
    listed = _gpus()
    if wanted and not listed:
        yield Finding(
            "GPU",
            RED,
            f"none, but the settings need {', '.join(wanted)}",
            "install the driver (nvidia-smi must list the GPU), or set --device cpu and "
            "--backend-device cpu",
        )
    elif wanted and settings.engines > len(listed):
        yield Finding(
            "GPU",
            YELLOW,
            f"{len(listed)} for {settings.engines} engines: {'; '.join(listed)}",
            f"set --engines {len(listed)}, one for each GPU",
        )
    elif listed and not wanted:
        yield Finding(
            "GPU", YELLOW, "; ".join(listed) + "; not used", "set --device cuda to use it"
        )
    else:
        yield Finding("GPU", GREEN, "; ".join(listed) or "none, and none is asked for")


def open_files(settings: Settings) -> Iterator[Finding]:
    """The limit on open files against the connections that the settings allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = (
        descriptors.HIGHEST if hard == resource.RLIM_INFINITY else min(hard, descriptors.HIGHEST)
    )
    try:
        most = descriptors.connections(
            limit, 32, settings.other_connections, settings.max_connections
        )
    except ConfigError as error:
        yield Finding("open files", RED, error.message, "raise the limit: LimitNOFILE=65536")
        return
    found = f"at most {limit}: {most} gRPC connections"
    if most < _PLANNED:
        yield Finding("open files", YELLOW, found, "raise the limit: LimitNOFILE=65536")
    else:
        yield Finding("open files", GREEN, found)


def disks(settings: Settings) -> Iterator[Finding]:
    """Free space and write permission where the service stores files."""
    places = {
        "directory": settings.directory,
        "temporary files": settings.engine_socket_dir or Path(tempfile.gettempdir()),
        "quarantine": settings.quarantine_dir,
    }
    for name, place in places.items():
        if place is None:
            continue
        subject, there = f"disk, {name}", place.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        found = f"{_gb(free)} free at {place}"
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                subject, RED, f"{place} cannot be written", "make this user its owner: chown"
            )
        elif free < _FULL_BYTES:
            yield Finding(subject, RED, found, "make room: a full disk stops changes and backups")
        elif free < _LITTLE_BYTES:
            yield Finding(subject, YELLOW, found, "make room before it is full")
        else:
            yield Finding(subject, GREEN, found)


def clock(_: Settings) -> Iterator[Finding]:
    """Whether the clock is plausible and synchronised."""
    return findings.clock()


def _cpu() -> tuple[str, set[str]]:
    name, flags = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    return name, flags


def _memory() -> tuple[int, str]:
    """Bytes that this process may still use, and what bounds them."""
    found = [(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = [(int(line.split()[1]) << 10, "available on the machine")]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            bound = int((root / limit).read_text())
            found.append((bound - int((root / used).read_text()), "the container's limit"))
    return min(found)


def _weights(settings: Settings) -> int:
    """Bytes of the model's weights in the settings' dtype, and of the bundles."""
    if settings.model is None:
        return 0
    files = [*settings.model.glob("*.safetensors"), *settings.model.glob("*.bin")]
    stored = 4
    with contextlib.suppress(OSError):
        text = (settings.model / "config.json").read_text()
        stored = next((size for name, size in _DTYPES.items() if f'"{name}"' in text), 4)
    wanted = _DTYPES.get(settings.dtype, 4)
    bundles = sum(
        file.stat().st_size for folder in settings.bundles for file in folder.glob("cloud.*")
    )
    return sum(file.stat().st_size for file in files) * wanted // stored + 2 * bundles


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.free,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _gb(size: int) -> str:
    return f"{size / _GB:.1f} GiB"
