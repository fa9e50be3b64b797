"""`cloud-server updates`: offers signed updates of devices' software, stage by stage.

A command writes to the database; every front end follows within seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.bundles import share_of
from cloud_server.commands.database import (
    actor,
    add_group,
    add_verb,
    opened,
    reading,
    settings_of,
    tenant_of,
    writing,
)
from cloud_server.commands.output import as_json, facts, minute, say, table, told
from protos.errors import ConfigError, DiskFullError, UpdateError

if TYPE_CHECKING:
    from cloud_server.state.tables import UpdateRow
    from cloud_server.state.update_offers import UpdateOffer

_STAGES = "1%,10%,100%"
_MOST_BYTES = 16 << 30
"""Of all updates that the directory keeps, unless `--most-gib` says otherwise."""
_COPY_BYTES = 1 << 20


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(
        commands, "updates", "offer signed updates of devices' software, stage by stage"
    )
    parser = add_verb(
        verbs,
        "add",
        "check an update's signature and keep its file; it is offered to nobody yet",
        _add,
        ("cloud-server updates add 7.nbupdate --trust makers.toml",),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="written by 'projector update'")
    parser.add_argument(
        "--trust",
        type=Path,
        required=True,
        metavar="KEYS",
        help="TOML file of the public keys that may sign updates ([keys], as devices have it)",
    )
    parser.add_argument(
        "--most-gib",
        type=_positive,
        default=_MOST_BYTES / (1 << 30),
        metavar="GIB",
        help=f"bytes that all updates together may take (default: {_MOST_BYTES >> 30})",
    )
    add_verb(
        verbs,
        "list",
        "list updates: to whom each is offered, its stage, and how it goes",
        _list,
        ("cloud-server updates list",),
    )
    parser = add_verb(
        verbs,
        "show",
        "show one update; exit code 89 if it halted",
        _show,
        ("cloud-server updates show 7 --tenant acme",),
        tenant=True,
    )
    _name(parser)
    parser = add_verb(
        verbs,
        "offer",
        "offer an update to a tenant's devices: to few first, to more if these keep it",
        _offer,
        (
            "cloud-server updates offer 7 --tenant acme",
            "cloud-server updates offer 7 --stages 5%,50%,100% --healthy 20 --soak-minutes 1440",
        ),
        tenant=True,
    )
    _name(parser)
    parser.add_argument(
        "--stages",
        default=_STAGES,
        metavar="SHARES",
        help=f"share of the devices in each stage (default: {_STAGES.replace('%', '%%')})",
    )
    parser.add_argument(
        "--healthy",
        type=int,
        default=5,
        metavar="DEVICES",
        help="devices of a stage that have to keep it before the next stage; all of a smaller one "
        "(default: 5)",
    )
    parser.add_argument(
        "--soak-minutes",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="shortest time of a stage (default: 60)",
    )
    parser.add_argument(
        "--failure-limit",
        default="5%",
        metavar="SHARE",
        help="share of devices that may fail; above it the update halts (default: 5%%)",
    )
    parser.add_argument(
        "--older",
        action="store_true",
        help="also to devices that run a newer one, where their owners allow it (update_older)",
    )
    parser.add_argument(
        "--again", action="store_true", help="also to devices on which it failed before"
    )
    for verb, text, run in (
        ("pause", "offer it to no further device until it is resumed", _pause),
        ("resume", "go on after a pause or a halt; failures so far do not count again", _resume),
        ("withdraw", "end the offer; devices that have the update keep it", _withdraw),
    ):
        parser = add_verb(
            verbs, verb, text, run, (f"cloud-server updates {verb} 7 --tenant acme",), tenant=True
        )
        _name(parser)
    parser = add_verb(
        verbs,
        "retire",
        "remove an update's file; its history stays",
        _retire,
        ("cloud-server updates retire 6",),
    )
    _name(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="UPDATE", help="its number, its version, or the first digits of its digest"
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


# ---------------------------------------------------------------------- the commands


def _add(given: argparse.Namespace) -> int:
    from cloud_server.state import updates
    from projector.bundle.keys import TrustedKeys
    from projector.bundle.update import open_update

    directory = settings_of(given).directory_path
    trusted = TrustedKeys.load(given.trust)
    with open_update(given.file, trusted) as update:
        manifest, digest, signer = update.manifest, update.digest, update.signer
    with opened(given) as store:
        with store.read() as session:
            known = {row.digest for row in updates.every(session, retired=False)}
        place = updates.file_of(directory, digest)
        if digest in known and place.is_file():
            with store.write(actor(), quiet=True) as tx:
                updates.add(tx, manifest, digest=digest, size_bytes=0, signer=signer)  # says so
        size = _keep(given.file, place, int(given.most_gib * (1 << 30)))
        with open_update(place, trusted) as kept:  # what was copied, not what was looked at
            if kept.digest != digest:
                place.unlink(missing_ok=True)
                raise UpdateError(f"{given.file} changed while it was copied: add it again")
        if digest in known:
            say(f"the file of update {manifest.number} is kept here now as well")
            return 0
        with store.write(actor(), quiet=True) as tx:
            row = updates.add(tx, manifest, digest=digest, size_bytes=size, signer=signer)
    text = (
        f"added update {row.number} ({row.version}) for {updates.what_for(row)}, signed by "
        f"{signer}, {size / 1e6:.1f} MB, digest {digest[:12]}…\n"
        f"offer it: cloud-server updates offer {row.number}"
    )
    told(given.json, _plain(row), text)
    return 0


def _keep(file: Path, place: Path, most: int) -> int:
    """Copy an update to where nobody replaces it; the name appears only when the copy is whole."""
    from cloud_server.state.ownership import own_as_folder
    from protos.process.files import sync_folder, writing

    draft = place.with_name(f".{place.name}.part")
    with writing(place):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        own_as_folder(place.parent)
        held = sum(one.stat().st_size for one in place.parent.glob("*") if one.is_file())
        size = file.stat().st_size
        if held + size > most:
            raise DiskFullError(
                f"{place.parent} has {held >> 20} MiB, and would have more than {most >> 20} with "
                f"this update: retire older ones (cloud-server updates retire), or give --most-gib"
            )
        if shutil.disk_usage(place.parent).free < size + (64 << 20):
            raise DiskFullError(f"{place.parent} has no room for {size >> 20} MiB")
        try:
            with file.open("rb") as source, draft.open("wb") as target:
                os.fchmod(target.fileno(), 0o600)
                shutil.copyfileobj(source, target, _COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            own_as_folder(draft)
            draft.replace(place)
            sync_folder(place.parent)
        finally:
            draft.unlink(missing_ok=True)
    return size


def _list(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers, updates

    with reading(given) as session:
        rows = updates.every(session, retired=False)
        offers = update_offers.every(session, time.time())
    of = {row.digest: [one for one in offers if one.update.digest == row.digest] for row in rows}
    if given.json:
        as_json([_plain(row) | {"offers": [_offered(o) for o in of[row.digest]]} for row in rows])
        return 0
    lines: list[Sequence[object]] = []
    for row in rows:
        about = (row.number, row.version, row.digest[:12], updates.what_for(row))
        for one in of[row.digest]:
            lines.append((*about, one.tenant, one.state, _stage(one), _counts(one), _more(one)))
        if not of[row.digest]:
            lines.append((*about, None, None, None, None, f"added {minute(row.added_s)}"))
    heads = ("number", "version", "digest", "for", "tenant", "state", "stage", "devices")
    table(heads, lines, "no update: cloud-server updates add FILE --trust KEYS", below=True)
    return 0


def _show(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers, updates

    with reading(given) as session:
        row = updates.find(session, given.name)
        offers = update_offers.every(session, time.time(), given.tenant)
        offers = [one for one in offers if one.update.digest == row.digest]
        devices = {
            one.tenant: update_offers.devices_of(session, row.digest, one.tenant) for one in offers
        }
    if given.json:
        shown = [
            _offered(one)
            | {
                "on": [
                    {"device": name, "state": each.state, "cause": each.cause, "stage": each.stage}
                    for name, each in devices[one.tenant]
                ]
            }
            for one in offers
        ]
        as_json(_plain(row) | {"offers": shown})
    else:
        facts(
            {
                "number": row.number,
                "version": row.version,
                "digest": row.digest,
                "for": updates.what_for(row),
                "brings": row.kinds,
                "signed by": row.signer,
                "bytes": row.size_bytes,
                "added": f"{minute(row.added_s)} by {row.added_by}",
            }
        )
        for one in offers:
            say(f"\ntenant {one.tenant}: {one.state}, {_stage(one)}; {_counts(one)}")
            say(f"  {_more(one)}")
            lines = [(name, each.state, each.cause or None) for name, each in devices[one.tenant]]
            table(("device", "state", "why"), lines, "  no device yet")
    halted = [one.tenant for one in offers if one.state == "halted"]
    return UpdateError.exit_code if halted else 0


def _offer(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers
    from cloud_server.state.stages import Stages

    stages = Stages(
        _shares(given.stages), given.healthy, given.soak_minutes * 60, _share(given.failure_limit)
    )
    with writing(given) as tx:
        tenant = tenant_of(given, tx.session)
        update_offers.offer(tx, given.name, tenant, stages, older=given.older, again=given.again)
    return _tell(given, tenant)


def _pause(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers

    return _changed(given, update_offers.pause)


def _resume(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers

    return _changed(given, update_offers.resume)


def _withdraw(given: argparse.Namespace) -> int:
    from cloud_server.state import update_offers

    return _changed(given, update_offers.withdraw)


def _changed(given: argparse.Namespace, act: Any) -> int:
    with writing(given) as tx:
        tenant = tenant_of(given, tx.session)
        act(tx, given.name, tenant)
    return _tell(given, tenant)


def _tell(given: argparse.Namespace, tenant: str) -> int:
    """Say how an offer stands after a command."""
    from cloud_server.state import update_offers, updates

    with reading(given) as session:
        digest = updates.find(session, given.name).digest
        offers = update_offers.every(session, time.time(), tenant)
    one = next(one for one in offers if one.update.digest == digest)
    told(
        given.json,
        _offered(one),
        f"update {one.update.number} for tenant '{tenant}': {one.state}, {_stage(one)}; "
        f"{_counts(one)}",
    )
    return 0


def _retire(given: argparse.Namespace) -> int:
    from cloud_server.state import updates
    from protos.process.files import writing as writing_file

    directory = settings_of(given).directory_path
    with writing(given) as tx:
        row = updates.retire(tx, given.name)
    place = updates.file_of(directory, row.digest)
    with writing_file(place):
        place.unlink(missing_ok=True)
    told(given.json, _plain(row), f"retired update {row.number}; {place} is removed")
    return 0


# ---------------------------------------------------------------------- words


def _shares(text: str) -> tuple[float, ...]:
    return tuple(_share(each) for each in text.split(","))


def _share(text: str) -> float:
    if text.strip() in ("0", "0%"):
        return 0.0
    try:
        return share_of(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(str(error)) from error


def _stage(one: UpdateOffer) -> str:
    share = f"{100 * one.stages.shares[one.stage]:g} %"
    return f"stage {one.stage + 1} of {len(one.stages.shares)}: {share}"


def _counts(one: UpdateOffer) -> str:
    return ", ".join(f"{count} {state}" for state, count in one.counts.items()) or "no device yet"


def _more(one: UpdateOffer) -> str:
    """Since when, what it waits for, and why devices failed."""
    causes = ", ".join(f"{count} {cause}" for cause, count in one.causes.items())
    parts = [
        f"in this stage since {minute(one.stage_since_s)}",
        one.note,
        f"the next stage waits: {one.waits_for}" if one.waits_for else "",
        f"failed: {causes}" if causes else "",
    ]
    return "; ".join(part for part in parts if part)


def _plain(row: UpdateRow) -> dict[str, Any]:
    fields = "digest number version machine python jetpack kinds size_bytes signer added_s added_by"
    return {name: getattr(row, name) for name in (*fields.split(), "retired")}


def _offered(one: UpdateOffer) -> dict[str, Any]:
    return {
        "tenant": one.tenant,
        "state": one.state,
        "stage": one.stage,
        "share": one.stages.shares[one.stage],
        "stages": vars(one.stages),
        "older": one.older,
        "devices": one.counts,
        "failed": one.causes,
        "why": one.note,
        "waits_for": one.waits_for,
        "stage_since_s": one.stage_since_s,
        "changed_by": one.changed_by,
    }
