"""What puts the service on a machine: unit, installer, image, compose file, monitoring's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkout import ROOT
from tests.deploy.small_wheel import small_wheel
from tests.deploy.test_jetson import ANALYZE, run, systemd, tool

CLOUD = ROOT / "deploy" / "cloud"
MONITORING = ROOT / "deploy" / "monitoring"
UNIT = "neural-bridge-cloud.service"
SCRIPTS = sorted(path.name for path in CLOUD.glob("*.sh"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLOUD / "compose.yaml").read_text())
    return found


@pytest.mark.parametrize("file", SCRIPTS)
def test_shellcheck_finds_nothing_in(file: str) -> None:
    done = run(tool("shellcheck"), "--external-sources", CLOUD / file)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [name for name in SCRIPTS if name != "compose-start.sh"])
def test_a_script_has_help_and_refuses_what_it_does_not_know(file: str) -> None:
    told = run(CLOUD / file, "--help")
    assert told.returncode == 0 and told.stdout.startswith(f"usage: {file}"), told.stderr
    wrong = run(CLOUD / file, "--directry", "x")
    assert wrong.returncode and "unknown option --directry" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ports", "https"), "expected a number"),
        (("--directory", "/tmp/a b"), "letters, digits"),
        (("--directory", "/tmp/" + "a" * 90), "longer than 80"),
        (("--name",), "needs a value"),
    ],
)
def test_run_native_refuses_what_would_fail_later(words: tuple[str, ...], said: str) -> None:
    done = run(CLOUD / "run-native.sh", "start", "--no-install", *words)
    assert done.returncode == 1 and said in done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(tool("hadolint"), "--failure-threshold", "style", CLOUD / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_in_particular() -> None:
    words = (CLOUD / "Dockerfile").read_text()
    assert "USER 8471:8471" in words and "HEALTHCHECK" in words


def check_compose(file: Path) -> subprocess.CompletedProcess[str]:
    return run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file)


def test_the_compose_file_keeps_to_the_specification(tmp_path: Path) -> None:
    assert check_compose(CLOUD / "compose.yaml").returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((CLOUD / "compose.yaml").read_text().replace("tmpfs:", "tmpfss:"))
    assert check_compose(wrong).returncode != 0


def test_compose_holds_the_whole_stack_and_no_password(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"service", "postgresql", "prometheus", "alertmanager", "grafana", "collector"} <= set(
        services
    )
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            secret = any(word in key for word in ("PASSWORD", "SECRET", "KEY", "TOKEN"))
            assert not secret or key.endswith("_FILE"), f"{name}: {key}={value}"
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert ":" in service["image"] or service.get("build"), f"{name} has no version"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:") or name == "service", f"{name} is open: {port}"


def test_compose_mounts_files_that_exist(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (CLOUD / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in compose["volumes"], f"{name}: {source}"


@pytest.mark.parametrize("file", sorted(MONITORING.rglob("*.y*ml"), key=str), ids=lambda f: f.name)
def test_every_file_of_the_monitoring_is_yaml(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


def test_prometheus_takes_its_file(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (make prometheus)")
    shutil.copytree(MONITORING / "prometheus", tmp_path / "p")  # key and root are not there yet
    done = run(promtool, "check", "config", "--syntax-only", tmp_path / "p/prometheus.yml")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with the unit and an empty program in the service's place."""
    root = tmp_path_factory.mktemp("machine")
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(CLOUD / UNIT, units)
    for program in ("opt/neural-bridge-cloud/current/bin/cloud-server", "bin/kill"):
        (root / program).parent.mkdir(parents=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "network-online", "time-sync"):
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    return root


def verified(machine: Path, unit: str) -> subprocess.CompletedProcess[str]:
    command = (str(ANALYZE), "verify", "--recursive-errors=yes", "--man=no", f"--root={machine}")
    return run(*command, unit)


@systemd
def test_systemd_understands_every_line_of_the_unit(machine: Path) -> None:
    done = verified(machine, UNIT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    broken = machine / "etc/systemd/system/broken.service"
    broken.write_text((CLOUD / UNIT).read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in verified(machine, broken.name).stderr


@systemd
def test_the_unit_is_locked_down() -> None:
    done = run(str(ANALYZE), "security", "--offline=true", "--threshold=20", CLOUD / UNIT)
    assert done.returncode == 0, done.stdout


def install(root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [CLOUD / "install.sh", "--root", root, "--python", sys.executable, *options]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installer_installs_twice_upgrades_and_uninstalls(tmp_path: Path) -> None:
    root, wheels = tmp_path / "root", tmp_path / "wheels"
    root.mkdir()
    wheels.mkdir()
    small_wheel(wheels, "1.0")
    units, opt = root / "etc/systemd/system", root / "opt/neural-bridge-cloud"

    def runs() -> str:
        program = [opt / "current/bin/cloud-server"]
        return subprocess.run(program, capture_output=True, text=True, check=True, env={}).stdout

    done = install(root, "--wheels", wheels)
    assert done.returncode == 0, done.stderr + done.stdout
    assert runs() == "cloud-server 1.0\n"
    assert (units / UNIT).read_bytes() == (CLOUD / UNIT).read_bytes()
    assert os.readlink(units / "multi-user.target.wants" / UNIT) == f"../{UNIT}"
    assert not (root / "var/lib/neural-bridge-cloud").exists(), "an image with an identity"

    again = install(root, "--wheels", wheels)
    assert again.returncode == 0 and "writes" not in again.stdout, again.stdout

    small_wheel(wheels, "2.0")
    done = install(root, "--wheels", wheels, "--upgrade")
    assert done.returncode == 0 and runs() == "cloud-server 2.0\n", done.stderr
    assert (opt / "installed-1/bin/cloud-server").exists(), "there is no way back"

    for wheel in wheels.iterdir():
        wheel.unlink()
    broken = install(root, "--wheels", wheels, "--upgrade")
    assert broken.returncode != 0 and runs() == "cloud-server 2.0\n"
    assert not (opt / "installed-3").exists()

    kept = root / "var/lib/neural-bridge-cloud/service/settings.toml"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = install(root, "--uninstall")
    assert done.returncode == 0 and not opt.exists() and not (units / UNIT).exists()
    assert kept.exists()
    assert install(root, "--uninstall", "--purge").returncode == 0 and not kept.exists()


def test_the_installer_says_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    done = install(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would run:" in done.stdout and not list(tmp_path.iterdir())
