"""Put a spool together from the settings: where it lies, and what an earlier run left in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.output import RecordWriter, recorded
from edge_agent.record import AnswerRecord
from edge_agent.settings import Settings
from edge_agent.sight import EdgeModel
from edge_agent.sources import Source, endless
from edge_agent.spool.entry import Bounds
from edge_agent.spool.outgoing import Outgoing
from edge_agent.spool.spool import Spool
from edge_agent.spool.vault import Vault
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.terms import Terms
from protos.errors import ConfigError, DiskFullError
from protos.process.files import expanded
from protos.process.logs import Logger


@dataclass(frozen=True)
class Kept:
    """Where frames wait.

    Attributes:
        folder: of the spool.
        writer: writes their records.
    """

    folder: Path
    writer: RecordWriter


def spool_folder(chosen: Settings, source: Source, state: Path | None) -> Path | None:
    """The spool's folder; None if frames wait in memory.

    Args:
        chosen: the settings.
        source: a source that does not end uses a spool without being told.
        state: the state directory; None if there is none.

    Raises:
        ConfigError: the settings do not go with a spool.
    """
    stays = endless(source) and chosen.question_mode == "infer" and not chosen.edge_fallback
    if chosen.spool is None:
        return state / "spool" if stays and state is not None else None
    if chosen.question_mode not in ("infer", "hold"):
        raise ConfigError(
            f"--spool is for question_mode infer and hold, not {chosen.question_mode}: its further "
            "calls need the service at once"
        )
    if chosen.edge_fallback:
        raise ConfigError(
            "--spool keeps a frame until the service answers, --edge-fallback answers it without "
            "the service: give one of them"
        )
    if chosen.give_up_s or chosen.retries is not None:
        raise ConfigError("frames in a spool wait for --spool-age-s: leave out give_up_s, retries")
    return expanded(chosen.spool)


def prepare(
    kept: Kept,
    chosen: Settings,
    uplink: Uplink,
    make_uplink: Callable[[str], Uplink],
    model: EdgeModel,
    store: EncoderStore,
    metrics: Metrics,
    log: Logger,
) -> tuple[Outgoing, list[AnswerRecord]]:
    """Open the spool, and go on with the last session's terms.

    Args:
        kept: where it lies.
        chosen: the settings.
        uplink: gets the last session.
        make_uplink: makes an uplink for the frames of a bundle, by its digest.
        model: the small model.
        store: holds encoders.
        metrics: what is counted.
        log: structured logger.

    Returns:
        What sends its frames; the drafts of those that wait, if the settings say `resume`.

    Raises:
        SpoolError: another agent uses it, or it was written with another key.
        ConfigError: the key cannot be read.
    """
    vault = Vault() if chosen.spool_key is None else Vault.from_file(chosen.spool_key)
    bounds = Bounds(chosen.spool_bytes, chosen.spool_age_s, chosen.when_full)
    spool = Spool(kept.folder, bounds, vault, metrics, log)
    waits: list[AnswerRecord] = []
    try:
        spool.open()
        ended = recorded(chosen.output, spool.written())
        if spool.frames and ended:
            spool.end(spool.rows_of(ended))
        if chosen.resume:
            waits = [waiting.record for waiting in spool.every()]
        log.info("spool", folder=str(kept.folder), frames=spool.frames, bytes=spool.bytes)
    except DiskFullError as error:
        log.error("spool_not_written", folder=str(kept.folder), cause=str(error))
    terms = Terms(kept.folder, store, log)
    uplink.connection.on_session = terms.keep
    session = terms.load(model.layout)
    if session is not None:
        uplink.connection.resume(session)
        log.info("terms", session=session.session_id.hex(), bundle=session.bundle_id)
    writer = kept.writer
    outgoing = Outgoing(spool, uplink, make_uplink, writer.place, writer.sync, log, metrics)
    return outgoing, waits
