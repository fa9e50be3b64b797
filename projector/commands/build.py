"""`projector build`: compile a bundle's cloud half with TensorRT for a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from projector.bundle.load import Bundle
from projector.commands.arguments import add_bundle, add_command, add_json
from projector.commands.bundles import bundle_folder
from projector.commands.settings import check, settings_of
from projector.report import tables
from projector.serving import tensorrt_build
from protos.errors import ConfigError
from protos.process.files import write_files

PLAN = "engine.plan"
REPORT = "build-report.json"


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    build = add_command(
        commands,
        "build",
        "compile a bundle's cloud half with TensorRT for a GPU (of this machine or another)",
        _run,
        ("bundles",),
        (
            "projector build bundles/edge-a-cloud --target sm89 --fp8 --out build/engine",
            "projector build bundles/edge-a-cloud --target native --out build/engine",
        ),
    )
    add_bundle(build)
    # Not `target`: that is the setting for the cloud model.
    build.add_argument(
        "--target",
        dest="engine_target",
        required=True,
        metavar="GPU",
        help=f"what will run it: {', '.join(tensorrt_build.TARGETS)} (the GPU in this machine)",
    )
    build.add_argument(
        "--fp8",
        action="store_true",
        help=f"store the weights in FP8 E4M3 (sm{tensorrt_build.FP8_CAPABILITY} or later)",
    )
    build.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder for {PLAN} and {REPORT}, made if need be",
    )
    add_json(build)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    folder = bundle_folder(args.bundle, chosen)
    if args.check_config:
        return check(chosen, bundles=[folder])
    tensorrt_build.require_target(args.engine_target, fp8=args.fp8)
    info = Bundle.peek(folder)
    bundle = Bundle.load(folder, info.source, info.target)
    graph = bundle.cloud.graph
    about: dict[str, Any] = {"bundle": info.id, "version": info.version, "digest": info.digest}
    if args.fp8:
        with tables.doing(f"storing the weights of {info.id} in FP8"):
            graph, about["fp8_parity"] = _with_fp8(graph)
    with tables.doing(f"compiling {info.id} for {args.engine_target}"):
        plan, report = tensorrt_build.build(
            graph,
            args.engine_target,
            tensorrt_build.cloud_shapes(info.target, info.rank, bundle.encoder.tokens),
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


def _with_fp8(graph: bytes) -> tuple[bytes, dict[str, float]]:
    try:
        from projector.serving import export
    except ImportError as error:
        raise ConfigError(
            f"--fp8 needs {error.name or 'onnx'}: pip install 'neural-bridge[align]'"
        ) from error
    smaller = export.export_fp8(graph)
    return smaller, dataclasses.asdict(export.parity(smaller, graph))
