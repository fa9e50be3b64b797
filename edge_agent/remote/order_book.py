"""The orders of the service that this device knows, on the disk: each is carried out once."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_agent.remote.kept import short
from protos.errors import BridgeError, ConflictError, NotAllowedHereError
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.files import write_file, writing

FILE = "orders.json"
_MOST = 64
_LARGEST_BYTES = 1 << 20


@dataclass
class Known:
    """An order.

    Attributes:
        id: in hexadecimal digits.
        kind: of the order.
        outcome: how it ended, as the service is told, in base64; empty while it is carried out.
        told: whether the service knows.
    """

    id: str
    kind: str
    outcome: str = ""
    told: bool = False


class OrderBook:
    """The newest orders of one device.

    Args:
        folder: the state directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / FILE
        self._orders = self._read()

    def begun_before(self) -> Iterator[Known]:
        """Orders that an earlier process began and did not end."""
        yield from [one for one in self._orders.values() if not one.outcome]

    def knows(self, id: str) -> bool:
        """Whether an order was begun."""
        return id in self._orders

    def begin(self, id: str, kind: str) -> None:
        """Remember an order before it is carried out.

        Raises:
            DiskFullError, ConfigError: it cannot be remembered, so it must not be carried out.
            ConflictError: as many orders are begun, or ended and not told of.
        """
        if sum(not (one.outcome and one.told) for one in self._orders.values()) >= _MOST:
            raise ConflictError(f"the service knows of none of the last {_MOST} orders")
        self._orders[id] = Known(id, kind)
        ended = [one.id for one in self._orders.values() if one.outcome and one.told]
        for old in ended[: max(0, len(self._orders) - _MOST)]:
            del self._orders[old]
        try:
            self._write()
        except BridgeError:
            del self._orders[id]
            raise

    def note(self, id: str, kind: str) -> None:
        """Remember an order that the disk does not keep, for this process."""
        self._orders[id] = Known(id, kind)

    def end(self, id: str, outcome: bridge_pb2.Outcome) -> None:
        """An order has ended; the service is to be told."""
        one = self._orders[id]
        one.outcome = base64.b64encode(outcome.SerializeToString()).decode()
        one.told = False
        self._write_if_possible()

    def forget(self, id: str) -> None:
        """Carry an order out again if it comes again."""
        self._orders.pop(id, None)
        self._write_if_possible()

    def untold(self) -> list[tuple[str, bridge_pb2.Outcome]]:
        """How orders ended that the service was not told of, the oldest first."""
        return [
            (one.id, bridge_pb2.Outcome.FromString(base64.b64decode(one.outcome)))
            for one in self._orders.values()
            if one.outcome and not one.told
        ]

    def tell_again(self, id: str) -> None:
        """The service sent an order again: it lost the outcome."""
        self._orders[id].told = False

    def told(self, id: str) -> None:
        """The service knows how an order ended."""
        self._orders[id].told = True
        self._write_if_possible()

    def carried_out(self) -> list[bytes]:
        """Ids of orders that have ended, the newest first."""
        ended = [bytes.fromhex(one.id) for one in self._orders.values() if one.outcome]
        return ended[::-1][:_MOST]

    def _read(self) -> dict[str, Known]:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            if self._path.stat().st_size <= _LARGEST_BYTES:
                found = [Known(**one) for one in json.loads(self._path.read_bytes())]
                for one in found:
                    bytes.fromhex(one.id)
                    bridge_pb2.Outcome.FromString(base64.b64decode(one.outcome))
                return {one.id: one for one in found}
        return {}

    def _write(self) -> None:
        told = json.dumps([asdict(one) for one in self._orders.values()])
        with writing(str(self._path)):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(self._path, told.encode(), 0o600)

    def _write_if_possible(self) -> None:
        with contextlib.suppress(BridgeError):  # then it is told once more
            self._write()


def done(id: str, text: str) -> bridge_pb2.Outcome:
    """An order was carried out."""
    return bridge_pb2.Outcome(order_id=bytes.fromhex(id), done=text)


def refused(id: str, error: BridgeError) -> bridge_pb2.Outcome:
    """An order was not carried out."""
    told = bridge_pb2.Refused(
        code=error.code,
        name=error.name,
        message=short(error.message),
    )
    return bridge_pb2.Outcome(order_id=bytes.fromhex(id), refused=told)


def unknown(kind: str) -> NotAllowedHereError:
    """The error for an order that this agent cannot carry out."""
    return NotAllowedHereError(
        f"this agent cannot carry out {kind or 'an order of a newer service'}"
    )
