"""The console script `projector`: what a cache looks like, what a bundle holds, do they fit.

Knows flags, exit codes and what is printed where: results on standard output, errors on standard
error. Does not know: how a bundle is trained or served. Models are loaded (and torch imported) only
by the commands that need a live layout.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from protos.errors import (
    BridgeError,
    BundleFormatError,
    BundleMissingError,
    ConfigError,
    ModelError,
)
from protos.process import console
from protos.process.console import printable

try:
    import numpy as np
    from pydantic import Field, field_validator
    from pydantic_settings import SettingsConfigDict

    from projector.bundle.describe import BundleInfo
    from projector.bundle.files import DESCRIPTION
    from projector.bundle.keys import TrustedKeys
    from projector.bundle.load import Bundle
    from projector.commands import arguments, calibrate, corpus, export, guard, train, validate
    from projector.commands import build as build_commands
    from projector.commands import head as head_commands
    from projector.commands import package as package_commands
    from projector.models import pictures
    from projector.models.foreign import importing
    from projector.report import tables
    from projector.serving import backends
    from protos.layout import KVLayout
    from protos.process import settings as configuration
except ModuleNotFoundError as error:  # no extra is installed: nothing below can be defined
    _lacks = (error.name or "").partition(".")[0]
    if _lacks in ("", "projector", "protos"):
        raise
    console.say(
        f"projector: {ConfigError.name}: needs the package {_lacks}: "
        "pip install 'neural-bridge[align]'"
    )
    sys.exit(ConfigError.exit_code)

PREFIX = "NEURAL_BRIDGE_PROJECTOR_"
_TWINS = {"onnxruntime": "torch", "torch": "onnxruntime"}
_MOST_APART = 1e-3
"""Of the largest number, on the same latents: ten times what every family's graph is held to."""

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
    max_picture_pixels: pictures.MaxPicturePixels = pictures.MAX_PIXELS
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads; 0: as many as the CPU quota, the affinity mask and the cores "
        "allow",
    )

    @field_validator("source_dtype", "target_dtype", "dtype", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        0, or the exit code of the error that was met first (`protos/errors.py`).
    """
    return console.run("projector", "align", lambda: _logging(_parser().parse_args(argv)))


def _logging(args: argparse.Namespace) -> int:
    """Run a command; what the library notes, such as a model's self-check, is a line each."""
    log = logging.getLogger("projector")
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler()]
    return _run(args)


# ---------------------------------------------------------------------- the commands


