"""Verifies a package's signature, and its chain of parents up to the root.

`make.carried` recomputes the keys and values of a derived package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from projector.bundle.keys import SigningKey, TrustedKeys
from projector.package.contents import Package, PackageInfo, signed_message
from projector.package.files import load, peek, read
from projector.package.form import CONFIG, KEYS, MASK, SUFFIX, VALUES, require
from projector.package.make import carried
from protos.errors import (
    BridgeError,
    ConfigError,
    PackageCorruptError,
    PackageFormatError,
    SignatureError,
)

MAX_CHAIN = 64
_ANNOTATIONS = ("description", "transformation_quality", "certification")
_REWRITES = {"select", "requantize"}
_UNMEASURED = {*_REWRITES, "retarget"}
"""Derivations after which the parent's quality or certification no longer holds."""
_MAX_CANDIDATES = 10_000


@dataclass(frozen=True)
class Link:
    """One verified package in a chain.

    Attributes:
        path: its file.
        info: its description.
        signer: name of the trusted key that signed it; `None` if trust was not required.
    """

    path: Path
    info: PackageInfo
    signer: str | None


def verify(path: str | Path, trusted: TrustedKeys | None = None) -> Link:
    """Verify every byte of a package in constant memory.

    Args:
        path: the file.
        trusted: require a signature by one of these keys.

    Raises:
        BridgeError: as `read`.
        SignatureError: it is unsigned, or no trusted key signed it.
    """
    file = Path(path)
    info, _ = load(file)
    if trusted is None:
        return Link(file, info, None)
    try:
        return Link(file, info, require_trusted(info, trusted))
    except SignatureError as error:
        raise SignatureError(f"{file}: {error.message}") from error


def verify_chain(
    path: str | Path, among: Iterable[str | Path], trusted: TrustedKeys | None = None
) -> tuple[Link, ...]:
    """Verify a package, its parent, and so on to the root.

    Args:
        path: the file.
        among: files, and folders of `*.neural-bridge` files, to search for the parents.
        trusted: every package of the chain must be signed by one of these keys.

    Returns:
        From the package to its root.

    Raises:
        ConfigError: a parent was not found.
        PackageCorruptError: a parent was altered.
        PackageFormatError: a package differs from its parent in more or less than its derivation
            says, or the chain is too long.
        BridgeError: as `verify`, for any package in the chain.
    """
    chain = [verify(path, trusted)]
    claimed: dict[str, list[Path]] = {}
    refused: list[str] = []
    if chain[0].info.provenance.parent is not None:
        for file in _candidates(among):
            try:
                claimed.setdefault(peek(file).digest, []).append(file)
            except (PackageCorruptError, PackageFormatError, SignatureError, ConfigError) as error:
                refused.append(error.message)
    while (parent := chain[-1].info.provenance.parent) is not None:
        child = chain[-1]
        if len(chain) == MAX_CHAIN:
            raise PackageFormatError(f"{path}: a chain of more than {MAX_CHAIN} packages")
        if parent not in claimed:
            text = f"{child.path}: its parent {parent[:12]} is not among the files given"
            if refused:
                raise PackageCorruptError(f"{text}, some of which are damaged: {refused[0]}")
            raise ConfigError(text)
        link = _first_intact(claimed[parent], parent, trusted)
        _check_step(child, link)
        chain.append(link)
    return tuple(chain)


def require_trusted(info: PackageInfo, trusted: TrustedKeys) -> str:
    """The name of the trusted key that signed a package.

    Raises:
        SignatureError: it is unsigned, or no trusted key signed it.
    """
    return trusted.verify(signed_message(info.digest), info.provenance.signature)


def sign(package: Package, key: SigningKey) -> Package:
    """The same package with a new signature, which replaces an earlier one; its digest stays."""
    info = package.info
    signature = key.sign(signed_message(info.digest))
    provenance = dataclasses.replace(info.provenance, signature=signature)
    return Package(dataclasses.replace(info, provenance=provenance), package.members)


def _first_intact(copies: Sequence[Path], digest: str, trusted: TrustedKeys | None) -> Link:
    """The first copy that verifies; raises the first copy's error if none does."""
    first: BridgeError | None = None
    for file in copies:
        try:
            link = verify(file, trusted)
            if link.info.digest != digest:
                raise PackageCorruptError(f"{file} was replaced while it was read")
            return link
        except (PackageCorruptError, PackageFormatError, SignatureError, ConfigError) as error:
            first = first or error
    raise first or ConfigError("no copies")


def _check_step(child: Link, parent: Link) -> None:
    """Require that a package differs from its parent exactly as its derivation says.

    A selection or another codec is recomputed from the parent's arrays and compared bit for bit.
    """
    ours, kinds = child.info, set(child.info.provenance.derivation)
    if "continue" in kinds:
        return
    mine, theirs = ours.provenance.members, parent.info.provenance.members
    old, new = parent.info.metadata, ours.metadata
    left = old
    if kinds & _UNMEASURED:
        left = dataclasses.replace(old, transformation_quality=None, certification=None)
    free = ["id", "version", "created", "tokens", "codec", *_ANNOTATIONS]
    free += ["target"] if "retarget" in kinds else []
    fits = (
        dataclasses.replace(new, **{name: getattr(old, name) for name in free}) == old
        and (new.tokens < old.tokens) == ("select" in kinds)
        and (new.codec != old.codec) == ("requantize" in kinds)
        and (mine[CONFIG] != theirs[CONFIG]) == ("retarget" in kinds)
        and any(getattr(new, n) != getattr(left, n) for n in _ANNOTATIONS) == ("annotate" in kinds)
    )
    if fits and kinds & _REWRITES:
        fits = _carries(child, parent)
    elif fits:
        fits = all(mine[name] == theirs[name] for name in (KEYS, VALUES, MASK))
    require(
        fits,
        f"{child.path}: it differs from its parent {parent.info.digest[:12]} in more or less than "
        f"its derivation says ({', '.join(sorted(kinds))})",
    )


def _carries(child: Link, parent: Link) -> bool:
    """Whether mask, keys and values are exactly those derived from the parent's."""
    made, given = read(child.path), read(parent.path)
    if (made.info.digest, given.info.digest) != (child.info.digest, parent.info.digest):
        raise PackageCorruptError(f"{child.path} or {parent.path} was replaced while it was read")
    kept = made.kept
    if (kept & ~given.kept).any():
        return False
    expected = carried(given.members, parent.info.metadata, child.info.metadata, kept)
    return all(bytes(made.members[name]) == blob for name, blob in expected.items())


def _candidates(among: Iterable[str | Path]) -> Iterator[Path]:
    count = 0
    for given in map(Path, among):
        for file in sorted(given.glob(f"*{SUFFIX}")) if given.is_dir() else [given]:
            count += 1
            if count > _MAX_CANDIDATES:
                raise ConfigError(f"more than {_MAX_CANDIDATES} files to find parents in")
            yield file
