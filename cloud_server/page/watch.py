"""What the front end remembers for the live page: when each device was heard, and what it sent.

It hears of each scene that is held and each request that has ended. A failure here is logged and
never fails a request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec

from msgspec import Struct

from cloud_server.engine.jobs import Job
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.attend.fleet import Present
from cloud_server.frontend.scenes import HeldScene, HeldScenes
from cloud_server.frontend.sessions import Session
from cloud_server.frontend.tell import Asked, End
from cloud_server.page.belief import Losses, limits_of
from cloud_server.page.requests import Requests, Seen, beginning
from cloud_server.page.timeline import Device, Timelines
from cloud_server.page_settings import PageSettings
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

_MOST_DEVICES = 20_000
"""Devices that are remembered; without identities anyone may name as many as he likes."""
_MOST_PICTURES = 64
Parameters = ParamSpec("Parameters")


class Heard(Struct):
    """What was heard of a device.

    Attributes:
        at_s: when it was heard last, seconds since 1970.
        change: number of the last change; later changes have higher numbers.
        picture_bytes: mean size of the pictures that it sent; 0 if none was seen.
        pictures: how many the mean is of, at most `_MOST_PICTURES`.
        vitals: how the device said that it is; None if it has not.
        vitals_at_s: when it did.
    """

    at_s: float = 0.0
    change: int = 0
    picture_bytes: float = 0.0
    pictures: int = 0
    vitals: pb.Vitals | None = None
    vitals_at_s: float = 0.0


class Watch:
    """Remembers what the live page shows.

    Args:
        settings: its bounds.
        scenes: the scenes held.
        log: a bound logger.
        clock: seconds since 1970.

    Attributes:
        timelines: of every device.
        requests: the newest of every device.
        change: number of the last change of any device.
    """

    def __init__(
        self,
        settings: PageSettings,
        scenes: HeldScenes,
        log: Logger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._scenes, self._log, self._clock = scenes, log, clock
        self.timelines = Timelines(settings.page_timeline_h, settings.page_timeline_bytes)
        self.requests = Requests(settings.page_request_bytes)
        self._heard: OrderedDict[Device, Heard] = OrderedDict()  # the newest change last
        self.change = 0

    def heard(self, device: Device) -> Heard | None:
        """What was heard of a device."""
        return self._heard.get(device)

    def changed_since(self, change: int) -> list[Device]:
        """Devices that changed after the change of that number."""
        found = []
        for device in reversed(self._heard):
            if self._heard[device].change <= change:
                break
            found.append(device)
        return found

    def devices(self, tenant: str) -> list[str]:
        """Names of a tenant's devices that were heard."""
        return sorted(name for of, name in self._heard if of == tenant)

    def forget(self, gone: Callable[[str, str], bool]) -> None:
        """Forget devices that are gone.

        Args:
            gone: whether a device is, by tenant and name.
        """
        for device in [device for device in self._heard if gone(*device)]:
            self._forget(device)

    def scene(self, scene: HeldScene) -> None:
        """A scene is held."""
        self._safely(self._scene, scene)

    def ended(self, asked: Asked, computation: Computation, job: Job, end: End) -> None:
        """A request has ended."""
        self._safely(self._ended, asked, computation, job, end)

    def present(self, present: Present) -> None:
        """A device comes, leaves, or says how it is; what it said last is kept."""
        heard = self._note((present.tenant, present.name), self._clock())
        if present.vitals is not None:
            heard.vitals, heard.vitals_at_s = present.vitals, present.at_s

    def _scene(self, scene: HeldScene) -> None:
        device, now_s = (scene.tenant, scene.device), self._clock()
        heard = self._note(device, now_s)
        picture = scene.point == "picture"
        if picture:
            heard.pictures = min(heard.pictures + 1, _MOST_PICTURES)
            heard.picture_bytes += (scene.payload_bytes - heard.picture_bytes) / heard.pictures
        risk = scene.risk
        lost = None if picture else _lost(scene.distortion)
        self.timelines.frame(device, now_s, scene.payload_bytes, risk, lost)
        model = scene.risk_model
        risky = risk is not None and model is not None and risk > model.limit
        if alarms := bool(scene.fallback) + len(scene.warnings) + risky:
            self.timelines.alarm(device, now_s, alarms)

    def _ended(self, asked: Asked, computation: Computation, job: Job, end: End) -> None:
        scene = self._scenes.named((job.session, computation.frame_number))
        if isinstance(asked, Session):
            device: Device = asked.owner
        elif scene is not None and not (job.has_frame):
            device = scene.tenant, scene.device
        else:
            return  # a picture in an application's request: no device's
        now_s = self._clock()
        self._note(device, now_s, heard=isinstance(asked, Session))
        if isinstance(end, BridgeError):
            self.timelines.alarm(device, now_s)
        self.requests.add(self._seen(device, computation, job, end, scene, now_s))

    def _seen(
        self,
        device: Device,
        computation: Computation,
        job: Job,
        end: End,
        scene: HeldScene | None,
        now_s: float,
    ) -> Seen:
        now_ns = time.monotonic_ns()
        total_ms = (now_ns - computation.received_ns) / 1e6
        answer = end if isinstance(end, pb.Answer) else None
        error = end if isinstance(end, BridgeError) else None
        first_ns = computation.first_token_ns or now_ns
        risk = scene.risk_of(computation.question) if scene is not None else None
        if answer is not None:
            risk = answer.risk if answer.HasField("risk") else None
        model = None if scene is None else scene.risk_model
        picture = scene is not None and scene.point == "picture"
        lost = None if picture else _lost(computation.distortion)
        return Seen(
            id=computation.request_id.hex(),
            device=device,
            asked_by=device[1] if computation.owner == device else computation.owner[1],
            scene="" if scene is None else scene.scene_id,
            name=(job.session, computation.frame_number),
            at_s=now_s - total_ms / 1e3,
            point="" if scene is None else scene.point,
            payload_bytes=len(job.body) if job.has_frame else 0,
            delta=job.base >= 0,
            question=computation.question,
            answer="" if answer is None else beginning(answer.text),
            tokens=0 if answer is None else answer.tokens,
            stages_ms=_stages(computation, answer),
            first_token_ms=None if answer is None else (first_ns - computation.received_ns) / 1e6,
            total_ms=total_ms,
            risk=risk,
            risk_limit=None if model is None else model.limit,
            risk_unknown="" if scene is None or risk is not None else scene.risk_unknown,
            lost=lost,
            limits=()
            if model is None or lost is None or risk is None
            else limits_of(model, lost, risk),
            fallback=computation.fallback,
            warnings=tuple(computation.warnings),
            refused="" if error is None else error.name,
            why="" if error is None else error.message[:512],
        )

    def _note(self, device: Device, now_s: float, heard: bool = True) -> Heard:
        found = self._heard.get(device)
        if found is None:
            found = self._heard[device] = Heard()
            if len(self._heard) > _MOST_DEVICES:
                self._forget(next(iter(self._heard)))
        if heard:
            found.at_s = now_s
        self.change += 1
        found.change = self.change
        self._heard.move_to_end(device)
        return found

    def _forget(self, device: Device) -> None:
        del self._heard[device]
        self.timelines.forget(device)
        self.requests.forget(device)

    def _safely(
        self,
        work: Callable[Parameters, None],
        *args: Parameters.args,
        **more: Parameters.kwargs,
    ) -> None:
        try:
            work(*args, **more)
        except Exception:
            self._log.exception("live page: not remembered")


def _lost(report: pb.DistortionReport) -> Losses:
    return (
        report.quantize,
        report.dropped_attention,
        report.latent_residual,
        report.unfamiliarity,
    )


def _stages(computation: Computation, answer: pb.Answer | None) -> dict[str, float]:
    """Time of each stage in the service, milliseconds, without those that a request skips."""
    found: dict[str, float] = {}
    if computation.accepted is not None:
        accepted = computation.accepted
        for name in ("queue", "decode", "project", "inject"):
            found[name] = getattr(accepted, f"{name}_s") * 1e3
    if answer is not None:
        found.setdefault("queue", answer.timings.queue_ms)
        found["prefill"] = answer.timings.prefill_ms
        found["generate"] = answer.timings.generate_ms
    return found
