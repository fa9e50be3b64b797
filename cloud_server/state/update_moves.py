"""How offers move: fill a stage with devices, count how it goes, begin the next one, or halt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud_server.state.stages import Stages, Tally, Verdict, rank, verdict
from cloud_server.state.store import Transaction
from cloud_server.state.tables import (
    DeviceRow,
    OfferDeviceRow,
    OfferRow,
    SoftwareRow,
    TenantRow,
    UpdateRow,
)
from protos.update import ANY

OFFERED, FETCHED, TRIAL, KEPT, FAILED = "offered", "fetched", "trial", "kept", "failed"
"""How an update stands on a device."""
RUNNING, PAUSED, HALTED, WITHDRAWN = "running", "paused", "halted", "withdrawn"
"""How an offer stands."""
SILENT_S = 86400.0
"""A device that began with an update and was not heard of for so long has failed."""
_RECENT_S = 2 * 86400.0
"""A stage begins with devices that were heard of in this time."""


@dataclass(frozen=True)
class Software:
    """What a device runs, and which updates it takes.

    Attributes:
        machine, python, jetpack: as in an update's list.
        number: number of the update that it runs and that proved itself.
        digest: digest of that update; empty if it was installed by hand.
        takes: whether its owner lets it take updates from the service.
        takes_older: and older ones.
    """

    machine: str
    python: str
    jetpack: str
    number: int = 0
    digest: str = ""
    takes: bool = True
    takes_older: bool = False

    def fits(self, update: UpdateRow, older: bool) -> bool:
        """Whether it takes an update.

        Args:
            update: the update.
            older: whether it is offered to devices with a newer one as well.
        """
        pairs = (
            (update.machine, self.machine),
            (update.python, self.python),
            (update.jetpack, self.jetpack),
        )
        if not self.takes or not all(wanted in (ANY, mine) for wanted, mine in pairs):
            return False
        if older and self.takes_older:
            return self.digest != update.digest
        return self.number < update.number


def set_state(tx: Transaction, row: OfferRow, state: str, note: str = "") -> None:
    """Change how an offer stands."""
    row.state, row.note, row.changed_s, row.changed_by = state, note, tx.now_s, tx.actor


def _silent(session: Session, row: OfferRow, now_s: float) -> list[tuple[str, int]]:
    """Devices that began and were not heard of for long: their ids and stages."""
    query = (
        select(OfferDeviceRow.device_id, OfferDeviceRow.stage)
        .join(SoftwareRow, SoftwareRow.device_id == OfferDeviceRow.device_id)
        .where(
            OfferDeviceRow.offer_id == row.id,
            OfferDeviceRow.state.in_((FETCHED, TRIAL)),
            SoftwareRow.seen_s < now_s - SILENT_S,
        )
    )
    return [(id, stage) for id, stage in session.execute(query).tuples()]


def counts_of(
    session: Session, row: OfferRow, now_s: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Devices by their state, and failed ones by cause; silent ones have failed."""
    query = (
        select(OfferDeviceRow.state, OfferDeviceRow.cause, func.count())
        .where(OfferDeviceRow.offer_id == row.id)
        .group_by(OfferDeviceRow.state, OfferDeviceRow.cause)
    )
    states, causes = Counter[str](), Counter[str]()
    for state, cause, count in session.execute(query).tuples():
        states[state] += count
        if state == FAILED:
            causes[cause or "unknown"] += count
    if silent := len(_silent(session, row, now_s)):
        causes["silent"], states[FAILED] = silent, states[FAILED] + silent
        for state in (TRIAL, FETCHED):  # roughly: which of them they were does not matter
            taken = min(silent, states[state])
            states[state], silent = states[state] - taken, silent - taken
    return {state: n for state, n in states.items() if n}, dict(causes)


