"""`cloud-server doctor`: checks machine and settings; each line is green, yellow or red."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloud_server.commands.output import as_json, say
from protos.errors import ConfigError

if TYPE_CHECKING:
    from cloud_server.settings import Settings
    from protos.process.findings import Finding


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    from cloud_server.settings import Settings
    from protos.process import settings as configuration

    parser = commands.add_parser(
        "doctor",
        help="check whether the service will run on this machine with these settings",
        description="Check processors, memory, GPUs, libraries, ports, certificates, database,\n"
        "disks, limits, clock, model and bundles; say what to do where something is wrong.\n"
        "Takes the flags of serve.",
        epilog="example:\n  cloud-server doctor --directory /srv/bridge\n\n"
        "exit codes: 0 nothing is red, "
        f"{ConfigError.exit_code} something is red: the service will not run, or not safely",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--quick", action="store_true", help="do not load the model to check that bundles fit it"
    )
    configuration.add_config_flags(parser, Settings, top=False)
    configuration.add_setting_flags(parser, Settings)
    parser.set_defaults(command=_run)


def _run(given: argparse.Namespace) -> int:
    from cloud_server.settings import Settings, load
    from protos.process import settings as configuration
    from protos.process.findings import RED, show

    found: list[Finding] = []
    try:
        settings = load(configuration.given_flags(given, Settings), given.config)
    except ConfigError as error:
        found.append(_unreadable(error))
    else:
        for finding in _look(settings, given.quick):
            found.append(finding)
            if not given.json:
                show(finding, say)
    if given.json:
        as_json([asdict(finding) for finding in found])
    elif len(found) == 1:
        show(found[0], say)
    return ConfigError.exit_code if any(one.level == RED for one in found) else 0


def _unreadable(error: ConfigError) -> Finding:
    from protos.process.findings import RED, Finding

    return Finding("settings", RED, error.message, "see cloud-server serve --help")


def _look(settings: Settings, quick: bool) -> Iterator[Finding]:
    from cloud_server.doctor import machine, programs, service
    from protos.process.findings import GREEN, Finding, findings

    def exposure(settings: Settings) -> Iterator[Finding]:
        settings.check_exposure()
        yield Finding("settings", GREEN, "valid")

    checks = (
        ("settings", exposure),
        ("processor", machine.processors),
        ("memory", machine.memory),
        ("GPU", machine.gpus),
        ("open files", machine.open_files),
        ("disk", machine.disks),
        ("clock", machine.clock),
        ("torch", programs.torch_works),
        ("onnxruntime", programs.onnxruntime_works),
        ("tensorrt", programs.tensorrt_works),
        ("ports", service.ports),
        ("certificates", service.certificates),
        ("database", service.database),
        ("model", service.model),
        ("bundles", lambda given: service.bundles(given, quick)),
    )
    for subject, check in checks:
        yield from findings(subject, lambda check=check: check(settings))  # type: ignore[misc]
