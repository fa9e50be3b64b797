"""`projector package …`: make, show, verify, sign, derive and use memory packages.

Knows the clock, where ids come from, in which order things are checked. Does not know: a package's
bytes (`projector/package/`), the flags (`package_flags`), how a package is shown (`package_page`).
Models are loaded only by `create` and `apply`.
"""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from projector import package as packages
from projector.bundle.certificate import Judged, seen_in_training
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.codec import select
from projector.codec.select.base import Selector
from projector.commands import package_flags
from projector.models.foreign import importing
from projector.package import Certification, Package
from projector.package.state_cache import StateCache
from projector.report import package_page, tables
from protos.errors import ConfigError, FrameMalformedError, PackageFormatError
from protos.process.console import printable
from protos.process.files import without_mark
from protos.strict_json import read_json

if TYPE_CHECKING:
    from projector.models.vlm import VLM

_CACHE_BYTES = 1 << 30
COMMANDS = ("create", "inspect", "verify", "sign", "derive", "apply", "keygen")
_MAX_JSON_BYTES = 1 << 20

# `_cli()` imports `projector.commands.cli` late, since that module imports this one.


def register(commands: Any) -> None:
    """Add `package` and its commands to the subparsers of `projector`."""
    command = _cli()._command
    parser: argparse.ArgumentParser = command(
        commands,
        "package",
        package_flags.SUMMARY,
        _none,
        ("bundles",),
        *package_flags.EXAMPLES,
    )
    inner = parser.add_subparsers(title="commands", metavar=" | ".join(COMMANDS))
    runs = (_create, _inspect, _verify, _sign, _derive, _apply, _keygen)
    package_flags.add_commands(partial(command, inner), dict(zip(COMMANDS, runs, strict=True)))


# ---------------------------------------------------------------------- the commands


def _none(args: argparse.Namespace) -> int:
    cli = _cli()
    if args.check_config:
        return int(cli._check(cli._settings(args)))
    raise ConfigError(f"no command: {', '.join(COMMANDS)} (see projector package --help)")


def _create(args: argparse.Namespace) -> int:
    from projector.models import pictures

    cli = _cli()
    chosen = cli._settings(args)
    folder = cli._bundle_path(args.bundle, chosen)
    if args.check_config:
        return int(cli._check(chosen, bundles=[folder]))
    model = cli._required(chosen, "source")
    _refuse_existing(args.output, args.overwrite)
    key = SigningKey.load(args.key) if args.key else None
    parent = packages.verify(args.parent).info.digest if args.parent else None
    certification = _certification(args.certification)
    bundle = cli._intact(folder)
    selector = select.get(args.selector or bundle.encoder.selector)
    picture = pictures.read(args.picture, max_pixels=chosen.max_picture_pixels)
    vlm = _vlm(model, chosen, chosen.source_dtype)
    bundle = Bundle.load(folder, vlm.layout, bundle.info.target)
    state = vlm.states(vlm.prefill([picture]))[0]
    kept = selector.keep(state, budget=args.tokens, threshold=args.share)
    # The bundle's figures are of all tokens; of fewer nobody has measured any.
    quality, certificate = (_quality(bundle), certified(bundle)) if kept.all() else (None, None)
    made = packages.create(
        state,
        kept,
        vlm.layout,
        bundle,
        id=args.id or str(uuid.uuid4()),
        version=args.package_version,
        created=_now(),
        creator=args.creator,
        description=args.description or "",
        codec=args.codec,
        embed=args.embed,
        royalty_percent=args.royalty,
        transformation_quality=quality if args.quality is None else args.quality,
        certification=certification or certificate,
        parent=parent,
    )
    return _save(made, key, args)


