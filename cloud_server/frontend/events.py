"""What happens to each request, published as it happens: for traces and a live view.

Knows a ZeroMQ PUB socket: two frames an event, the topic and a JSON object. A slow or absent
subscriber loses events, so nothing is ever counted from them.

Topics, in the order of a request: received, decoded, projected, injected, first_token, answered;
fell_back for a frame that came as a picture; refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

TOPICS = (
    "received",
    "decoded",
    "projected",
    "injected",
    "first_token",
    "answered",
    "fell_back",
    "refused",
)


class EventPublisher:
    """Publishes on `ipc://<directory>/events.sock`.

    Args:
        directory: owner-only directory of the sockets.
        dropped: called for every event that the socket did not take.
    """

    def __init__(self, directory: Path, dropped: Callable[[], None]) -> None:
        self.address = f"ipc://{directory / 'events.sock'}"
        self._dropped = dropped
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.sndhwm = 10_000
        self._socket.bind(self.address)

    def publish(self, topic: str, request_id: str, at_ns: int, **details: Any) -> None:
        """Publish one event.

        Args:
            topic: one of `TOPICS`.
            request_id: hex, the same as in the logs of both sides.
            at_ns: when, by the host's monotonic clock.
            details: further fields.
        """
        body = {"event": topic, "request_id": request_id, "at_ns": at_ns, **details}
        try:
            self._socket.send_multipart(
                [topic.encode(), json.dumps(body, separators=(",", ":")).encode()], zmq.NOBLOCK
            )
        except zmq.Again:
            self._dropped()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()
