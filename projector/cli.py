"""The console script `projector`: what a cache looks like, what a bundle holds, do they fit.

Knows flags, exit codes and what is printed where: results on standard output, errors on standard
error. Does not know: how a bundle is trained or served. Models are loaded (and torch imported) only
by the commands that need a live layout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from projector import backends, configuration
from projector.bundle import DESCRIPTION, Bundle, BundleInfo
from protos.errors import (
    BridgeError,
    BundleFormatError,
    BundleMissingError,
    ConfigError,
    ModelError,
)
from protos.frame import OperatingPoint
from protos.layout import KVLayout
from protos.quantize import UniformQuantizer

PREFIX = "NEURAL_BRIDGE_PROJECTOR_"
MAPS = {
    "closed_form": "least squares alone, before any training",
    "float": "latents that are not quantized",
}
"""What a certificate's accuracies measure, besides the operating points by name."""
CONTROLS = {
    "cloud_image": "the large model sees the picture itself",
    "blind": "the question alone",
    "mean_state": "the mean picture's latents for every picture",
    "other_picture": "the latents of another picture",
    "untrained_map": "a random map of the same shape",
}
"""What a certificate's controls measure."""

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_SHOWN_DIGITS = 16
_PIPED_COLUMNS = 120

_Dtype = Literal["float32", "float16", "bfloat16"]


class Settings(configuration.TypedSettings):
    """The program's settings; `description` is what `--help` prints."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    source: Path | None = Field(None, description="directory of the edge model's checkpoint")
    target: Path | None = Field(None, description="directory of the cloud model's checkpoint")
    source_dtype: _Dtype = Field("float32", description="number format the edge model runs in")
    target_dtype: _Dtype = Field("float32", description="number format the cloud model runs in")
    dtype: _Dtype = Field("float32", description="number format the model runs in")
    device: str = Field("cpu", min_length=1, description="torch device that models are loaded to")
    bundles: Path | None = Field(
        None, description="directory of bundles; a BUNDLE that is no path is looked for in it"
    )
    backend: str = Field(
        "onnxruntime", description="what runs the projector: onnxruntime, torch or tensorrt"
    )
    backend_device: str = Field(
        "cpu", min_length=1, description="device of the projector, as its backend names devices"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads; 0 leaves it to torch and the backend"
    )

    @field_validator("source_dtype", "target_dtype", "dtype", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        0, or the exit code of the error that was met first (`protos/errors.py`).
    """
    try:
        args = _parser().parse_args(argv)
        code = int(args.command(args))
        sys.stdout.flush()
        return code
    except BridgeError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read standard output is gone; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


# ---------------------------------------------------------------------- the commands


