"""Makes a slot of a verified update; what runs is not touched."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from edge_agent.update import boot
from edge_agent.update.boot import BootState, Slot, Slots
from edge_agent.update.device import check_device
from projector.bundle.update import Update
from protos.errors import DiskFullError, UpdateError
from protos.process.files import NO_ROOM, writing

_ROOM = 5
"""An environment takes some five times its wheels: they, their files, compiled files."""
_SPARE_BYTES = 64 << 20
_MOST_INSTALL_S = 1800.0
AGENT = "agent"


def install(update: Update, slots: Slots, older: bool = False) -> BootState:
    """Unpack an update beside what runs, and put it on trial.

    Args:
        update: verified.
        slots: where.
        older: allow one that is not newer than what runs.

    Raises:
        UpdateError: it does not fit this device, is not newer, or its wheels do not install.
        DiskFullError: there is no room.
        ConfigError: the slots cannot be written.
    """
    if not slots.root.is_dir():
        raise UpdateError(f"{slots.root} has no slot that runs: run install.sh first")
    with writing(slots.root), slots.locked():
        state = slots.state()
        good = slots.slot(state.good) if state is not None else None
        if good is None:
            raise UpdateError(f"{slots.root} has no slot that runs: run install.sh first")
        check_device(update.manifest, good.number, older)
        slots.drop_unused_parts()
        _require_room(update, slots.root)
        parts = dict(good.parts)
        for kind in update.manifest.kinds:
            parts[kind] = _part(update, kind, slots, tuple(good.parts.values()))
        os.sync()  # an environment's files are not synced one by one
        manifest = update.manifest
        slot = Slot(secrets.token_hex(8), manifest.number, manifest.version, update.digest, parts)
        return boot.adopt(slots, slot)


def _part(update: Update, kind: str, slots: Slots, in_use: tuple[str, ...]) -> str:
    """Unpack one kind; returns its folder's name under `parts`."""
    files = {
        name: file for name, file in update.manifest.files.items() if name.startswith(kind + "/")
    }
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    name = f"{kind}-{digest[:16]}"
    if name in in_use:
        return name  # exactly this part runs already
    place = slots.root / "parts" / name
    shutil.rmtree(place, ignore_errors=True)  # of an update that broke off
    place.parent.mkdir(exist_ok=True)
    wheels = place / "wheels"
    try:
        if kind != AGENT:
            place.mkdir()
            update.unpack(kind, place)
            return name
        wheels.mkdir(parents=True)
        update.unpack(kind, wheels)
        _environment(place, wheels)
        shutil.rmtree(wheels)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return name


def _environment(place: Path, wheels: Path) -> None:
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-cache-dir", "--no-input")
    binary = ("--only-binary=:all:", "--disable-pip-version-check", "--find-links", str(wheels))
    agent = str(place / "bin" / "edge-agent")
    for command in (
        (str(python), "-I", "-m", "venv", str(place)),
        (str(place / "bin" / "python"), "-I", *install, *binary, "neural-bridge[edge]"),
        (agent, "--version"),
    ):
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(place)}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environ, timeout=_MOST_INSTALL_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UpdateError(f"{command[0]} failed: {error}") from error
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or "no message"
            what = f"{' '.join(command[:4])} …: {said.splitlines()[-1]}"
            if any(os.strerror(number) in said for number in NO_ROOM):
                raise DiskFullError(f"no room for its wheels: {what}")
            raise UpdateError(f"its wheels do not install: {what}")


def _require_room(update: Update, root: Path) -> None:
    need = _SPARE_BYTES
    for name, file in update.manifest.files.items():
        need += file.bytes * (_ROOM if name.startswith(AGENT + "/") else 1)
    free = shutil.disk_usage(root).free
    if free < need:
        raise DiskFullError(
            f"{root} has {free >> 20} MiB free, this update needs about {need >> 20}"
        )
