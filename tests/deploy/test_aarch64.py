"""The agent without its model on a Jetson's processor, emulated: the same bytes as here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT, copy_to
from tests.deploy.test_wheels import full
from tests.test_distributions import BUILD

QEMU, BOOTSTRAP = shutil.which("qemu-aarch64-static"), shutil.which("mmdebstrap")
PYTHON = "3.11"
"""Debian's; the wheels of both JetPacks' Pythons are resolved in test_wheels.py."""


def run(*command: object, **more: Any) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@full
@pytest.mark.skipif(os.getuid() != 0, reason="unpacking a root file system needs root")
@pytest.mark.skipif(not QEMU, reason="no qemu-aarch64-static (make emulator)")
@pytest.mark.skipif(not BOOTSTRAP, reason="no mmdebstrap (make emulator)")
def test_an_agent_answers_on_an_emulated_aarch64_as_it_does_here(tmp_path: Path) -> None:
    root, wheels, site = tmp_path / "root", tmp_path / "wheels", tmp_path / "site"
    packages = f"python{PYTHON},libpython{PYTHON}-stdlib,libstdc++6,zlib1g,ca-certificates"
    run(
        *(BOOTSTRAP, "--variant=extract", "--arch=arm64", f"--include={packages}"),
        *("bookworm", root),
    )
    wheels.mkdir()
    run(sys.executable, "-c", BUILD, wheels, cwd=copy_to(tmp_path / "source"))
    (wheel,) = wheels.glob("*.whl")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", site),
        *("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"),
        *("--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"),
        f"{wheel}[edge]",
    )
    shutil.copytree(ROOT / "tests" / "fakes", tmp_path / "there" / "tests" / "fakes")
    program = ("-m", "tests.deploy.on_aarch64")
    for name in ("__init__.py", "deploy/__init__.py", "deploy/on_aarch64.py"):
        (tmp_path / "there" / "tests" / "deploy").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "there" / "tests" / name)

    quiet = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    here = run(sys.executable, *program, cwd=ROOT, env=quiet | {"HOME": str(tmp_path)})
    there = run(
        *(QEMU, "-L", root, root / f"usr/bin/python{PYTHON}", *program),
        cwd=tmp_path / "there",
        env=quiet | {"PYTHONHOME": "/usr", "PYTHONPATH": f"{site}:{tmp_path / 'there'}"},
    )
    ours, theirs = json.loads(here), json.loads(there)
    assert theirs.pop("machine") == "aarch64" and ours.pop("machine")
    assert theirs == ours and theirs["code"] == 0 and len(theirs["answers"]) == 3
