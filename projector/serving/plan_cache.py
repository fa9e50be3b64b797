"""Cache of compiled TensorRT plans on disk, each for one bundle, GPU, driver and library.

A plan is code that the GPU runs. So only the owner may use the folder, the whole key is in the file
and compared, the plan's digest is checked, and files are written atomically.

    NBPLAN1, a line feed; length of the key, 4 bytes; key, JSON; SHA-256 of the plan, 32 bytes; plan
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from protos.errors import ConfigError
from protos.process.files import write_file, writing

_MAGIC = b"NBPLAN1\n"
_LONGEST_KEY, _LONGEST_PLAN = 1 << 16, 1 << 32


@dataclass(frozen=True)
class PlanKey:
    """What a plan was compiled for; another value in any field needs another plan.

    Attributes:
        bundle: digest of the bundle.
        graph: SHA-256 of the bundle's graph.
        gpu: name and compute capability.
        driver: version of the driver.
        library: `tensorrt` or `tensorrt_rtx`, with its version.
        shapes: shapes of the inputs, as text.
    """

    bundle: str
    graph: str
    gpu: str
    driver: str
    library: str
    shapes: str

    @property
    def text(self) -> bytes:
        """The key as stored in the file."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{hashlib.sha256(self.text).hexdigest()}.plan"


class PlanCache:
    """A folder of plans.

    Args:
        folder: made if missing, for the owner only.

    Raises:
        ConfigError: it cannot be made, or other users may read or write it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(
                f"{folder}: plans are run by the GPU, so nobody else may reach this folder: chmod "
                "700, owned by the service's user"
            )

    def get(self, key: PlanKey) -> bytes | None:
        """The plan with exactly this key; None if it is missing or damaged."""
        path = self._folder / key.name
        with contextlib.suppress(OSError):
            if path.lstat().st_size > _LONGEST_PLAN or not path.is_file() or path.is_symlink():
                return None
            return _read(path.read_bytes(), key)
        return None

    def put(self, key: PlanKey, plan: bytes) -> None:
        """Store a plan atomically.

        Raises:
            DiskFullError, ConfigError: it cannot be written.
        """
        head = _MAGIC + len(key.text).to_bytes(4, "little") + key.text
        with writing(self._folder / key.name):
            write_file(
                self._folder / key.name, head + hashlib.sha256(plan).digest() + plan, mode=0o600
            )

    def plan(self, key: PlanKey, compile: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The plan of a key, compiled and stored if missing; and whether it came from the cache."""
        found = self.get(key)
        if found is not None:
            return found, True
        made = compile()
        self.put(key, made)
        return made, False


def _read(blob: bytes, key: PlanKey) -> bytes | None:
    start = len(_MAGIC) + 4
    if blob[: len(_MAGIC)] != _MAGIC or len(blob) < start:
        return None
    length = int.from_bytes(blob[len(_MAGIC) : start], "little")
    if length > _LONGEST_KEY or blob[start : start + length] != key.text:
        return None
    digest, plan = blob[start + length : start + length + 32], blob[start + length + 32 :]
    return plan if hashlib.sha256(plan).digest() == digest else None


def driver_version() -> str:
    """The CUDA version of the NVIDIA driver, such as `13020`; empty without one.

    It ends with the kernel module's version if the system reports it.
    """
    found = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    if driver.cuDriverGetVersion(ctypes.byref(found)):
        return ""
    module = ""
    with contextlib.suppress(OSError):
        module = Path("/sys/module/nvidia/version").read_text().strip()
    return f"{found.value} {module}".strip()
