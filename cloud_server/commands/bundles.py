"""`cloud-server bundles`: manages versions of bundles while services run.

A command writes to the database; every front end follows within seconds.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import (
    actor,
    add_group,
    add_verb,
    opened,
    reading,
    settings_of,
    writing,
)
from cloud_server.commands.output import as_json, minute, table, told
from protos.errors import BundleFormatError, StateError

if TYPE_CHECKING:
    from cloud_server.state.bundles import Said
    from cloud_server.state.store import Store
    from cloud_server.state.tables import BundleVersion

_KEPT = "bundles"
"""Folder in the directory for added bundles, each under its digest."""
_POLL_S = 0.2
_LONGEST_WAIT_S = 86400.0


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(
        commands, "bundles", "add, offer, roll back and retire versions of bundles while it runs"
    )
    parser = add_verb(
        verbs,
        "list",
        "list versions: each one's wanted state, and its state in each front end",
        _list,
        ("cloud-server bundles list",),
    )
    parser = add_verb(
        verbs,
        "add",
        "verify a bundle and add it as a version; it serves nobody yet",
        _add,
        ("cloud-server bundles add bundles/edge-a-cloud",),
    )
    parser.add_argument("path", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="serve it from that folder (default: from a copy in DIRECTORY/bundles)",
    )
    parser = add_verb(
        verbs,
        "activate",
        "have front ends load and judge a version, then offer it to a share of devices or to all",
        _activate,
        (
            "cloud-server bundles activate edge-a-cloud@8 --share 10% --wait 60",
            "cloud-server bundles activate edge-a-cloud@8",
        ),
    )
    _name(parser)
    parser.add_argument(
        "--share",
        type=share_of,
        default=1.0,
        metavar="SHARE",
        help="share of devices, such as 10%% or 0.1 (default: all)",
    )
    parser.add_argument(
        "--unjudged",
        action="store_true",
        help="serve it even if its certificate is not good enough, or it has no canary set (no "
        "bundle between models that read texts has one)",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait until every front end serves it; fail if one refuses it",
    )
    parser = add_verb(
        verbs,
        "rollback",
        "roll a version back; the version that it replaced serves again",
        _rollback,
        ("cloud-server bundles rollback edge-a-cloud@8 --why 'gate 3 complains'",),
    )
    _name(parser)
    parser.add_argument("--why", default="", metavar="TEXT", help="the reason, for the record")
    parser = add_verb(
        verbs,
        "retire",
        "retire a version: it is unloaded when nothing uses it any more",
        _retire,
        ("cloud-server bundles retire edge-a-cloud@7",),
    )
    _name(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="BUNDLE", help="ID@VERSION, or the first digits of its digest"
    )


def share_of(text: str) -> float:
    """A share of devices: `10%` or `0.1`; above 0, at most 1."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100.0 if percent else 1.0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no share, such as 10% or 0.1") from error
    if rest or not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a share is above 0 and at most 1 (100%), such as 10% or 0.1"
        )
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= _LONGEST_WAIT_S:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, up to {_LONGEST_WAIT_S:.0f}")
    return value


# ---------------------------------------------------------------------- the commands


def _add(given: argparse.Namespace) -> int:
    from cloud_server.state import bundles
    from projector.bundle.certificate import verdict_of
    from projector.bundle.keys import TrustedKeys
    from projector.bundle.load import Bundle

    settings = settings_of(given)
    info = Bundle.peek(given.path)
    keys = TrustedKeys.load(settings.trusted_keys) if settings.trusted_keys else None
    bundle = Bundle.load(given.path, info.source, info.target, trusted=keys)
    with opened(given) as store:
        with store.read() as session:
            bundles.require_new(session, info.digest)
        folder = given.path.absolute()
        if settings.directory is not None and not given.in_place:
            folder = _keep(folder, settings.directory / _KEPT, info.digest)
            Bundle.load(folder, info.source, info.target, trusted=keys)
        with store.write(actor()) as tx:
            row = bundles.add(
                tx,
                digest=info.digest,
                bundle_id=info.id,
                version=info.version,
                source=info.source.fingerprint,
                path=str(folder),
            )
    doubts = []
    names = {point.index: point.name for point in info.points}
    verdict = verdict_of(bundle.certificate, names[info.default_point])
    if not verdict.good:
        doubts.append(f"its certificate does not vouch for it ({verdict.state}: {verdict.why})")
    if bundle.canary is None:
        doubts.append(info.without_canary)
    said = f"added {info.id}@{info.version}, digest {info.digest[:12]}…, from {folder}"
    if doubts:
        said += (
            f"\nfront ends will refuse it: {'; '.join(doubts)}. To serve it without judging it: "
            f"cloud-server bundles activate {info.id}@{info.version} --unjudged"
        )
    told(given.json, _plain(row, []), said)
    return 0


