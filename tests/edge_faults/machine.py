"""A virtual machine with video devices, which runs one of this checkout's modules.

A Debian kernel, emulated (`make machine` gets it), sees this machine's files, read-only, and loads
`vivid`: video devices that are made up by the kernel. What the module prints comes back.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.checkout import ROOT

PARTS = ROOT / "build" / "machine"
"""The unpacked packages: a kernel with its modules, and busybox."""
_QEMU = "qemu-system-x86_64"
_MODULES = ("virtio_pci", "9pnet_virtio", "9p")
_START = """#!/bin/busybox sh
b=/bin/busybox
for module in {modules}; do $b insmod /$module.ko; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro here /here
$b mount -t devtmpfs dev /here/dev
$b mount -t proc proc /here/proc
$b mount -t sysfs sys /here/sys
$b mount -t tmpfs run /here/run
$b mkdir /here/dev/shm
$b mount -t tmpfs shm /here/dev/shm
$b insmod /vivid.ko {devices}
$b chroot /here /bin/sh -c 'cd {root} && exec {program} </dev/null >/dev/ttyS1'
$b poweroff -f
"""


def why_not() -> str:
    """Why no such machine can be started; empty if it can."""
    if platform.machine() != "x86_64":
        return "the machine is an emulated x86-64"
    if shutil.which(_QEMU) is None or not (_kernel() and _busybox().exists()):
        return "no qemu-system-x86 or no kernel for it: make machine"
    return ""


def boot(folder: Path, module: str, devices: str, limit_s: float) -> list[str]:
    """Start the machine and run a module there; returns the lines that it printed.

    Args:
        folder: for the machine's files; `console.log` is what its kernel and the module's errors
            said.
        module: its name, to be run by this Python.
        devices: arguments of the kernel's module `vivid`.
        limit_s: longest time for all, seconds.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    start = folder / "start.cpio"
    start.write_bytes(_archive(_files(module, devices)))
    console, printed = folder / "console.log", folder / "printed"
    subprocess.run(
        [
            *(_QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536"),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(_kernel()), "-initrd", str(start)),
            *("-append", "console=ttyS0 panic=-1 quiet mitigations=off"),
            *("-serial", f"file:{console}", "-serial", f"file:{printed}"),
            *("-virtfs", _SHARED),
        ],
        timeout=limit_s,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return printed.read_text(errors="replace").splitlines()


_SHARED = "local,path=/,mount_tag=here,security_model=none,readonly=on,multidevs=remap"


def _kernel() -> Path | None:
    return next(iter(sorted(PARTS.glob("boot/vmlinuz-*"))), None)


def _busybox() -> Path:
    return PARTS / "bin" / "busybox"


def _files(module: str, devices: str) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of everything that is there before this machine's files are."""
    needed = _needed([*_MODULES, "vivid"])
    variables = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/run",
        "TMPDIR": "/run",
        # Without an environment's start files, which an emulated processor reads for seconds.
        "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
    }
    given = " ".join(f"{name}={value}" for name, value in variables.items())
    python = Path(sys.executable).resolve()
    program = f"/usr/bin/env -i {given} {python} -m {module}"
    text = _START.format(
        modules=" ".join(path.stem for path in needed[:-1]),
        devices=devices,
        root=ROOT,
        program=program,
    )
    yield "bin", 0o40755, b""
    yield "here", 0o40755, b""
    yield "bin/busybox", 0o100755, _busybox().read_bytes()
    yield "init", 0o100755, text.encode()
    for path in needed:
        yield path.name, 0o100644, path.read_bytes()


def _needed(names: Sequence[str]) -> list[Path]:
    """The files of kernel modules and of those that they need, in the order of loading."""
    every = {path.stem.replace("-", "_"): path for path in PARTS.glob("lib/modules/*/**/*.ko")}
    found: dict[str, Path] = {}

    def visit(name: str) -> None:
        path = every.get(name.replace("-", "_"))
        if path is None or path.stem in found:  # it is part of the kernel, or already there
            return
        said = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for other in said[1].decode().split(",") if said else ():
            visit(other)
        found[path.stem] = path

    for name in names:
        visit(name)
    return list(found.values())


def _archive(files: Iterator[tuple[str, int, bytes]]) -> bytes:
    """An archive as the kernel reads it at its start: cpio, format "newc"."""
    made = bytearray()
    for number, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")]):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        made += b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        made += name.encode() + b"\0"
        made += bytes(-len(made) % 4) + content
        made += bytes(-len(made) % 4)
    return bytes(made)
