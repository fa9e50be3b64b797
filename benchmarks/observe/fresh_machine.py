"""A fresh Debian machine to the first answer on the live page, by the commands of docs/deploy.md.

The machine is a Debian root made by mmdebstrap, with a name space of its own for processes and
mounts. What would be downloaded is there before the clock starts: Debian's packages in apt's own
folder, wheels in a folder that pip is pointed at. The page is used as a person does, in Chromium.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.edge.figures import at_most, not_run
from benchmarks.observe.live_page import chromium
from protos.errors import BridgeError

COMMANDS = (
    "tar xzf neural-bridge-*-deploy.tar.gz",
    "neural-bridge-*/deploy/cloud/run-native.sh --demo",
)
TYPED, SECONDS = "a fresh machine to the first answer: commands typed", 300.0
TOOK = "a fresh machine to the first answer on the live page, downloads excluded"
PORTS = (50051, 50052, 8443, 9464, 9490, 9493)
RELEASE = "bookworm"
QUESTION = "is there a fire ?"
_PACKAGES = "python3-venv postgresql prometheus prometheus-alertmanager"
_EXTRAS = "cloud,edge,otlp,postgresql"
_ANSWER_MS = 180_000
_STACK = "var/lib/neural-bridge-stack"


def fresh_machine(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns `figures` and the parts of the time, seconds.

    Args:
        folder: for downloads, which later runs use again, and what the commands printed.
        quick: makes no difference: nothing here can be left out.
    """
    if why := _why_not():
        rows = [(TYPED, "≤ 2", "commands"), (TOOK, f"≤ {SECONDS:g}", "s")]
        return {"figures": [not_run(*row, why) for row in rows]}
    folder.mkdir(parents=True, exist_ok=True)
    archive, wheels = _downloads(folder)
    base = folder / f"{RELEASE}.tar"
    if not base.is_file():
        options = ("--variant=important", "--include=ca-certificates", "--quiet")
        part = base.with_suffix(".part.tar")
        _run("mmdebstrap", *options, RELEASE, part)
        part.rename(base)
    with _machine(base, folder, wheels) as root:
        shutil.copy(archive, root / "root")
        began = time.monotonic()
        with _typed(root, folder / "printed.txt") as shell:
            _until(root / "root/ready", shell, folder / "printed.txt")
            ready_s = time.monotonic() - began
            key = (root / _STACK / "keys/owner").read_text(encoding="utf-8").strip()
            answer = asyncio.run(_ask(key))
            took_s = time.monotonic() - began
    return {
        "ready_s": round(ready_s, 1),
        "answer": answer,
        "commands": list(COMMANDS),
        "figures": [
            at_most(TYPED, len(COMMANDS), 2, "commands"),
            at_most(TOOK, took_s, SECONDS, "s"),
        ],
    }


def _why_not() -> str:
    """Why no machine can be made here; empty if one can."""
    programs = [name for name in ("mmdebstrap", "unshare", "chroot") if shutil.which(name) is None]
    if os.getuid() != 0 or programs:
        return "needs root and mmdebstrap (make containers)"
    if not chromium():
        return "no Chromium (make browser)"
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"port {port} is taken"
    return ""


def _downloads(folder: Path) -> tuple[Path, Path]:
    """The release's archive, and a folder with the wheel of everything that it needs."""
    made = folder / "dist"
    _run(sys.executable, command.ROOT / ".ci/dist.py", "--out", made, "--no-bom")
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    archive, product, reference = (
        max(made.glob(pattern), key=lambda path: path.stat().st_mtime)
        for pattern in ("*-deploy.tar.gz", "neural_bridge-*.whl", "neural_bridge_reference-*.whl")
    )
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:")
    constraints = command.ROOT / ".ci/constraints.txt"
    found = ("--find-links", wheels, "--find-links", made, "-c", constraints, "-d", wheels)
    _run(*pip, *found, f"{product}[{_EXTRAS}]", reference)
    for own in wheels.glob("neural_bridge*.whl"):
        own.unlink()
    return archive, wheels


@contextmanager
def _machine(base: Path, folder: Path, wheels: Path) -> Iterator[Path]:
    """A fresh root, with this machine's sources of Debian's packages and what was fetched."""
    packages = folder / "packages"
    (packages / "partial").mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="fresh"))
    mounts: list[Path] = []
    try:
        _run("tar", "--numeric-owner", "-xf", base, "-C", root)
        for name in ("apt/sources.list.d", "resolv.conf"):
            _copy(Path("/etc") / name, root / "etc" / name)
        if (root / "etc/apt/sources.list").exists() and any(
            Path("/etc/apt/sources.list.d").iterdir()
        ):
            (root / "etc/apt/sources.list").unlink()
        for source, place in (
            (packages, "var/cache/apt/archives"),
            (wheels, "srv/wheels"),
            (Path("/dev"), "dev"),
        ):
            target = root / place
            target.mkdir(parents=True, exist_ok=True)
            _run("mount", "--bind", source, target)
            mounts.append(target)
        _run("chroot", root, "apt-get", "update", "-qq")
        _run(
            *("chroot", root, "apt-get", "install", "-y", "-qq", "--download-only"),
            *("--no-install-recommends", *_PACKAGES.split()),
        )
        yield root
    finally:
        for target in reversed(mounts):
            subprocess.run(["umount", "--lazy", target], check=False)
        if not any(os.path.ismount(target) for target in mounts):
            shutil.rmtree(root)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        target.unlink(missing_ok=True)
        shutil.copy(source, target)


@contextmanager
def _typed(root: Path, printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The commands, typed one after the other; everything that they started ends with this."""
    script = " && ".join(("cd /root", *COMMANDS, "touch ready")) + "; sleep 3600"
    names = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc")
    environ = {
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        # The wheels are there, as they would be after a download.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/srv/wheels",
    }
    with printed.open("wb") as out:
        shell = subprocess.Popen(
            [*names, "chroot", root, "/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environ,
        )
    try:
        yield shell
    finally:
        shell.kill()
        shell.wait()


def _until(ready: Path, shell: subprocess.Popen[bytes], printed: Path) -> None:
    end, told = time.monotonic() + 3600, 0.0
    while not ready.exists():
        lines = printed.read_text(errors="replace").splitlines()
        if shell.poll() is not None or time.monotonic() > end or _failed(lines):
            raise BridgeError(f"the machine is not ready; {printed} ends with: {lines[-3:]}")
        if time.monotonic() - told > 10 and lines:
            told = time.monotonic()
            print(f"observe: fresh machine: {lines[-1]}", flush=True)
        time.sleep(0.2)


def _failed(lines: list[str]) -> bool:
    return any("apt-get failed" in line or "ERROR:" in line for line in lines)


async def _ask(key: str) -> str:
    """Sign in, choose the camera, ask; returns the answer that the page shows."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"]
        )
        try:
            page = await browser.new_page(ignore_https_errors=True)
            page.set_default_timeout(_ANSWER_MS)
            await page.goto("https://localhost:8443/live")
            await page.get_by_label("Key of an application or operator").fill(key)
            await page.get_by_role("button", name="Sign in").click()
            await page.get_by_role("link", name="camera-1").click()
            await page.get_by_label("Ask about the newest scene").fill(QUESTION)
            await page.get_by_role("button", name="Ask").click()
            answer = page.locator("output").get_by_text(re.compile("^(yes|no)$"))
            await answer.wait_for()
            return await answer.inner_text()
        finally:
            await browser.close()


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise BridgeError(f"{words[0]} failed with {done.returncode}: {' '.join(said)}")