def _keep(folder: Path, kept: Path, digest: str) -> Path:
    """Copy a bundle to where nobody replaces it; the name appears only when the copy is whole."""
    from projector.bundle.files import DESCRIPTION, EVERY, SIGNATURE
    from protos.process.files import writing

    there, draft = kept / digest, kept / f"{digest}.draft"
    with writing(f"{there}"):
        kept.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            for name in (DESCRIPTION, SIGNATURE, *EVERY):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, draft / name)
            shutil.rmtree(there, ignore_errors=True)
            draft.rename(there)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return there


def _activate(given: argparse.Namespace) -> int:
    from cloud_server.state import bundles

    with opened(given) as store:
        with store.write(actor()) as tx:
            row = bundles.activate(tx, given.name, given.share, unjudged=given.unjudged)
        reports = _wait(store, row, given.wait) if given.wait > 0 else []
    whom = "all devices" if given.share >= 1.0 else f"{100 * given.share:g} % of devices"
    said = f"{_named(row)} is wanted for {whom}; front ends load and judge it first"
    if given.wait > 0:
        said = f"{_named(row)} serves {whom}: {'; '.join(map(_judged, reports))}"
    told(given.json, _plain(row, reports), said)
    return 0


def _wait(store: Store, row: BundleVersion, timeout_s: float) -> Sequence[Said]:
    """Wait until every front end serves a version.

    Raises:
        BundleFormatError: one refused it.
        StateError: they did not report so in time.
    """
    from cloud_server.state import bundles

    until = time.monotonic() + timeout_s
    while True:
        with store.read() as session:
            every = bundles.said(session, time.time())
            now = bundles.find(session, row.digest)
        mine = [one for one in every if one.digest == row.digest]
        if now.wanted == "rolled_back":
            why = now.note or next((one.why for one in mine if one.why), "")
            raise BundleFormatError(f"{_named(row)} was refused: {why}")
        names = {one.front_end for one in every}
        serving = [one for one in mine if one.state == "serving" and one.reported_s >= 0]
        if names and {one.front_end for one in serving} == names:
            return serving
        if time.monotonic() >= until:
            states = ", ".join(f"{one.front_end} {one.state}" for one in mine)
            raise StateError(
                f"{_named(row)} does not serve after {timeout_s:g} s "
                f"({states or 'no front end has reported on it'}): see bundles list"
            )
        time.sleep(_POLL_S)


def _rollback(given: argparse.Namespace) -> int:
    from cloud_server.state import bundles

    with writing(given) as tx:
        row, before = bundles.rollback(tx, given.name, given.why)
    to = "nothing" if before is None else _named(before)
    told(given.json, _plain(row, []), f"{_named(row)} is rolled back; {to} serves all devices")
    return 0


def _retire(given: argparse.Namespace) -> int:
    from cloud_server.state import bundles

    with writing(given) as tx:
        row = bundles.retire(tx, given.name)
    told(given.json, _plain(row, []), f"{_named(row)} is unloaded when nothing uses it any more")
    return 0


def _list(given: argparse.Namespace) -> int:
    from cloud_server.state import bundles

    with reading(given) as session:
        rows = bundles.every(session)
        reports = bundles.said(session, time.time())
    of = {row.digest: [one for one in reports if one.digest == row.digest] for row in rows}
    if given.json:
        as_json([_plain(row, of[row.digest]) for row in rows])
        return 0
    heads = ("bundle", "digest", "wanted", "share", "stands", "sessions")
    lines: list[Sequence[object]] = []
    for row in rows:
        said = of[row.digest]
        states = sorted({one.state for one in said})
        lines.append(
            (
                _named(row),
                row.digest[:12],
                row.wanted,
                f"{100 * row.share:g} %" if row.wanted in bundles.SERVED else None,
                ", ".join(states) or None,
                sum(one.sessions for one in said),
                "; ".join(filter(None, _more(row, said))),
            )
        )
    table(heads, lines, "no bundle was added yet: cloud-server bundles add BUNDLE", below=True)
    return 0


# ---------------------------------------------------------------------- output


def _plain(row: BundleVersion, reports: Sequence[Said]) -> dict[str, Any]:
    fields = "digest bundle_id version source path wanted share unjudged note changed_at changed_by"
    return {name: getattr(row, name) for name in fields.split()} | {
        "front_ends": [asdict(one) for one in reports]
    }


def _more(row: BundleVersion, said: Sequence[Said]) -> tuple[str, ...]:
    """When a version was changed, how it was judged, and why it is refused."""
    judged = next((_judged(one) for one in said if _judged(one)), "")
    why = row.note or next((one.why for one in said if one.why), "")
    return f"{row.wanted} since {minute(row.changed_at)}", judged, why


def _judged(said: Said) -> str:
    judged = (said.figures or {}).get("judged")
    if not judged:
        return ""
    return (
        f"{judged['same']} of {judged['frames']} answers as recorded "
        f"(95 %: {judged['low']:.0%} to {judged['high']:.0%})"
    )


def _named(row: BundleVersion) -> str:
    return f"{row.bundle_id}@{row.version}"