def verdict_of(session: Session, row: OfferRow, now_s: float) -> tuple[Verdict, str]:
    """What is to happen with an offer now, and why."""
    query = (
        select(OfferDeviceRow.state, OfferDeviceRow.stage, func.count())
        .where(OfferDeviceRow.offer_id == row.id)
        .group_by(OfferDeviceRow.state, OfferDeviceRow.stage)
    )
    rows = [(state, at == row.stage, n) for state, at, n in session.execute(query).tuples()]
    silent = _silent(session, row, now_s)
    tally = Tally(
        offered=sum(n for _, _, n in rows),
        kept=sum(n for state, _, n in rows if state == KEPT),
        failed=sum(n for state, _, n in rows if state == FAILED) + len(silent),
        offered_now=sum(n for _, here, n in rows if here),
        kept_now=sum(n for state, here, n in rows if here and state == KEPT),
        failed_now=sum(n for state, here, n in rows if here and state == FAILED)
        + sum(at == row.stage for _, at in silent),
    )
    stages = Stages.from_json(row.stages)
    return verdict(stages, row.stage, now_s - row.stage_since_s, tally, row.excused)


def move(tx: Transaction, row: OfferRow) -> None:
    """Halt, or begin the next stage, if it is time."""
    if row.state != RUNNING:
        return
    said, why = verdict_of(tx.session, row, tx.now_s)
    if said == "wait":
        return
    update = tx.session.get_one(UpdateRow, row.digest)
    tenant = tx.session.get_one(TenantRow, row.tenant_id).name
    if said == "halt":
        set_state(tx, row, HALTED, why)
        tx.audit("update.halt", tenant, row.digest, number=update.number, why=why)
        return
    row.stage, row.stage_since_s = row.stage + 1, tx.now_s
    share = Stages.from_json(row.stages).shares[row.stage]
    tx.audit("update.stage", tenant, row.digest, number=update.number, share=share)
    fill(tx, row)


def fill(tx: Transaction, row: OfferRow) -> None:
    """Offer the update to as many further devices as the present stage has room for."""
    tx.session.flush()
    update = tx.session.get_one(UpdateRow, row.digest)
    has = set(
        tx.session.scalars(
            select(OfferDeviceRow.device_id).where(OfferDeviceRow.offer_id == row.id)
        )
    )
    query = (
        select(*SoftwareRow.__table__.columns)
        .join(DeviceRow, DeviceRow.id == SoftwareRow.device_id)
        .where(DeviceRow.tenant_id == row.tenant_id, ~DeviceRow.disabled)
    )
    fleet, ready = len(has), list[str]()
    for id, *said, seen_s in tx.session.execute(query).tuples():
        if id in has or not Software(*said).fits(update, row.older):
            continue
        fleet += 1
        if seen_s >= tx.now_s - _RECENT_S:
            ready.append(id)
    room = Stages.from_json(row.stages).size(row.stage, fleet) - len(has)
    ready.sort(key=lambda id: rank(row.digest, id))
    for id in ready[: max(0, room)]:
        give(tx, row, id)
    tx.session.flush()


def give(tx: Transaction, row: OfferRow, device_id: str) -> OfferDeviceRow:
    """Offer the update to one device."""
    made = OfferDeviceRow(
        offer_id=row.id,
        device_id=device_id,
        stage=row.stage,
        state=OFFERED,
        cause="",
        failures=0,
        excused=0,
        changed_s=tx.now_s,
    )
    tx.session.add(made)
    return made


def excuse(tx: Transaction, row: OfferRow, again: bool) -> None:
    """Do not count the failures so far; with `again` these devices are offered it once more."""
    query = select(OfferDeviceRow).where(
        OfferDeviceRow.offer_id == row.id, OfferDeviceRow.state == FAILED
    )
    failed = tx.session.scalars(query).all()
    row.excused = len(_silent(tx.session, row, tx.now_s))
    row.excused += 0 if again else len(failed)
    for one in failed if again else ():
        one.state, one.cause, one.stage = OFFERED, "", row.stage
        one.excused, one.changed_s = max(one.failures, 1), tx.now_s
    tx.session.flush()
