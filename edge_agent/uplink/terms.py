"""The last terms on disk: what the service agreed to, so that a device can encode without it.

The encoder itself lies in the `EncoderStore`. The file also says which frame numbers the session
may have used, so that none is used again after a restart.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.negotiate import meant_layout, session_of
from edge_agent.uplink.session import Session
from projector.codec.encoder import Encoder
from protos.errors import BridgeError
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2
from protos.points import points_from_json
from protos.process.files import sync_folder, write_file
from protos.process.logs import Logger

FILE = "terms.json"
_RESERVED = 1024
"""Frame numbers that are reserved by one write."""


def points_agreed(folder: Path) -> frozenset[str]:
    """Names of the points of the last session's bundle; empty if none is kept."""
    with contextlib.suppress(OSError, DecodeError, BridgeError, ValueError, KeyError, TypeError):
        raw = base64.b64decode(json.loads((folder / FILE).read_text(encoding="utf-8"))["reply"])
        reply = bridge_pb2.NegotiateResponse.FromString(raw)
        return frozenset(p.name for p in points_from_json(reply.operating_points_json))
    return frozenset()


@dataclass
class Terms:
    """The file `terms.json` in a folder.

    Attributes:
        folder: made if need be.
        store: holds the encoder.
        log: structured logger.
    """

    folder: Path
    store: EncoderStore
    log: Logger
    _current: bytes = field(default=b"", init=False, repr=False)

    def load(self, layout: KVLayout) -> Session | None:
        """The session of an earlier process; None if there is none that fits this model.

        Args:
            layout: the small model's cache layout.
        """
        path = self.folder / FILE
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            raw, number = base64.b64decode(told["reply"], validate=True), told["reserved"]
            reply = bridge_pb2.NegotiateResponse.FromString(raw)
            blob = self.store.get(reply.encoder_digest)
            if blob is None:
                raise ValueError("its encoder is not on the disk")
            meant = meant_layout(reply, layout)
            session = session_of(reply, layout, meant, Encoder.from_bytes(blob))
            if not isinstance(number, int) or not 0 <= number < 1 << 32:
                raise ValueError(f"frame number {number!r}")
        except FileNotFoundError:
            return None
        except (BridgeError, DecodeError, OSError, ValueError, KeyError, TypeError) as error:
            self.log.warning("terms_not_used", file=str(path), cause=str(error))
            return None
        session.go_on_from(number)
        session.reserve = self._reserving(session, raw)
        self._current = session.session_id
        return session

    def keep(self, session: Session) -> None:
        """Store a session that was agreed; if that fails, a restart waits for the service."""
        self._current = session.session_id
        session.reserve = self._reserving(session, session.reply)
        self._write(session.reply, 0)

    def _reserving(self, session: Session, reply: bytes) -> Callable[[int], int]:
        def reserve(number: int) -> int:
            if session.session_id == self._current:
                self._write(reply, number + _RESERVED)
            return number + _RESERVED

        return reserve

    def _write(self, reply: bytes, reserved: int) -> None:
        told = {"reply": base64.b64encode(reply).decode(), "reserved": reserved}
        path = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(path, json.dumps(told).encode(), 0o600)
            sync_folder(self.folder)  # a power cut must not bring older numbers back
        except OSError as error:
            self.log.warning("terms_not_kept", cause=str(error))
