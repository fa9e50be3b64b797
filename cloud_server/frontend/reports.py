"""Reports of held scenes, kept for later answers about them, in bounded memory."""

from __future__ import annotations

from typing import TypeAlias

from cloud_server.crowd import Crowd
from cloud_server.frontend.admission.memory import Room
from protos.neuralbridge.v1 import bridge_pb2 as pb

Report: TypeAlias = tuple[pb.DistortionReport, str, list[str], float]
"""A scene's distortion, cause of fallback, warnings and the guard's moments score."""
REPORT_BYTES = 2048
"""Memory of one report, with its share of tables, in bytes; measured: 1800."""
_REPORTS_OF_ONE = 1024


class Reports:
    """Reports of scenes; when full, the largest session of the largest device loses its oldest.

    Args:
        most: how many are kept.
        memory: counts their bytes.
    """

    def __init__(self, most: int, memory: Room | None = None) -> None:
        self._most, self._memory = most, Room() if memory is None else memory
        self._paths: dict[bytes, tuple[str, str, str]] = {}
        self._held: dict[tuple[bytes, int], tuple[bytes, str, tuple[str, ...], float]] = {}
        self._order: Crowd[tuple[bytes, int]] = Crowd()

    def __len__(self) -> int:
        return len(self._held)

    def put(
        self, scene: tuple[bytes, int], report: Report, owner: tuple[str, str] = ("", "")
    ) -> None:
        """Keep a scene's report.

        Args:
            scene: session id and frame number.
            report: the report.
            owner: the session's tenant and device.
        """
        path = self._paths.get(scene[0])
        if path is None:
            path = self._paths[scene[0]] = (*owner, scene[0].hex())
        distortion, fallback, warnings, score = report
        held = 0
        if scene in self._held:
            self._order.touch(scene)
        else:
            held = self._order.add(path, scene)
            self._memory.add(path[0], REPORT_BYTES)
        self._held[scene] = distortion.SerializeToString(), fallback, tuple(warnings), score
        if held > _REPORTS_OF_ONE:
            self._drop(self._order.oldest(*path))
        elif len(self._held) > self._most:
            self._drop(self._order.next_to_go())

    def get(self, scene: tuple[bytes, int]) -> Report | None:
        """A scene's report, if it is kept."""
        if scene not in self._held:
            return None
        distortion, fallback, warnings, score = self._held[scene]
        return pb.DistortionReport.FromString(distortion), fallback, list(warnings), score

    def forget(self, session: bytes) -> None:
        """Drop the reports of a session that is over."""
        for scene in self._order.of(*self._paths.get(session, ("", "", ""))):
            self._drop(scene)

    def _drop(self, scene: tuple[bytes, int]) -> None:
        path = self._paths[scene[0]]
        self._order.remove(scene)
        del self._held[scene]
        self._memory.add(path[0], -REPORT_BYTES)
        if not self._order.size(*path):
            del self._paths[scene[0]]
