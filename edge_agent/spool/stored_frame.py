"""One frame that waits: what is kept of it, and how it is written into a row."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from functools import cached_property

from edge_agent.record import AnswerRecord
from edge_agent.spool.vault import DamagedRowError
from projector.codec.deltas import Held
from protos.calls import PRIORITIES

_VERSION = 1
_LENGTHS = struct.Struct("<BIII")
_RANKS = tuple(("alarm", "normal", "background").index(name) for name in PRIORITIES)
_DEFAULTS = {
    entry.name: entry.default
    for entry in dataclasses.fields(AnswerRecord)
    if entry.default is not dataclasses.MISSING
}


def rank_of(priority: int) -> int:
    """A priority's place: 0 for alarms, which go first and are dropped last."""
    return _RANKS[priority]


@dataclass(frozen=True)
class StoredFrame:
    """A frame with its question, sealed once, and all that its record needs.

    Attributes:
        record: as far as it is known; the answer is missing.
        message: the InferRequest as it was sealed first.
        key: the same with a key frame; empty if `message` has one.
        session_id: of the session that `message` was sealed for.
        encoder_digest: of the encoder that made the frame; empty for a picture.
        bundle_digest: of that session's bundle.
        bundle: that bundle's id and version, for messages.
        held: what the service knows after the frame; not kept on the disk.
    """

    record: AnswerRecord
    message: bytes
    key: bytes
    session_id: bytes
    encoder_digest: str
    bundle_digest: str
    bundle: str
    held: Held | None = dataclasses.field(default=None, compare=False)

    @property
    def request_id(self) -> bytes:
        """Id of the request, in every session."""
        return bytes.fromhex(self.record.request_id)

    @cached_property
    def body(self) -> bytes:
        """A row's body."""
        told = self.record.plain()
        kept = {name: value for name, value in told.items() if value != _DEFAULTS.get(name, ...)}
        terms = [self.session_id.hex(), self.encoder_digest, self.bundle_digest, self.bundle]
        text = json.dumps([kept, terms], separators=(",", ":")).encode()
        lengths = _LENGTHS.pack(_VERSION, len(text), len(self.message), len(self.key))
        return lengths + text + self.message + self.key

    @classmethod
    def from_bytes(cls, body: bytes) -> StoredFrame:
        """The inverse of `body`.

        Raises:
            DamagedRowError: another version wrote it, or it is damaged.
        """
        try:
            version, *lengths = _LENGTHS.unpack_from(body)
            if version != _VERSION or len(body) != _LENGTHS.size + sum(lengths):
                raise ValueError(f"version {version}, {len(body)} bytes")
            at, parts = _LENGTHS.size, []
            for length in lengths:
                parts.append(body[at : at + length])
                at += length
            told, terms = json.loads(parts[0])
            told["warnings"] = tuple(told.get("warnings", ()))
            record = AnswerRecord(**told)
            session_id, encoder_digest, bundle_digest, bundle = terms
            return cls(
                record,
                parts[1],
                parts[2],
                bytes.fromhex(session_id),
                encoder_digest,
                bundle_digest,
                bundle,
            )
        except (ValueError, TypeError, struct.error, AttributeError) as error:
            raise DamagedRowError(f"a row cannot be read: {error}") from error
