"""`cloud-server build`: compiles bundles for this machine's GPU before the service starts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from cloud_server.commands.output import as_json, say
from protos.errors import ConfigError
from protos.process import console


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    from cloud_server.settings import Settings
    from protos.process import settings as configuration

    parser = commands.add_parser(
        "build",
        help="compile bundles with TensorRT for this machine's GPU, into the cache of plans",
        description="Compile each bundle's cloud half for the GPU in this machine and keep the "
        "plan. A plan works only with the bundle, GPU, driver and TensorRT that it was "
        "compiled for; after a change it is compiled again.",
        epilog="example:\n  cloud-server build --directory DIR bundles/edge-a-cloud\n\n"
        + console.ends("cloud-server"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="BUNDLE", help="default: the settings' bundles"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    configuration.add_config_flags(parser, Settings, top=False)
    configuration.add_setting_flags(
        parser, Settings, only=("directory", "bundles", "plan_cache", "backend_device")
    )
    parser.set_defaults(command=_run)


def _run(given: argparse.Namespace) -> int:
    from cloud_server.settings import Settings, load
    from projector.bundle.load import Bundle
    from projector.serving import tensorrt_build
    from protos.process import settings as configuration

    settings = load(configuration.given_flags(given, Settings), given.config)
    paths = given.paths or list(settings.bundles)
    if not paths:
        raise ConfigError("no bundle: name one, or give --bundles")
    if settings.plans is None:
        raise ConfigError("no folder for plans: give --plan-cache, or --directory")
    tensorrt_build.require_target(tensorrt_build.NATIVE)
    done: list[dict[str, Any]] = []
    for path in paths:
        info = Bundle.peek(path)
        bundle = Bundle.load(path, info.source, info.target)
        started = time.perf_counter()
        made: Any = bundle.backend("tensorrt", device=settings.backend_device, plans=settings.plans)
        seconds = round(time.perf_counter() - started, 2)
        row = {"bundle": info.id, "version": info.version, "digest": info.digest}
        done.append(row | {"from_cache": made.from_cache, "seconds": seconds})
        if not given.json:
            how = "found" if made.from_cache else "compiled"
            say(f"{info.id}@{info.version}: {how} in {seconds:g} s, kept in {settings.plans}")
    if given.json:
        as_json(done)
    return 0