def _inspect(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    if args.check_config:
        return int(cli._check(chosen))
    info = packages.verify(args.package).info
    if args.json:
        cli._print_json({"path": str(args.package), **info.to_plain()})
    else:
        package_page.print_info(info)
    return 0


def _verify(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    if args.check_config:
        return int(cli._check(chosen))
    trusted = TrustedKeys.load(args.trusted) if args.trusted else None
    if args.among:
        chain = packages.verify_chain(args.package, args.among, trusted)
    else:
        chain = (packages.verify(args.package, trusted),)
    if args.json:
        cli._print_json(package_page.chain_plain(chain))
    else:
        package_page.print_chain(chain)
    return 0


def _sign(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    if args.check_config:
        return int(cli._check(chosen))
    key = SigningKey.load(args.key)
    package = packages.read(args.package)
    before = package.info.provenance.signature
    if before is not None and before.key != key.public and not args.replace:
        raise ConfigError(
            f"{args.package} is signed by the key {before.key[:12]}…; --replace takes that away"
        )
    output = args.output or args.package
    in_place = os.path.realpath(output) == os.path.realpath(args.package)
    signed = packages.sign(package, key)
    packages.write(signed, output, overwrite=in_place or args.overwrite)
    print(printable(f"{output}: {signed.info.digest[:12]} signed by {key.public}"))
    return 0


def _derive(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    folder = cli._bundle_path(args.bundle, chosen) if args.bundle else None
    if args.check_config:
        return int(cli._check(chosen, bundles=[folder] if folder else []))
    _refuse_existing(args.output, args.overwrite)
    key = SigningKey.load(args.key) if args.key else None
    certification = _certification(args.certification)
    parent = packages.read(args.package)
    bundle = cli._intact(folder) if folder else None
    kept = None
    if args.tokens or args.share is not None:
        selector = select.get(args.selector or select.DEFAULT)
        kept = _best(selector, parent, args.tokens, args.share)
    made = packages.derive(
        parent,
        id=args.id or str(uuid.uuid4()),
        version=args.package_version,
        created=_now(),
        creator=args.creator,
        royalty_percent=args.royalty,
        description=args.description,
        kept=kept,
        codec=args.codec,
        bundle=bundle,
        embed=args.embed,
        transformation_quality=args.quality,
        certification=certification,
    )
    return _save(made, key, args)


def _apply(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    folder = cli._bundle_path(args.bundle, chosen) if args.bundle else None
    if args.check_config:
        return int(cli._check(chosen, bundles=[folder] if folder else []))
    model = cli._required(chosen, "target")
    trusted = TrustedKeys.load(args.trusted) if args.trusted else None
    package = packages.read(args.package)
    if trusted is not None:
        packages.require_trusted(package.info, trusted)
    # What does not fit is said before a model is loaded.
    packages.fitting_bundle(package, folder, package.info.metadata.target.fingerprint)
    vlm = _vlm(model, chosen, chosen.target_dtype)
    bundle = packages.fitting_bundle(package, folder, vlm.layout)
    said = packages.answer(
        package,
        bundle,
        vlm,
        args.question,
        args.max_new_tokens,
        chosen.backend,
        chosen.threads,
        chosen.backend_device,
        StateCache(args.cache, _CACHE_BYTES) if args.cache else None,
    )
    print(printable(said))
    return 0


def _keygen(args: argparse.Namespace) -> int:
    cli = _cli()
    chosen = cli._settings(args)
    if args.check_config:
        return int(cli._check(chosen))
    print(SigningKey.create(args.key).public)
    return 0


# ---------------------------------------------------------------------- what the commands share


def _cli() -> Any:
    from projector.commands import cli

    return cli


def _vlm(model: Path, chosen: Any, dtype: str) -> VLM:
    with importing("running a model"):
        import torch
        from transformers.utils import logging

        from projector.models.vlm import VLM
    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()
    tables.threads(chosen.threads, torch.set_num_threads)
    with tables.doing(f"loading {model}"):
        return VLM.load(model, device=chosen.device, dtype=dtype)


def _certification(path: Path | None) -> Certification | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            raw = without_mark(file.read(_MAX_JSON_BYTES + 1), path)
        plain = read_json(raw, _MAX_JSON_BYTES, str(path))
        return Certification.from_plain(plain)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (FrameMalformedError, PackageFormatError) as error:
        raise ConfigError(f"{path}: {error.message}") from error


def certified(bundle: Bundle) -> Certification | None:
    """What a bundle's own certificate says of its map, if it was judged on what it had not seen.

    None where it was not, or where the certificate lacks any part of that.
    """
    if seen_in_training(bundle.certificate) != 0:
        return None
    name = bundle.encoder.point(bundle.info.default_point).name
    found = Judged.of(bundle.certificate, name).to_json()
    fit = bundle.certificate.get("reconstruction")
    whole = fit.get("whole") if isinstance(fit, dict) else None
    try:
        return Certification(
            tier=found["tier_by_answers"],
            epsilon=whole["relative_l2"],  # type: ignore[index]  # a certificate is not trusted
            retention=round(found["retention"], 4),
            verified_at=bundle.certificate["judged_at"],
            report=f"certificate of bundle {bundle.digest}",
        )
    except (PackageFormatError, KeyError, TypeError):
        return None


def _quality(bundle: Bundle) -> float | None:
    """Certified accuracy, at the default point where that was measured; None if there is none."""
    name = bundle.encoder.point(bundle.info.default_point).name
    return Judged.of(bundle.certificate, name).accuracy


def _best(
    selector: Selector, parent: Package, budget: int | None, share: float | None
) -> npt.NDArray[np.bool_]:
    """The tokens that score highest among those that the parent carries.

    At most `budget`, and the fewest that hold `share` of the mass of what the parent carries.
    """
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"a share lies in (0, 1], not {share}")
    state, theirs = parent.state(), parent.kept
    order = np.argsort(-np.where(theirs, selector.score(state), -1.0), kind="stable")
    count = min(budget or len(order), int(theirs.sum()))
    if share is not None:
        mass = np.cumsum(np.where(theirs, selector.mass(state), 0.0)[order])
        count = min(count, int(np.searchsorted(mass, mass[-1] * share - 1e-6)) + 1)
    kept = np.zeros(len(order), dtype=np.bool_)
    kept[order[:count]] = True
    return kept


def _save(made: Package, key: SigningKey | None, args: argparse.Namespace) -> int:
    if key is not None:
        made = packages.sign(made, key)
    packages.write(made, args.output, args.overwrite)
    meta, size = made.info.metadata, args.output.stat().st_size
    print(
        printable(
            f"{args.output}: {made.info.digest}, {meta.tokens} of {meta.grid_tokens} tokens, "
            f"{size:,} bytes, {'signed' if key else 'not signed'}"
        )
    )
    return 0


def _refuse_existing(path: Path, overwrite: bool) -> None:
    """Before anything slow is done for a file that may not be written."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already (--overwrite replaces it)")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.absolute().parent} is not a folder")


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
