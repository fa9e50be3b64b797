"""How a running agent is: one JSON object for whoever connects to a socket in its state directory.

A thread of its own answers, so that an agent that hangs can still be asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.metrics import Metrics
from protos.errors import ConfigError

NAME = "agent.sock"
_MOST_BYTES = 1 << 20
_PATIENCE_S = 5.0


class StatusSocket:
    """Answers whoever connects.

    Args:
        folder: of the socket; this process must be the only one that uses it.
        snapshot: makes the answer; called on the socket's thread.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, folder: Path, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._path, self._snapshot = folder / NAME, snapshot
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            with _short(folder) as place:
                self._listening.bind(place)
            self._path.chmod(0o600)
            self._listening.listen(8)
        except OSError:
            self._listening.close()
            raise
        threading.Thread(target=self._serve, name="status", daemon=True).start()

    def close(self) -> None:
        """Stop answering, and remove the socket."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):  # wakes the thread up
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                asking, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), asking:
                asking.settimeout(_PATIENCE_S)
                asking.sendall(json.dumps(_finite(self._snapshot())).encode())


def ask(folder: Path) -> dict[str, Any]:
    """Ask the agent of a state directory how it is.

    Raises:
        ConfigError: no agent runs there, or it does not answer.
    """
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    parts: list[bytes] = []
    with asking:
        asking.settimeout(_PATIENCE_S)
        try:
            with _short(folder) as place:
                asking.connect(place)
            while (part := asking.recv(1 << 16)) and sum(map(len, parts)) < _MOST_BYTES:
                parts.append(part)
            said = json.loads(b"".join(parts))
        except PermissionError as error:
            raise ConfigError(
                f"the agent of {folder} runs as another user: ask as that user, or with sudo"
            ) from error
        except (TimeoutError, ValueError) as error:
            raise ConfigError(
                f"the agent of {folder} does not answer: it hangs; restart it"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"no agent runs with the state directory {folder}: start one (edge-agent run, or "
                "systemctl start), or name its --state-dir"
            ) from error
    if not isinstance(said, dict):
        raise ConfigError(f"{folder / NAME} is not an agent's socket")
    return said


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path, short enough for the kernel's 108 bytes however long the folder's is."""
    number = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{number}/{NAME}"
    finally:
        os.close(number)


_READ = (
    *("connected", "point", "uplink_round_trip_seconds", "uplink_bytes_per_second"),
    *("captures_total", "answers_total", "scenes_held_total", "fallbacks_total", "refusals_total"),
    *("queue_depth", "spool_frames", "spool_bytes", "spool_oldest_age_seconds"),
    *("spool_dropped_total", "camera_state", "camera_newest_frame_age_seconds"),
    *("camera_frames_total", "camera_restarts_total", "model_device", "device_fallback"),
    *("point_fallback", "shadows_total", "shadow_bytes_total"),
    *("certificate_end_timestamp_seconds", "plain_text", "resident_memory_bytes"),
)
"""Only these are collected: the histograms cost ten times as much, every second."""


def figures(metrics: Metrics) -> dict[str, Any]:
    """What the metrics say, in an operator's words; None where nothing is known."""
    values: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    wanted = metrics.registry.restricted_registry([metrics.prefix + name for name in _READ])
    for family in wanted.collect():
        for sample in family.samples:
            values[sample.name.removeprefix(metrics.prefix)].append((sample.labels, sample.value))

    def one(name: str) -> float | None:
        return sum(value for _, value in values[name]) if values[name] else None

    def by(name: str, label: str) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for labels, value in values[name]:
            found[labels[label]] += value
        return dict(found)

    states = {row["camera"]: row["state"] for row, value in values["camera_state"] if value == 1.0}
    ages, frames = (
        by("camera_newest_frame_age_seconds", "camera"),
        by("camera_frames_total", "camera"),
    )
    restarts = by("camera_restarts_total", "camera")
    return {
        "connected": bool(one("connected")),
        "point": next((row["point"] for row, value in values["point"] if value == 1.0), None),
        "point_fallback": bool(one("point_fallback")),
        "round_trip_s": one("uplink_round_trip_seconds"),
        "uplink_bytes_per_s": one("uplink_bytes_per_second"),
        "captures": one("captures_total"),
        "answers": one("answers_total"),
        "held": one("scenes_held_total"),
        "fallbacks": by("fallbacks_total", "cause"),
        "refusals": by("refusals_total", "reason"),
        "shadows": by("shadows_total", "outcome"),
        "shadow_bytes": one("shadow_bytes_total"),
        "in_flight": one("queue_depth"),
        "spool": {
            "frames": one("spool_frames"),
            "bytes": one("spool_bytes"),
            "oldest_age_s": one("spool_oldest_age_seconds"),
            "dropped": by("spool_dropped_total", "cause"),
        },
        "cameras": {
            name: {
                "state": state,
                "newest_age_s": ages.get(name),
                "frames": frames.get(name, 0.0),
                "restarts": restarts.get(name, 0.0),
            }
            for name, state in states.items()
        },
        "model_device": next(
            (row["device"] for row, value in values["model_device"] if value == 1.0), None
        ),
        "device_fallback": bool(one("device_fallback")),
        "certificate_ends": one("certificate_end_timestamp_seconds") or None,
        "plain_text": bool(one("plain_text")),
        "memory_bytes": one("resident_memory_bytes"),
    }


def _finite(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
