"""Images, built and run without a daemon: buildah with chroot isolation, podman with runc.

The base is a Debian root of mmdebstrap, because no registry is asked. `docs/deploy.md` says what
this proves and what it does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT
from tests.deploy.test_dist import dist, full

__all__ = ["dist"]
CLOUD = ROOT / "deploy" / "cloud"
PROGRAMS = ("buildah", "mmdebstrap", "podman", "runc")
TAG = "localhost/neural-bridge"
READY_S = 300.0
needs = pytest.mark.skipif(
    os.getuid() != 0 or not all(map(shutil.which, PROGRAMS)),
    reason="needs root, buildah, podman, runc and mmdebstrap (make containers)",
)


class Containers:
    """Images and containers in a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))

    def buildah(self, *words: str | Path) -> str:
        return self._run("buildah", *self.storage, *words)

    def podman(self, *words: str | Path) -> str:
        return self._run("podman", *self.storage, *self.runtime, *words)

    runtime = ("--runtime", "runc", "--cgroup-manager=cgroupfs")

    @staticmethod
    def _run(*words: str | Path) -> str:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def base(self, architecture: str, folder: Path) -> str:
        """A minimal Debian of this architecture as an image; returns its name."""
        tar, name = folder / f"{architecture}.tar", f"{TAG}-base:{architecture}"
        options = ("--variant=minbase", "--include=ca-certificates", f"--arch={architecture}")
        self._run("mmdebstrap", *options, "bookworm", tar)
        self.podman("import", f"--arch={architecture}", tar, name)
        return name

    def build(self, dockerfile: Path, context: Path, name: str, **arguments: str) -> None:
        """Build an image from a folder of wheels, without a package index."""
        words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        self.buildah(
            *("bud", "--isolation", "chroot", "--pull=never", "--format", "docker", *words),
            *("--file", dockerfile, "--tag", name, context),
        )


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    made = Containers(tmp_path_factory.mktemp("containers"))
    yield made
    made.podman("system", "reset", "--force")


def wheelhouse(wheels: list[Path], folder: Path, extras: str, *options: str) -> Path:
    """A folder with wheels and every dependency of the product's."""
    folder.mkdir()
    for wheel in wheels:
        shutil.copy(wheel, folder)
    (product,) = folder.glob("neural_bridge-*.whl")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *options]
    command += ["--only-binary=:all:", f"{product}[{extras}]"]
    subprocess.run(command, check=True)
    return folder