def _layout(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check(chosen, models=[args.model])
    layout = _live_layout(args.model, chosen.device, chosen.dtype, chosen.threads)
    _print_json(_layout_json(layout))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    path = _bundle_path(args.bundle, chosen)
    if args.check_config:
        return _check(chosen, bundles=[path])
    bundle = _intact(path)
    if args.json:
        _print_json({**_info_json(bundle.info, path), "certificate": bundle.certificate})
    else:
        _show(bundle)
    return 0


def _verify(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    path = _bundle_path(args.bundle, chosen)
    if args.check_config:
        return _check(chosen, bundles=[path])
    models = [_required(chosen, "source"), _required(chosen, "target")]
    _intact(path)  # what is wrong with the bundle alone is said before any model is loaded
    backends.get(chosen.backend)
    dtypes = [chosen.source_dtype, chosen.target_dtype]
    source, target = (
        _live_layout(model, chosen.device, dtype, chosen.threads)
        for model, dtype in zip(models, dtypes, strict=True)
    )
    bundle = Bundle.load(path, source, target)
    with _doing(f"running {bundle.info.id} with {chosen.backend}"):
        _run_once(bundle, chosen)
    done = {
        "bundle": bundle.info.id,
        "version": bundle.info.version,
        "digest": bundle.digest,
        "source": {"model_id": source.model_id, "fingerprint": source.fingerprint},
        "target": {"model_id": target.model_id, "fingerprint": target.fingerprint},
        "backend": chosen.backend,
    }
    if args.json:
        _print_json(done)
    else:
        print(
            f"{_printable(bundle.info.id)} version {bundle.info.version} fits: "
            f"{_printable(source.model_id)} -> {_printable(target.model_id)}, "
            f"runs with {chosen.backend}"
        )
    return 0


def _catalogue(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    folder = args.folder or chosen.bundles
    if folder is None:
        raise ConfigError(
            f"no folder: name it, or give --bundles, {PREFIX}BUNDLES or 'bundles' in the "
            "configuration file"
        )
    if args.check_config:
        return _check(chosen, bundles=_bundles_in(folder))
    found: list[tuple[Path, BundleInfo]] = []
    refused: list[tuple[Path, BridgeError]] = []
    for path in _bundles_in(folder):
        try:
            found.append((path, Bundle.peek(path)))
        except BridgeError as error:
            refused.append((path, error))
    if not found and not refused:
        raise BundleMissingError(f"{folder} holds no bundle, nor do the folders in it")
    if args.json:
        _print_json(
            [_info_json(info, path) for path, info in found]
            + [
                {
                    "path": str(path),
                    "error": {"code": error.code, "name": error.name, "message": error.message},
                }
                for path, error in refused
            ]
        )
    elif found:
        _print_tables([_catalogue_table(found, folder)])
    for _, refusal in refused:
        _complain(refusal)
    return refused[0][1].exit_code if refused else 0


def _no_command(args: argparse.Namespace) -> int:
    if args.check_config:
        return _check(_settings(args))
    raise ConfigError("no command: layout, inspect, verify or catalogue (see projector --help)")


# ---------------------------------------------------------------------- what the commands share


def _settings(args: argparse.Namespace) -> Settings:
    return configuration.load(
        Settings,
        configuration.given_flags(args, Settings),
        args.config,
        listing="projector verify --help",
    )


def _check(chosen: Settings, models: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> int:
    """Find, without loading a model, what a command would stumble over."""
    for model in (chosen.source, chosen.target, *models):
        if model is not None and not (model / "config.json").is_file():
            raise ModelError(f"{model} holds no config.json: it is not a checkpoint")
    if chosen.bundles is not None and not chosen.bundles.is_dir():
        raise BundleMissingError(f"{chosen.bundles} is not a folder")
    backends.get(chosen.backend)
    for path in bundles:
        Bundle.peek(path)
    _print_json(chosen.model_dump(mode="json"))
    return 0


def _required(chosen: Settings, side: Literal["source", "target"]) -> Path:
    path: Path | None = getattr(chosen, side)
    if path is None:
        raise ConfigError(
            f"no {side} model: give --{side}, {PREFIX}{side.upper()} or '{side}' in the "
            "configuration file"
        )
    return path


def _bundle_path(given: Path, chosen: Settings) -> Path:
    if chosen.bundles is not None and not given.exists():
        inside = chosen.bundles / given
        if inside.exists():
            return inside
    return given


def _intact(path: Path) -> Bundle:
    """A bundle whose every byte is verified; whether it fits any live model is not asked."""
    info = Bundle.peek(path)
    return Bundle.load(path, info.source, info.target)


def _bundles_in(folder: Path) -> list[Path]:
    """Folders with a bundle: the folder itself, those in it, and those in these."""
    if not folder.is_dir():
        raise BundleMissingError(f"{folder} is not a folder")
    patterns = (DESCRIPTION, f"*/{DESCRIPTION}", f"*/*/{DESCRIPTION}")
    return sorted(file.parent for pattern in patterns for file in folder.glob(pattern))


def _live_layout(model: Path, device: str, dtype: str, threads: int) -> KVLayout:
    try:
        import torch
        from transformers.utils import logging

        from projector.vlm import VLM
    except ImportError as error:
        raise ModelError(
            f"a model's layout needs {error.name or 'torch'}: pip install 'neural-bridge[align]'"
        ) from error
    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # `_doing` says it, on terminals only
    if threads:
        torch.set_num_threads(threads)
    with _doing(f"loading {model}"):
        try:
            return VLM.load(model, device=device, dtype=dtype).layout
        except RuntimeError as error:
            raise ModelError(f"{model}: cannot be run on device {device!r}: {error}") from error


def _run_once(bundle: Bundle, chosen: Settings) -> None:
    """Project the mean picture.

    Raises:
        ConfigError: the backend or its device is missing.
        BundleFormatError: it cannot run the cloud half, or what comes out is no cache.
    """
    info = bundle.info
    backend = bundle.backend(chosen.backend, chosen.threads, chosen.backend_device)
    tokens = info.target.tokens
    latents = np.broadcast_to(bundle.encoder.latent_mean, (1, tokens, info.rank))
    keys, values = backend.project(
        latents, np.ones((1, tokens), dtype=np.bool_), np.arange(tokens, dtype=np.int64)
    )
    shape = (info.target.layers, 1, info.target.kv_heads, tokens, info.target.head_dim)
    for name, array in (("keys", keys), ("values", values)):
        if array.shape != shape or not np.isfinite(array).all():
            raise BundleFormatError(
                f"bundle '{info.id}' projects the mean picture to {name} of shape {array.shape}, "
                f"expected finite numbers of shape {shape}"
            )


def _complain(error: BridgeError) -> None:
    print(f"projector: {error.name}: {_printable(error.message)}", file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _printable(value: object) -> str:
    """Text of a file for a terminal: what could steer the terminal is shown as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )


# ---------------------------------------------------------------------- as JSON


def _layout_json(layout: KVLayout) -> dict[str, Any]:
    return {
        **json.loads(layout.to_json()),
        "fingerprint": layout.fingerprint,
        "tokens": layout.tokens,
        "state_dim": layout.state_dim,
        "raw_fp8_bytes_per_picture": layout.tokens * layout.state_dim,
    }


def _info_json(info: BundleInfo, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "id": info.id,
        "version": info.version,
        "digest": info.digest,
        "rank": info.rank,
        "source_layout": _layout_json(info.source),
        "target_layout": _layout_json(info.target),
        "operating_points": [json.loads(point.to_json()) for point in info.points],
        "default_point": info.default_point,
        "ladder": list(info.ladder),
        "files": {
            name: {"bytes": size, "sha256": digest} for name, (size, digest) in info.files.items()
        },
    }


# ---------------------------------------------------------------------- as tables


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    """Say on a terminal what takes so long."""
    if not sys.stderr.isatty():
        yield
        return
    with _console(stderr=True).status(_printable(what)):
        yield


def _console(stderr: bool = False) -> Any:
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConfigError(
            "tables need rich: pip install 'neural-bridge[align]', or use --json"
        ) from error
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        width=None if stream.isatty() else _PIPED_COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _print_tables(tables: Sequence[Any]) -> None:
    console = _console()
    for table in tables:
        console.print(table)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """A table; a column whose name starts with `#` holds numbers and is set to the right."""
    _console()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=_printable(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_header=any(columns),
    )
    for name in columns:
        table.add_column(
            name.removeprefix("#"),
            justify="right" if name.startswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _show(bundle: Bundle) -> None:
    info, certificate = bundle.info, bundle.certificate
    default = next(point.name for point in info.points if point.index == info.default_point)
    names = {point.index: point.name for point in info.points}
    total = sum(size for size, _ in info.files.values())
    facts = [
        ("id", info.id),
        ("version", info.version),
        ("digest", info.digest),
        ("folder", bundle.path),
        ("rank", info.rank),
        ("selector", bundle.encoder.selector),
        ("default point", default),
        ("ladder", " > ".join(names[index] for index in info.ladder)),
        ("bytes", f"{total:,}"),
    ]
    files = [(name, f"{size:,}", sha[:_SHOWN_DIGITS]) for name, (size, sha) in info.files.items()]
    _print_tables(
        [
            _table("Bundle", ("", ""), facts),
            _table(
                "Layouts",
                ("", "source (edge)", "target (cloud)"),
                [
                    (name, ours, theirs)
                    for (name, ours), (_, theirs) in zip(
                        _layout_rows(info.source), _layout_rows(info.target), strict=True
                    )
                ],
            ),
            _points_table(bundle),
            *_certificate_tables(info, certificate),
            _table("Files", ("name", "#bytes", "sha256"), files),
        ]
    )


def _layout_rows(layout: KVLayout) -> list[tuple[str, object]]:
    rope = layout.rope
    pairs = "interleaved" if rope.interleaved else "half-split"
    return [
        ("model", layout.model_id),
        ("fingerprint", layout.fingerprint[:_SHOWN_DIGITS]),
        ("layers", layout.layers),
        ("KV heads", layout.kv_heads),
        ("head dimension", layout.head_dim),
        ("state dimension", layout.state_dim),
        ("image tokens", f"{layout.tokens} ({layout.grid[0]} x {layout.grid[1]})"),
        ("cache dtype", layout.cache_dtype),
        ("RoPE", f"theta {rope.theta:g}, {rope.rotary_dim} dimensions, {pairs}, {rope.scaling}"),
        ("tokenizer", layout.tokenizer_digest[:_SHOWN_DIGITS]),
        ("weights", layout.weights_digest[:_SHOWN_DIGITS]),
    ]


def _points_table(bundle: Bundle) -> Any:
    info, accuracy = bundle.info, _section(bundle.certificate, "accuracy")
    rungs = {index: rung for rung, index in enumerate(info.ladder, start=1)}
    rows = [
        (
            f"{rungs.get(point.index, '-')}{' *' if point.index == info.default_point else ''}",
            point.index,
            point.name,
            point.kind,
            point.quantizer,
            point.tokens or "all",
            point.rank or "-",
            _payload_bytes(bundle, point),
            _share(accuracy.get(point.name, "-")),
        )
        for point in info.points
    ]
    columns = ("rung", "#index", "name", "kind", "quantizer", "#tokens", "#rank")
    return _table(
        "Operating points (rung 1 is the cheapest, * the default)",
        (*columns, "#payload bytes", "#accuracy"),
        rows,
    )


def _payload_bytes(bundle: Bundle, point: OperatingPoint) -> str:
    """What a picture takes: as certified, or exactly where it is the same for every picture."""
    certified = _section(bundle.certificate, "payload_bytes").get(point.name)
    if certified is not None:
        return _number(certified)
    tokens = point.tokens or bundle.info.source.tokens
    if point.kind == "raw_kv":
        return _number(tokens * bundle.info.source.state_dim)
    if point.kind == "picture" or point.quantizer == UniformQuantizer.name:
        return "-"
    latents = np.zeros((tokens, point.rank), dtype=np.float32)
    steps = bundle.encoder.steps_of(point)
    return _number(len(bundle.encoder.quantizer(point).encode(latents, steps)))


def _certificate_tables(info: BundleInfo, certificate: Mapping[str, Any]) -> list[Any]:
    points = {point.name for point in info.points}
    accuracy, controls = _section(certificate, "accuracy"), _section(certificate, "controls")
    tables = []
    measured = [
        ("map", name, _share(value), MAPS.get(name, ""))
        for name, value in accuracy.items()
        if name in MAPS or name not in points
    ]
    default = next(point.name for point in info.points if point.index == info.default_point)
    if default in accuracy and default not in MAPS:
        measured.insert(0, ("map", default, _share(accuracy[default]), "the default point"))
    measured += [
        ("control", name, _share(value), CONTROLS.get(name, "")) for name, value in controls.items()
    ]
    if measured:
        tables.append(
            _table(
                "Certificate: accuracy and its controls",
                ("", "name", "#accuracy", "what was answered from"),
                measured,
            )
        )
    shown = {"payload_bytes"} | {name for name in ("accuracy", "controls") if measured}
    rest = {name: value for name, value in certificate.items() if name not in shown}
    if rest:
        rows = [(name, _number(value)) for name, value in _flat(rest)]
        tables.append(_table("Certificate: further figures", ("", ""), rows))
    return tables


def _catalogue_table(found: Sequence[tuple[Path, BundleInfo]], folder: Path) -> Any:
    rows = []
    for path, info in found:
        default = next(point.name for point in info.points if point.index == info.default_point)
        rows.append(
            (
                path.relative_to(folder),
                info.id,
                info.version,
                info.source.model_id,
                info.target.model_id,
                info.rank,
                default,
                f"{sum(size for size, _ in info.files.values()):,}",
            )
        )
    columns = ("folder", "id", "#version", "source", "target", "#rank", "default point", "#bytes")
    return _table(f"Bundles in {folder}", columns, rows)


def _section(certificate: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = certificate.get(name)
    return section if isinstance(section, dict) else {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _share(value: Any) -> str:
    return f"{100 * value:.1f} %" if _is_number(value) and 0 <= value <= 1 else _number(value)


def _number(value: Any) -> str:
    if _is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------- flags


def _parser() -> _Parser:
    parser = _Parser(
        prog="projector",
        description="What a model's KV cache looks like, what a bundle holds, and whether the two "
        "fit.\nFlags beat the environment, which beats the configuration file, which beats the "
        "defaults.",
        epilog=_epilog(
            "projector layout models/edge-a",
            "projector inspect bundles/edge-a-cloud",
            "projector verify bundles/edge-a-cloud --source models/edge-a --target models/cloud",
            "projector catalogue bundles --json",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {configuration.installed_version()}"
    )
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(
        title="commands", metavar="layout | inspect | verify | catalogue"
    )

    layout = _command(
        commands,
        "layout",
        "print a model's cache layout and its fingerprint as JSON",
        _layout,
        ("device", "dtype", "threads"),
        "projector layout models/edge-a",
        "projector layout models/cloud --dtype bfloat16",
    )
    layout.add_argument("model", type=Path, metavar="MODEL", help="directory of a checkpoint")

    inspect = _command(
        commands,
        "inspect",
        "verify a bundle's bytes and show what it holds and what was measured of it",
        _inspect,
        ("bundles",),
        "projector inspect bundles/edge-a-cloud",
        "projector inspect bundles/edge-a-cloud --json | jq .certificate.controls",
    )
    _add_bundle(inspect)

    verify = _command(
        commands,
        "verify",
        "load both models and the bundle as the service does, and project one picture",
        _verify,
        (
            "source",
            "target",
            "source_dtype",
            "target_dtype",
            "device",
            "bundles",
            "backend",
            "backend_device",
            "threads",
        ),
        "projector verify bundles/edge-a-cloud --source models/edge-a --target models/cloud",
        "projector verify edge-a-cloud --config projector.toml --backend torch",
    )
    _add_bundle(verify)

    catalogue = _command(
        commands,
        "catalogue",
        "list the bundles in a folder and the two levels below it",
        _catalogue,
        ("bundles",),
        "projector catalogue bundles",
        f"{PREFIX}BUNDLES=bundles projector catalogue --json",
    )
    catalogue.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="instead of --bundles"
    )
    for command in (inspect, verify, catalogue):
        command.add_argument("--json", action="store_true", help="print JSON instead")
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a bundle's folder, or its name in --bundles"
    )


def _command(
    commands: Any,
    name: str,
    text: str,
    function: Callable[[argparse.Namespace], int],
    settings: Sequence[str],
    *examples: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=_epilog(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings, top=False)
    configuration.add_setting_flags(parser, Settings, only=settings)
    parser.set_defaults(command=function)
    return parser


def _epilog(*examples: str) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    return (
        f"examples:\n{lines}\n\nexit codes: 0 where all is well, otherwise that of the first "
        f"error;\n{_INTERRUPTED} where interrupted:\n{configuration.exit_codes()}"
    )


if __name__ == "__main__":
    sys.exit(main())
