"""The files that put the agent on a Jetson: units, udev rules, Dockerfiles, the installer."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import settings
from edge_agent.update.commands import WAITING
from edge_agent.update.from_service import FOLDER, WAITS
from tests.checkout import ROOT

JETSON = ROOT / "deploy" / "jetson"
UNIT = "neural-bridge-edge.service"
UNITS = sorted(path.name for path in JETSON.glob("*.service"))
WATCHERS = ("neural-bridge-edge-slot.timer", "neural-bridge-edge-update.path")
AGENT = "opt/neural-bridge/current/agent/bin/edge-agent"
ANALYZE = shutil.which("systemd-analyze")
systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (systemd)")


def tool(name: str) -> str:
    """A linter beside this Python, else on the path; skips without one."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (make setup)")
    return found


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""} | more,
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root file system with the units and an empty program in the agent's place."""
    root = tmp_path_factory.mktemp("machine")
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    for file in (*JETSON.glob("*.service"), *JETSON.glob("*.timer"), *JETSON.glob("*.path")):
        shutil.copy(file, units)
    for program in (AGENT, "usr/bin/python3", "bin/kill"):
        (root / program).parent.mkdir(parents=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "timers", "paths", "local-fs"):
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    yield root


@systemd
@pytest.mark.parametrize("unit", [*UNITS, *WATCHERS])
def test_systemd_understands_every_line_of_a_unit(machine: Path, unit: str) -> None:
    command = (str(ANALYZE), "verify", "--recursive-errors=yes", "--man=no", f"--root={machine}")
    done = run(*command, unit)
    assert done.returncode == 0 and not done.stderr, done.stderr


@systemd
def test_systemd_refuses_a_line_that_it_does_not_know(machine: Path) -> None:
    """The check above can fail."""
    broken = machine / "etc/systemd/system/broken.service"
    text = (JETSON / UNIT).read_text().replace("WatchdogSec=", "WatchdogSeconds=")
    broken.write_text(text)
    command = (str(ANALYZE), "verify", "--recursive-errors=yes", "--man=no", f"--root={machine}")
    done = run(*command, "broken.service")
    broken.unlink()
    assert done.returncode != 0 or "WatchdogSeconds" in done.stderr


@systemd
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_locked_down(unit: str) -> None:
    done = run(str(ANALYZE), "security", "--offline=true", "--threshold=20", JETSON / unit)
    assert done.returncode == 0, done.stdout


def settings_of(unit: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((JETSON / unit).read_text())
    return {key: value for section in parser.sections() for key, value in parser.items(section)}


def test_the_agent_waits_for_neither_the_network_nor_the_time() -> None:
    """A device whose clock is at 1970 and whose network is down still sees and keeps frames."""
    found = settings_of(UNIT)
    ordered = " ".join(found.get(key, "") for key in ("After", "Requires", "Wants", "BindsTo"))
    assert "time-sync" not in ordered and "network" not in ordered


def test_the_agent_is_started_again_for_ever() -> None:
    found = settings_of(UNIT)
    assert (found["Restart"], found["StartLimitIntervalSec"]) == ("always", "0")
    assert found["Type"] == "notify" and int(found["WatchdogSec"]) > 0


def test_what_the_agent_hands_over_starts_the_unit_that_installs_it() -> None:
    watched = settings_of("neural-bridge-edge-update.path")
    unit = settings_of(watched["Unit"])
    state = "/var/lib/neural-bridge"
    assert watched["PathModified"] == f"{state}/{FOLDER}/{WAITS}"
    assert f"STATE_DIR={state}" in (JETSON / watched["Unit"]).read_text()
    assert unit["ExecStart"] == f"/{AGENT} update {WAITING}"
    assert unit["ReadWritePaths"] == "/opt/neural-bridge", "it writes nothing where the agent may"
    assert watched["Unit"].removesuffix(".service") + ".path" in (
        JETSON / "install.sh"
    ).read_text().replace("$unit", "neural-bridge-edge")


def test_the_start_limit_ends_a_start_before_systemd_does() -> None:
    """Else nobody would learn why: the agent says so, systemd only kills."""
    minutes = int(settings_of(UNIT)["TimeoutStartSec"].removesuffix("min"))
    assert settings.Settings().start_limit_s < 60 * minutes


def test_udev_understands_the_rules() -> None:
    udevadm = shutil.which("udevadm")
    if udevadm is None or run(udevadm, "verify", "--help").returncode != 0:
        pytest.skip("udevadm verify is not there (systemd 254 or later)")
    done = run(udevadm, "verify", *JETSON.glob("*.rules"))
    assert done.returncode == 0, done.stderr


def test_udev_rules_have_known_keys_and_no_jump_into_nowhere() -> None:
    known = {
        *("SUBSYSTEM", "SUBSYSTEMS", "ACTION", "GOTO", "LABEL", "GROUP", "MODE", "ENV"),
        *("SYMLINK", "ATTR", "TEST"),
    }
    jumps, labels = set(), set()
    for file in JETSON.glob("*.rules"):
        for line in file.read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            for word in line.split(", "):
                key, _, value = word.partition("=")
                assert key.rstrip("!+").partition("{")[0] in known, word
                jumps |= {value.strip('="')} if key == "GOTO" else set()
                labels |= {value.strip('="')} if key == "LABEL" else set()
    assert jumps and jumps == labels


@pytest.mark.parametrize("file", sorted(path.name for path in JETSON.glob("*.sh")))
def test_shellcheck_finds_nothing_in(file: str) -> None:
    done = run(tool("shellcheck"), "--external-sources", JETSON / file)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted(path.name for path in JETSON.glob("Dockerfile*")))
def test_hadolint_finds_nothing_in(file: str) -> None:
    done = run(tool("hadolint"), "--failure-threshold", "style", JETSON / file)
    assert done.returncode == 0, done.stdout


def test_the_configuration_has_only_settings_that_exist(tmp_path: Path) -> None:
    text = (JETSON / "edge.toml").read_text()
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in text.splitlines()
    )
    file = tmp_path / "edge.toml"
    file.write_text(uncommented)
    chosen = settings.load({}, file, {})
    assert chosen.source and chosen.questions and chosen.trigger and chosen.server
