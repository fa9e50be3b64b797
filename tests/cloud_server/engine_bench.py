"""The embedded engine alone, on a tiny model and a random bundle, and everything it said."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import structs

from cloud_server.engine.jobs import Answered, Job, JobEvent
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import Settings, load
from projector.models.cache import LayerCache
from projector.models.slab import Part
from protos.points import PICTURE_POINT
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


class Bench:
    """An engine and everything it said."""

    def __init__(self, files: Files, **settings: object) -> None:
        given = {"model": files.model, "bundles": [files.bundle], "threads": 1} | settings
        self.settings: Settings = load(given, environ=stage.DEVICE)
        self.said: list[JobEvent] = []
        self.engine = TransformersEngine(self.settings, self.said.append)
        (self.offer,) = self.engine.load()
        self.encoder = stage.encoder()

    def job(self, id: int, question: str = stage.QUESTION, limit: int = 6) -> Job:
        encoded = self.encoder.encode(stage.state(id), self.encoder.point(stage.FP8))
        return Job(
            id=id,
            session="s",
            frame_number=id,
            request_id=f"{id:016x}",
            question=question,
            max_new_tokens=limit,
            received_ns=0,
            bundle=self.offer.bundle_digest,
            point=stage.FP8,
            kept=encoded.kept.tobytes(),
            body=encoded.payload,
        )

    def ask(self, id: int, about: int) -> Job:
        return Job(id, "s", about, f"{id:016x}", stage.QUESTION, 6, 0)

    def drain(self) -> None:
        while self.engine.busy:
            self.engine.step()

    def answers(self) -> dict[int, Answered]:
        return {event.job: event for event in self.said if isinstance(event, Answered)}


def picture(bench: Bench, id: int, file: bytes, session: str = "s") -> Job:
    plain = bench.job(id)
    return structs.replace(plain, session=session, point=PICTURE_POINT, kept=b"", body=file)


def rows_of(layers: Sequence[LayerCache]) -> list[list[Part]]:
    """Each row of a cache as a context of one part."""
    keys = torch.stack([key for key, _ in layers])
    values = torch.stack([value for _, value in layers])
    return [[(keys[:, row], values[:, row])] for row in range(keys.shape[1])]
