"""Keeps the result of a self-check on disk, so that a second start is quick."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import types
from dataclasses import asdict
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch

from projector.models import attention, cache, decoder, frozen, layout, output, rope, witness
from projector.models.frozen import FrozenModel
from projector.models.witness import TOLERANCES, Figures
from protos import layout as layouts
from protos import rotation, state
from protos.process.files import write_file

_CHECK = "projector.models.self_check"  # by name, as that module imports this one
_OURS = (
    *(attention, cache, decoder, frozen, layout, output, rope, witness),
    *(layouts, rotation, state),
)
_TYPES = {
    **{"dtype": str, "worst": str, "greedy": int, "tokens": int},
    **dict.fromkeys(("variation", "logit", "cache", "rotation", "apart"), float),
}
_MOST_CHARACTERS = 4096
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError)
_LIBRARIES = ("transformers", "tokenizers", "torch", "torchvision", "numpy", "pillow")


def cache_folder() -> Path | None:
    """Folder of the records: under XDG_CACHE_HOME, or `~/.cache`; None without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor a passwd entry
        return None
    return base / "neural-bridge" / "self-checks"


def place(model: FrozenModel) -> Path | None:
    """The record's path for this model, device and code; None without a folder."""
    folder = cache_folder()
    if folder is None:
        return None
    device = model.device
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    about = [
        model.layout.fingerprint,
        [(name, _version(name)) for name in _LIBRARIES],
        platform.python_version(),
        (device.type, processor),
        model.decoder.config._attn_implementation,
        asdict(TOLERANCES[model.layout.cache_dtype]),
        _code(model),
    ]
    return folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _code(model: FrozenModel) -> str:
    """Digest of the code that a check runs: ours, and the forwards of the model's modules.

    A version number would not change while someone edits the code.
    """
    modules = {__name__, _CHECK, *(cls.__module__ for cls in type(model).__mro__[:-1])}
    modules |= {holder.__name__ for holder in _OURS}
    parts = {type(part).__module__ for part in vars(model).values()}
    modules |= {name for name in parts if name.startswith(_CHECK.partition(".")[0])}
    digest = hashlib.sha256()
    for module in sorted(modules & set(sys.modules)):
        for name, value in sorted(vars(sys.modules[module]).items()):
            if isinstance(value, type) and value.__module__ in modules:
                for inner, method in sorted(vars(value).items()):
                    _digest_code(f"{name}.{inner}", method, digest)
            elif getattr(value, "__module__", None) in modules:
                _digest_code(name, value, digest)
    classes = {type(module) for module in model.model.modules()}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        _digest_code(cls.__qualname__, cls.forward, digest)
    return digest.hexdigest()


def _digest_code(name: str, value: Any, digest: Any) -> None:
    value = getattr(value, "__func__", value)  # for a class method
    value = getattr(value, "fget", value)  # for a property
    code = value if isinstance(value, types.CodeType) else None
    if code is None and callable(value):
        code = getattr(unwrap(value), "__code__", None)
    if code is None:
        return
    digest.update(f"{name} {code.co_names}".encode() + code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _digest_code(name, constant, digest)
        else:
            whole = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            digest.update(repr(whole).encode())


def read_record(file: Path | None, dtype: str) -> Figures | None:
    """The recorded figures of exactly this check; None unless the file is ours, whole and good."""
    try:
        if file is None or not file.is_file():  # reading a pipe would wait
            return None
        with file.open() as stream:
            if os.fstat(stream.fileno()).st_uid != os.geteuid():  # written by another user
                return None
            plain = json.loads(stream.read(_MOST_CHARACTERS))
        if plain.pop("key") != file.stem:  # another model's record under this name
            return None
        found = Figures(**plain)
        whole = {n: type(v) for n, v in plain.items()} == {n: _TYPES[n] for n in _TYPES}
        return found if whole and found.dtype == dtype and found.good else None
    except _UNREADABLE:  # absent, damaged, or of another version
        return None


def write_record(file: Path | None, found: Figures) -> bool:
    """Write the record whole or not at all; return whether it was written."""
    if file is None:
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({**asdict(found), "key": file.stem}).encode(), mode=0o600)
    except OSError:
        return False
    return True