@full
@needs
@pytest.mark.timeout(3600)
def test_the_services_image_is_built_and_answers_without_rights(
    containers: Containers, dist: Any, tmp_path: Path
) -> None:
    assert dist.main(["--out", str(tmp_path / "dist"), "--no-bom"]) == 0
    wheels = sorted((tmp_path / "dist").glob("*.whl"))
    pinned = ("-c", str(ROOT / ".ci/constraints.txt"))
    context = wheelhouse(wheels, tmp_path / "wheels", "cloud,otlp,postgresql,edge,align", *pinned)
    base = containers.base("amd64", tmp_path)
    offline = {"TORCH_INDEX": "", "PIP_NO_INDEX": "1"}
    containers.build(CLOUD / "Dockerfile", context, f"{TAG}-cloud", BASE=base, **offline)

    kept = {place: tmp_path / place for place in ("bridge", "keys", "state", "cache")}
    for path in kept.values():
        path.mkdir(mode=0o700)
        os.chown(path, 8471, 8471)
    volumes = [f"--volume={kept['bridge']}:/srv/bridge", f"--volume={kept['keys']}:/keys"]
    volumes += [f"--volume={CLOUD}:/deploy:ro", f"--volume={kept['state']}:/state"]
    volumes += [f"--volume={kept['cache']}:/var/cache/neural-bridge"]
    locked = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    # Docker's own limits are above those of a container in a container.
    locked += ["--network=none", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]

    where = "import reference; print(reference.__path__[0])"
    python = ("--entrypoint=python3", f"{TAG}-cloud")
    reference = containers.podman("run", "--rm", *locked, *python, "-c", where)
    served = ("--model", f"{reference}/models/cloud")
    served += ("--bundles", f"{reference}/bundles/edge-a-cloud")
    first = ("--entrypoint=/deploy/first-start.sh", f"{TAG}-cloud", "--directory", "/srv/bridge")
    containers.podman("run", "--rm", *locked, *volumes, *first, "--keys", "/keys", *served)
    assert (kept["keys"] / "owner").read_text().startswith("nbk_")

    containers.podman("run", "--detach", "--name=service", *locked, *volumes, f"{TAG}-cloud")

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["podman", *containers.storage, *containers.runtime, "exec", "service"]
        return subprocess.run([*command, *words], capture_output=True, text=True)

    health = ["podman", *containers.storage, *containers.runtime, "healthcheck", "run", "service"]
    end = time.monotonic() + READY_S
    while subprocess.run(health, capture_output=True).returncode:
        assert time.monotonic() < end, containers.podman("logs", "service")
        time.sleep(1.0)

    assert inside("id", "-u").stdout.strip() == "8471"
    assert inside("touch", "/srv/new").returncode != 0, "the image can be written"
    assert inside("touch", "/usr/bin/new").returncode != 0

    inside("cloud-server", "devices", "add", "gate", "--tenant", "main")
    code = json.loads(inside("cloud-server", "devices", "code", "gate", "--json").stdout)["code"]
    state = ("--state-dir", "/state")
    done = inside("edge-agent", "enrol", *state, "--server", "localhost:50052", "--code", code)
    assert done.returncode == 0, done.stderr
    run = ("edge-agent", "run", *state, "--server", "localhost:50051")
    run += ("--model", f"{reference}/models/edge-a", "--source", "yard://test?count=2&questions=1")
    answers = [json.loads(line) for line in inside(*run).stdout.splitlines()]
    assert len(answers) == 2 and all(record["answer"] for record in answers), answers

    containers.podman("stop", "--time=60", "service")
    told = json.loads(containers.podman("inspect", "service"))[0]["State"]
    assert told["ExitCode"] == 0, containers.podman("logs", "service")


def emulated() -> bool:
    """Whether this machine runs programs of aarch64, after the emulator was made known."""
    known = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
    if not known.exists() and shutil.which("update-binfmts") and os.getuid() == 0:
        folder = str(known.parent)
        subprocess.run(["mount", "-t", "binfmt_misc", "none", folder], capture_output=True)
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], capture_output=True)
    return known.exists()


@full
@needs
@pytest.mark.timeout(3600)
def test_the_agents_image_is_built_and_starts_on_arm64(
    containers: Containers, dist: Any, tmp_path: Path
) -> None:
    """JetPack 7's Dockerfile on Debian in place of NVIDIA's base: Python 3.11 in place of 3.12."""
    if not emulated():
        pytest.skip("no emulated aarch64 (make containers; apt-get install binfmt-support)")
    assert dist.main(["--out", str(tmp_path / "dist"), "--no-bom"]) == 0
    (product,) = (tmp_path / "dist").glob("neural_bridge-*.whl")
    other = ("--python-version=3.11", "--implementation=cp")
    other += ("--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64")
    context = wheelhouse([product], tmp_path / "wheels", "edge", *other)
    base = containers.base("arm64", tmp_path)
    jetpack = ROOT / "deploy/jetson/Dockerfile.jetpack7"
    containers.build(jetpack, context, f"{TAG}-edge:arm64", BASE=base)
    said = json.loads(containers.podman("inspect", f"{TAG}-edge:arm64"))[0]
    assert said["Architecture"] == "arm64"
    # onnxruntime reads the emulator's host's processors there, and crashes.
    hidden = ("--rm", "--network=none", "--read-only", "--tmpfs=/sys/devices/system/cpu")
    told = containers.podman("run", *hidden, f"{TAG}-edge:arm64", "--version")
    assert told.startswith("edge-agent ")
