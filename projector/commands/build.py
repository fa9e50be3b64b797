"""`projector build` and `projector sign`: what is done to a finished bundle before it is served.

Knows flags and what is printed and written. Does not know: how an engine is compiled
(`projector/serving/engine.py`), how FP8 weights are stored (`projector/serving/export.py`), what a
signature covers (`projector/bundle/sign.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from projector.bundle.files import write_files
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.report import tables
from projector.serving import engine
from protos.errors import ConfigError
from protos.process.console import printable

PLAN = "engine.plan"
REPORT = "build-report.json"


def register(commands: Any) -> None:
    """Add the two commands to `projector`'s sub-parsers."""
    from projector.commands import cli  # here, as it imports this module

    build = cli._command(
        commands,
        "build",
        "compile a bundle's cloud half with TensorRT for a GPU, which need not be here",
        _build,
        ("bundles",),
        "projector build bundles/edge-a-cloud --target sm89 --fp8 --out build/engine",
        "projector build bundles/edge-a-cloud --target native --out build/engine",
    )
    cli._add_bundle(build)
    # `target` is a setting, and another thing: the cloud model.
    build.add_argument(
        "--target",
        dest="engine_target",
        required=True,
        metavar="GPU",
        help=f"what will run it: {', '.join(engine.TARGETS)} (the GPU in this machine)",
    )
    build.add_argument(
        "--fp8",
        action="store_true",
        help=f"store the weights in FP8 E4M3 (sm{engine.FP8_CAPABILITY} or later)",
    )
    build.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder for {PLAN} and {REPORT}, made if need be",
    )

    sign = cli._command(
        commands,
        "sign",
        "verify a bundle's bytes and sign it with an Ed25519 key",
        _sign,
        ("bundles",),
        "projector sign bundles/edge-a-cloud --key signing.pem --create",
        "projector sign bundles/edge-a-cloud --key signing.pem --json | jq -r .key",
    )
    cli._add_bundle(sign)
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key, in PEM"
    )
    sign.add_argument(
        "--create", action="store_true", help="make the key first; refused where FILE exists"
    )
    for command in (build, sign):
        command.add_argument("--json", action="store_true", help="print JSON instead")


def _build(args: argparse.Namespace) -> int:
    path = _bundle_path(args)
    if path is None:
        return 0
    engine.require_target(args.engine_target, fp8=args.fp8)
    info = Bundle.peek(path)
    graph = Bundle.load(path, info.source, info.target).cloud.graph
    about: dict[str, Any] = {"bundle": info.id, "version": info.version, "digest": info.digest}
    if args.fp8:
        with tables.doing(f"storing the weights of {info.id} in FP8"):
            graph, about["fp8_parity"] = _with_fp8(graph)
    with tables.doing(f"compiling {info.id} for {args.engine_target}"):
        plan, report = engine.build(
            graph,
            args.engine_target,
            engine.cloud_shapes(info.target, info.rank, info.source.tokens),
        )
    about |= {"build": dataclasses.asdict(report)}
    text = json.dumps(about, indent=2) + "\n"
    write_files(args.out, {PLAN: plan, REPORT: text.encode()}, gone=(REPORT,))
    if args.json:
        print(text, end="")
    else:
        print(
            f"{args.out / PLAN}: {report.engine_bytes:,} bytes for {report.capability}, "
            f"{report.precision}, by {report.library} {report.version} in {report.seconds:.1f} s; "
            "compiled, not executed"
        )
        if args.fp8:
            print(
                "FP8 weights against float32, in ONNX Runtime: relative L2 error "
                f"{about['fp8_parity']['relative_l2']:.4f}"
            )
    return 0


def _sign(args: argparse.Namespace) -> int:
    path = _bundle_path(args)
    if path is None:
        return 0
    info = Bundle.peek(path)  # no key is made for what is no bundle
    key = SigningKey.create(args.key) if args.create else SigningKey.load(args.key)
    signature = sign_bundle(path, key)
    if args.json:
        done = {"bundle": info.id, "version": info.version, "digest": info.digest}
        print(json.dumps({**done, "key": signature.key}, indent=2))
    else:
        print(
            f"{printable(info.id)} version {info.version} is signed; to trust the key, list "
            f'it under [keys]:\n"NAME" = "{signature.key}"'
        )
    return 0


def _bundle_path(args: argparse.Namespace) -> Path | None:
    """Where the bundle is; None where only the settings were to be checked, and have been."""
    from projector.commands import cli

    chosen = cli._settings(args)
    path = cli._bundle_path(args.bundle, chosen)
    if not args.check_config:
        return path
    cli._check(chosen, bundles=[path])
    return None


def _with_fp8(graph: bytes) -> tuple[bytes, dict[str, float]]:
    try:
        from projector.serving import export
    except ImportError as error:
        raise ConfigError(
            f"--fp8 needs {error.name or 'onnx'}: pip install 'neural-bridge[align]'"
        ) from error
    smaller = export.export_fp8(graph)
    return smaller, dataclasses.asdict(export.parity(smaller, graph))