def _layout(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check(chosen, models=[args.model])
    layout = _live_layout(args.model, chosen.device, chosen.dtype, chosen.threads, args.text_tokens)
    _print_json(_layout_json(layout))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    path = _bundle_path(args.bundle, chosen)
    if args.check_config:
        return _check(chosen, bundles=[path])
    bundle = _intact(path, _trusted(args))
    if args.json:
        said = {**_info_json(bundle.info, path), **_signed(bundle)}
        _print_json(said | {"certificate": bundle.certificate})
    else:
        tables.show_bundle(bundle)
    return 0


def _verify(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    path = _bundle_path(args.bundle, chosen)
    if args.check_config:
        return _check(chosen, bundles=[path])
    models = [_required(chosen, "source"), _required(chosen, "target")]
    trusted = _trusted(args)
    # What is wrong with it alone is said before any model is loaded.
    info = _intact(path, trusted).info
    backends.get(chosen.backend)
    dtypes = [chosen.source_dtype, chosen.target_dtype]
    longest = info.source.tokens if info.source.of_text else 0
    source, target = (
        _live_layout(model, chosen.device, dtype, chosen.threads, longest)
        for model, dtype in zip(models, dtypes, strict=True)
    )
    bundle = Bundle.load(path, source, target, trusted=trusted)
    with tables.doing(f"running {bundle.info.id} with {chosen.backend}"):
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
            f"{printable(bundle.info.id)} version {bundle.info.version} fits: "
            f"{printable(source.model_id)} -> {printable(target.model_id)}, "
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
    found: list[Bundle] = []
    refused: list[tuple[Path, BridgeError]] = []
    trusted = _trusted(args)
    for path in _bundles_in(folder):
        try:
            found.append(_intact(path, trusted))
        except BridgeError as error:
            refused.append((path, error))
    if not found and not refused:
        raise BundleMissingError(f"{folder} holds no bundle, nor do the folders in it")
    if args.json:
        _print_json(
            [
                {
                    **_info_json(one.info, one.path),
                    **_signed(one),
                    "judged": tables.judged(one).to_json(),
                }
                for one in found
            ]
            + [
                {
                    "path": str(path),
                    "error": {"code": error.code, "name": error.name, "message": error.message},
                }
                for path, error in refused
            ]
        )
    elif found:
        tables.show_catalogue(found, folder)
    for _, refusal in refused:
        console.complain("projector", refusal)
    return refused[0][1].exit_code if refused else 0


def _no_command(args: argparse.Namespace) -> int:
    if args.check_config:
        return _check(_settings(args))
    raise ConfigError("no command: see projector --help for the list")


# ---------------------------------------------------------------------- what the commands share


def _settings(args: argparse.Namespace) -> Settings:
    return configuration.load(
        Settings,
        configuration.given_flags(args, Settings),
        args.config,
        listing="projector verify --help",
    )


def _run(args: argparse.Namespace) -> int:
    """The command; one on a pair of models is told which by flags, environment or file."""
    if getattr(args, "pair", False):
        chosen = _settings(args)
        if args.check_config:
            return _check(chosen)
        for name in ("source", "target", "threads", "device", "max_picture_pixels"):
            setattr(args, name, getattr(chosen, name))
    return int(args.command(args))


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


def _intact(path: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """A bundle whose every byte is verified; whether it fits any live model is not asked."""
    info = Bundle.peek(path)
    return Bundle.load(path, info.source, info.target, trusted=trusted)


def _trusted(args: argparse.Namespace) -> TrustedKeys | None:
    return TrustedKeys.load(args.trusted) if args.trusted else None


def _signed(bundle: Bundle) -> dict[str, Any]:
    return {"signed_by": bundle.key, "signer": bundle.signer}


def _bundles_in(folder: Path) -> list[Path]:
    """Folders with a bundle: the folder itself, those in it, and those in these."""
    if not folder.is_dir():
        raise BundleMissingError(f"{folder} is not a folder")
    patterns = (DESCRIPTION, f"*/{DESCRIPTION}", f"*/*/{DESCRIPTION}")
    return sorted(file.parent for pattern in patterns for file in folder.glob(pattern))


def _live_layout(
    model: Path, device: str, dtype: str, threads: int, text_tokens: int = 0
) -> KVLayout:
    with importing("a model's layout"):
        import torch
        from transformers.utils import logging

        from projector.models.lm import LM, TEXT_TOKENS, reads_only_texts
        from projector.models.vlm import VLM
    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # `tables.doing` says it, on terminals only
    tables.threads(threads, torch.set_num_threads)
    with tables.doing(f"loading {model}"):
        if text_tokens or reads_only_texts(model):
            return LM.load(model, device, dtype, text_tokens or TEXT_TOKENS).layout
        return VLM.load(model, device=device, dtype=dtype).layout


def _run_once(bundle: Bundle, chosen: Settings) -> None:
    """Project the mean picture, and another by the graph and the weights that a bundle holds both.

    Raises:
        ConfigError: the backend or its device is missing.
        BundleFormatError: it cannot run the cloud half, what comes out is no cache, or graph and
            weights differ.
    """
    info = bundle.info
    backend = bundle.backend(chosen.backend, chosen.threads, chosen.backend_device)
    tokens = info.target.tokens
    sent = tokens if info.source.of_text else info.source.tokens  # of another grid than the target
    latents = np.broadcast_to(bundle.encoder.latent_mean, (1, sent, info.rank))
    seen = latents, np.ones((1, sent), dtype=np.bool_), np.arange(tokens, dtype=np.int64)
    keys, values = backend.project(*seen)
    shape = (info.target.layers, 1, info.target.kv_heads, tokens, info.target.head_dim)
    for name, array in (("keys", keys), ("values", values)):
        if array.shape != shape or not np.isfinite(array).all():
            raise BundleFormatError(
                f"bundle '{info.id}' projects the mean picture to {name} of shape {array.shape}, "
                f"expected finite numbers of shape {shape}"
            )
    other = _TWINS.get(chosen.backend)
    if other is None:
        return
    try:
        twin = bundle.backend(other, chosen.threads)
    except ConfigError:
        return  # not installed: a service here would not run it either
    spread = 1 / np.sqrt(np.diag(bundle.encoder.latent_inv_cov))
    drawn = latents + spread * np.random.default_rng(0).standard_normal(latents.shape)
    seen = (drawn.astype(np.float32), *seen[1:])
    both = zip(("keys", "values"), backend.project(*seen), twin.project(*seen), strict=True)
    for name, ours, theirs in both:
        apart = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
        if not apart <= _MOST_APART:
            raise BundleFormatError(
                f"bundle '{info.id}': cloud.onnx and cloud.safetensors are not the same map, their "
                f"{name} of one picture are {apart:.2g} of the largest apart"
            )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


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


# ---------------------------------------------------------------------- flags


def _parser() -> configuration.Parser:
    parser = configuration.Parser(
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
        title="commands",
        metavar="layout | corpus | train | validate | export | calibrate | inspect | verify | …",
    )
    for module in (corpus, train, validate, export, head_commands, calibrate, guard):
        module.register(commands)
    build_commands.register(commands)
    package_commands.register(commands)

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
    layout.add_argument(
        "--text-tokens",
        type=arguments.text_tokens,
        default=0,
        metavar="N",
        help="of a text-only language model: the longest text that is taken (default: 128)",
    )

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
        command.add_argument(
            "--trusted",
            type=Path,
            metavar="FILE",
            help="take only what one of these keys signed, as `cloud-server --trusted-keys` does",
        )
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
        f"error;\n{console.INTERRUPTED} where interrupted:\n{console.exit_codes()}"
    )


if __name__ == "__main__":
    sys.exit(main())
