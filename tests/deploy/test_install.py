"""The installer, in a root of its own, with a wheelhouse and no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.deploy.small_wheel import small_wheel

INSTALL = ROOT / "deploy" / "jetson" / "install.sh"


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make test-edge` installs the real wheel with everything that it needs."""
    return small_wheel(tmp_path_factory.mktemp("wheels"), "1.0")


def install(root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [INSTALL, "--root", root, "--python", sys.executable, *options]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )


def tree(root: Path) -> dict[str, str]:
    """Every file and link outside the environments, with its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if "/parts/installed-" in name:
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_text()
    return found


def runs(root: Path) -> str:
    """What the agent that runs says: the link's target, as seen inside the root."""
    link = os.readlink(root / "usr/local/bin/edge-agent")
    command = [root / link.lstrip("/")]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout


@pytest.mark.slow
def test_installs_twice_upgrades_and_uninstalls(wheelhouse: Path, tmp_path: Path) -> None:
    model = tmp_path / "export"
    model.mkdir()
    (model / "export.json").write_text("{}")
    root = tmp_path / "root"
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd/system/nvargus-daemon.service").touch()
    given = ("--wheelhouse", wheelhouse, "--model", model)
    before = tree(root)

    done = install(root, *given)
    assert done.returncode == 0, done.stderr + done.stdout
    first = tree(root)
    assert runs(root) == "edge-agent 1.0\n"
    assert (root / "opt/neural-bridge/current/model/export.json").is_file()
    assert "etc/systemd/system/neural-bridge-edge.service.d/csi.conf" in first

    config, identity = root / "etc/neural-bridge/edge.toml", root / "var/lib/neural-bridge/identity"
    config.write_text("# mine\n")
    identity.mkdir(parents=True)
    (identity / "identity.json").write_text("a key")
    mine = tree(root)
    done = install(root, *given)
    assert done.returncode == 0 and tree(root) == mine, done.stdout
    assert "keeps" in done.stdout and "is installed" in done.stdout

    done = install(root, "--wheelhouse", wheelhouse, "--upgrade")
    assert done.returncode == 0, done.stderr
    assert os.readlink(root / "opt/neural-bridge/current") == "slots/b"
    assert (root / "opt/neural-bridge/current/model/export.json").is_file()
    assert runs(root) == "edge-agent 1.0\n" and config.read_text() == "# mine\n"

    own = root / "etc/systemd/system/neural-bridge-edge.service.d/mine.conf"
    own.write_text("[Service]\n")
    done = install(root, "--uninstall")
    assert done.returncode == 0, done.stderr
    left = set(tree(root)) - set(before)
    assert {name.partition("/neural-bridge")[0] for name in left} == {
        *("etc", "var/lib", "usr/lib/sysusers.d", "etc/systemd/system"),
    }
    assert (identity / "identity.json").read_text() == "a key"
    own.unlink()
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert tree(root) == before
    assert install(root, "--uninstall", "--purge").returncode == 0


def test_a_dry_run_changes_nothing(wheelhouse: Path, tmp_path: Path) -> None:
    done = install(tmp_path, "--wheelhouse", wheelhouse, "--dry-run")
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr
    assert "would run: mkdir" in done.stdout and "-m pip install" in done.stdout


@pytest.mark.slow
def test_an_installation_that_breaks_off_leaves_nothing_half_made(
    wheelhouse: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    done = install(root, "--wheelhouse", empty)
    assert done.returncode != 0 and "run it again" in done.stderr
    assert not list((root / "opt/neural-bridge/parts").iterdir())
    assert not (root / "opt/neural-bridge/current").is_symlink()
    assert install(root, "--wheelhouse", wheelhouse).returncode == 0 and runs(root)


def release(root: Path, text: str) -> None:
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(text)


@pytest.mark.parametrize(("line", "said"), [
    ("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic", "JetPack 6"),
    ("# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic", "JetPack 7"),
])  # fmt: skip
def test_names_the_jetpack(tmp_path: Path, line: str, said: str) -> None:
    release(tmp_path, line)
    done = install(tmp_path, "--dry-run")
    assert done.returncode == 0 and said in done.stdout, done.stderr


def test_refuses_an_old_jetpack(tmp_path: Path) -> None:
    release(tmp_path, "# R35 (release), REVISION: 4.1")
    done = install(tmp_path, "--dry-run")
    assert done.returncode == 1 and "R35" in done.stderr


@pytest.mark.parametrize(("options", "said"), [
    (("--purge",), "--uninstall"),
    (("--wheelhouse", "/nowhere"), "no such directory"),
    (("--wheelhouse",), "needs a value"),
    (("--what",), "unknown option --what"),
    (("--python", "/nowhere/python3"), "no /nowhere/python3"),
])  # fmt: skip
def test_says_what_is_wrong_with_the_options(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = install(tmp_path, *options)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\ncase $2 in *print*) echo 3.8 ;; *) exit 1 ;; esac\n")
    old.chmod(0o755)
    root = tmp_path / "root"
    root.mkdir()
    done = install(root, "--python", str(old))
    assert done.returncode == 1 and "3.10 or later" in done.stderr
    shutil.rmtree(root)


def test_a_model_that_is_no_export_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = install(root, "--model", tmp_path)
    assert done.returncode == 1 and "export.json" in done.stderr and tree(root) == {}
