"""A gRPC server that speaks the contract, checks every byte, and misbehaves on request."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from projector.codec.encoder import Encoder
from protos.calls import ACCEPTED_WAIT_KEY, CROP_KEY, EVENTS_APART, SESSION_METADATA_KEY
from protos.crop import MOST_CROP_BYTES, parse_crop
from protos.digest import session_constants, verify
from protos.errors import (
    BridgeError,
    FrameMalformedError,
    UnknownSceneError,
    UnknownSessionError,
)
from protos.header import FIXED
from protos.layout import KVLayout
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.parcel import Course, unpack
from protos.points import PICTURE, RAW_KV_FP8, points_to_json
from protos.refusals import ERROR_METADATA_KEY, refused
from protos.requests import id_of, parse_ask_request, parse_infer_request
from protos.shadow import Gathering, Shadowed


def digest_of(bundle: str) -> str:
    """The digest of a bundle of that name."""
    return hashlib.sha256(bundle.encode()).hexdigest()


@dataclass(eq=False)
class FakeBridge(bridge_pb2_grpc.BridgeServicer):
    """Answers `about <question>`; every misbehaviour is a field that a test sets.

    Attributes:
        drop_after: break the stream after so many requests, once each entry.
        drop_error: what it breaks with; UNAVAILABLE without any word of ours by default.
        answers_per_request: terminal events sent for each request.
        refusals: question to errors that it meets, one each time it comes.
        ignore: how many requests to say nothing about.
        advice: sent once, with the first accepted frame.
        lose_scene: forget a held scene before the next Ask, so often.
        gate: answers wait for it while it is closed.
        encoder_blob: what FetchEncoder sends, if not the encoder.
        silent_fetch: FetchEncoder sends one piece, and nothing after it.
        fetch_breaks_after: the link breaks after so many pieces of each FetchEncoder; 0: never.
        knows_offset: whether FetchEncoder goes on from an offset; an older service sends it all.
        damage: how many requests arrive with another frame number than was sent.
        apart: whether there is Events; an older server has none.
        elsewhere: a load balancer takes every second connection to a server of other sessions.
        max_parcel: requests in one parcel; 0: an older service, which reads none.
        cap_bytes: gRPC's own cap on a message, as a proxy's may be; it ends the stream.
        remembers: answer a request that comes again from memory, as a service does.
        bundle: names the bundle that is served.
        retired: encoders of bundles that are loaded still, by digest.
        takes_shadows: whether there is Shadow; an older service has none.
        crop: asked for with each question of a device that allows crops; the answer waits for it.
        host: address that it listens on.
        port: on that; 0 for a free one.
        options: gRPC's, besides the usual ones.
    """

    encoder: Encoder
    limits: Limits = field(default_factory=Limits)
    drop_after: list[int] = field(default_factory=list)
    drop_error: BridgeError | None = None
    answers_per_request: int = 1
    refusals: dict[str, list[BridgeError]] = field(default_factory=dict)
    ignore: int = 0
    advice: pb.RateAdvice | None = None
    lose_scene: int = 0
    encoder_blob: bytes | None = None
    silent_fetch: bool = False
    fetch_breaks_after: int = 0
    knows_offset: bool = True
    negotiate_error: BridgeError | None = None
    gate: asyncio.Event | None = None
    damage: int = 0
    apart: bool = True
    elsewhere: bool = False
    max_parcel: int = 0
    cap_bytes: int = 4 << 20
    warnings: tuple[str, ...] = ()
    remembers: bool = False
    bundle: str = "bundle"
    retired: dict[str, Encoder] = field(default_factory=dict)
    takes_shadows: bool = True
    crop: pb.CropWanted | None = None
    host: str = "127.0.0.1"
    port: int = 0
    options: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        self.sessions: dict[bytes, bytes] = {}
        self.scenes: set[tuple[bytes, int]] = set()
        self.requests: list[tuple[bytes, bytes, int]] = []  # session, request id, frame number
        self.messages: dict[tuple[bytes, bytes], set[bytes]] = {}
        self.raw: list[bytes] = []
        self.crops: dict[bytes, asyncio.Future[bytes]] = {}
        self.allowed: list[str] = []
        self.shadows: list[Shadowed] = []
        self.shadow_parts: list[int] = []
        self.computed: Counter[str] = Counter()
        self.asked: list[str] = []
        self.bundles: dict[bytes, str] = {}
        self.encoders: dict[str, Encoder] = {}
        self.remembered: dict[tuple[bytes, bytes], bytes] = {}
        self.computed_ids: Counter[bytes] = Counter()
        self.negotiations = 0
        self.devices: list[str] = []
        self.doubt = ""
        self.fetches = 0
        self.fetch_offsets: list[int] = []
        self.fetch_deadlines: list[float | None] = []
        self.most_in_flight = 0
        self.groups: list[int] = []  # requests in each message
        self.down: dict[bytes, asyncio.Queue[pb.InferEvent | None]] = {}
        self._in_flight = 0
        self._server: Any = None
        self.address = ""

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", self.cap_bytes), *self.options]
        )
        bridge_pb2_grpc.add_BridgeServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"{self.host}:{self.port}")
        await self._server.start()
        self.address = f"{self.host}:{port}"

    async def stop(self) -> None:
        await self._server.stop(None)

    async def restart(self) -> None:
        """What a crash leaves: broken streams, no session, no scene (and another port)."""
        crashed = self._server
        self.sessions.clear()
        self.scenes.clear()
        await self.start()
        await crashed.stop(None)

    def dial(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    # ------------------------------------------------------------------ the service

    async def Negotiate(self, request: pb.NegotiateRequest, context: Any) -> pb.NegotiateResponse:
        self.negotiations += 1
        self.devices.append(request.device)
        if self.negotiate_error is not None:
            await self._abort(context, self.negotiate_error)
        layout = KVLayout.from_json(request.source_layout_json)
        told = replace(layout, settings_digest=request.source_settings_digest)
        if told.fingerprint == self.encoder.source_fingerprint:  # else as a service of before
            layout = told
        session_id, bundle = os.urandom(16), digest_of(self.bundle)
        encoder = self.encoder
        if request.keep_bundle and request.bundle_digest in self.retired:
            bundle = request.bundle_digest
            encoder = self.retired[bundle]
        self.bundles[session_id] = bundle
        self.encoders[encoder.digest] = encoder
        constants = session_constants(session_id, layout.fingerprint, bundle)
        self.sessions[session_id] = constants
        points = [*encoder.points]
        points += [p for p in (RAW_KV_FP8, PICTURE) if p.index not in {q.index for q in points}]
        return pb.NegotiateResponse(
            session_id=session_id,
            session_constants=constants,
            bundle_id="fake",
            bundle_version="1",
            bundle_digest=bundle,
            encoder_digest=encoder.digest,
            target_layout_json=layout.to_json(),
            limits=self.limits.to_proto(),
            operating_points_json=points_to_json(points),
            default_point=points[0].name,
            ladder=[p.name for p in points],
            bundle_doubt=self.doubt,
            parcel_requests=self.max_parcel,
        )

    async def FetchEncoder(self, request: Any, context: Any) -> AsyncIterator[pb.Chunk]:
        self.fetches += 1
        self.fetch_deadlines.append(context.time_remaining())
        encoder = self.encoders[request.encoder_digest]
        blob = self.encoder_blob if self.encoder_blob is not None else encoder.to_bytes()
        self.fetch_offsets.append(request.offset)
        at = request.offset if self.knows_offset else 0
        if at and at >= len(blob):
            await self._abort(context, FrameMalformedError("no such offset"))
        for count, start in enumerate(range(at, len(blob), 1000), 1):
            offset = start if self.knows_offset else 0
            piece = blob[start : start + 1000]
            yield pb.Chunk(data=piece, total_bytes=len(blob), offset=offset)
            if self.silent_fetch:
                await asyncio.Event().wait()
            if count == self.fetch_breaks_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    async def Events(self, request: Any, context: Any) -> AsyncIterator[pb.InferEvent]:
        if not self.apart:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        if self.elsewhere or request.session_id not in self.sessions:
            await self._abort(context, UnknownSessionError("no such session"))
        down = self.down[request.session_id] = asyncio.Queue()
        await context.send_initial_metadata(())
        while (event := await down.get()) is not None:
            yield event

    async def Infer(self, requests: Any, context: Any) -> AsyncIterator[pb.InferEvent]:
        metadata = dict(context.invocation_metadata())
        session_id = bytes(metadata[SESSION_METADATA_KEY])
        if session_id not in self.sessions:
            await self._abort(context, UnknownSessionError("no such session"))
        self.allowed.append(str(metadata.get(CROP_KEY, "")))
        drop_after = self.drop_after.pop(0) if self.drop_after else None
        events: asyncio.Queue[pb.InferEvent | None] = asyncio.Queue()
        pending: set[asyncio.Task[None]] = set()

        async def read() -> None:
            seen = 0
            course = Course()
            async for message in requests:
                if message.HasField("crop"):
                    raw = message.SerializeToString()
                    id, file = parse_crop(raw, self.sessions[session_id], MOST_CROP_BYTES)
                    self.crops[id].set_result(file)
                    continue
                seen += 1
                if drop_after is not None and seen > drop_after:
                    break
                for request in self._requests(message, session_id, course, events):
                    self._in_flight += 1
                    self.most_in_flight = max(self.most_in_flight, self._in_flight)
                    task = asyncio.create_task(self._answer(session_id, request, events))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
            else:
                if pending:
                    await asyncio.wait(set(pending))
            events.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (event := await events.get()) is not None:
                if ACCEPTED_WAIT_KEY in metadata:
                    event = self._together(event, events)
                if metadata.get(EVENTS_APART[0]) == EVENTS_APART[1]:
                    self.down[session_id].put_nowait(event)
                else:
                    yield event
        finally:
            reader.cancel()
            for task in pending:
                task.cancel()
            self._in_flight = 0
        if drop_after is not None:
            if self.drop_error is not None:
                await self._abort(context, self.drop_error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    def _together(self, event: pb.InferEvent, events: asyncio.Queue[Any]) -> pb.InferEvent:
        """One message of all events that are there."""
        found = [event]
        while not events.empty():
            more = events.get_nowait()
            if more is None:
                events.put_nowait(None)
                break
            found.append(more)
        return pb.InferEvent(events=found) if len(found) > 1 else event

    async def Shadow(self, requests: Any, context: Any) -> pb.ShadowResponse:
        if not self.takes_shadows:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "older")
        before, gathering = len(self.shadows), Gathering(self.limits.max_picture_bytes)
        async for message in requests:
            self.shadow_parts.append(len(message.picture))
            picture = gathering.add(message.SerializeToString())
            if picture is not None:
                picture.verify(self.sessions[picture.session_id])
                self.shadows.append(picture)
        return pb.ShadowResponse(measured=len(self.shadows) - before)

    async def Ask(self, request: pb.AskRequest, context: Any) -> AsyncIterator[pb.InferEvent]:
        parse_ask_request(request.SerializeToString(deterministic=True), self.limits)
        constants = self.sessions.get(request.session_id)
        if constants is None:
            await self._abort(context, UnknownSessionError("no such session"))
        verify(request, constants or b"")
        scene = (request.session_id, request.frame_number)
        if self.lose_scene:
            self.lose_scene -= 1
            self.scenes.discard(scene)
        if scene not in self.scenes:
            await self._abort(context, UnknownSceneError("no such scene"))
        self.asked.append(request.question)
        yield pb.InferEvent(
            request_id=request.request_id,
            frame_number=request.frame_number,
            answer=pb.Answer(text=f"about {request.question}", tokens=2),
        )

    # ------------------------------------------------------------------ one request

    def _requests(
        self,
        message: pb.InferRequest,
        session_id: bytes,
        course: Course,
        events: asyncio.Queue[Any],
    ) -> list[pb.InferRequest]:
        if not message.parcel or not self.max_parcel:
            self.groups.append(1)
            return [message]
        raw = bytearray(message.SerializeToString())
        if self.damage:
            self.damage -= 1
            raw[-1] ^= 1
        try:
            found = unpack(
                bytes(raw), self.sessions[session_id], course, self.max_parcel, self.limits
            )
        except BridgeError as error:
            events.put_nowait(pb.InferEvent(refused=refused(error)))
            return []
        self.groups.append(len(found))
        return found

    async def _answer(
        self, session_id: bytes, request: pb.InferRequest, events: asyncio.Queue[Any]
    ) -> None:
        if self.damage:
            self.damage -= 1
            header = bytearray(request.frame.header)
            header[FIXED.size + 1] ^= 1
            request.frame.header = bytes(header)
        raw = request.SerializeToString(deterministic=True)

        def send(**event: Any) -> None:
            events.put_nowait(pb.InferEvent(request_id=request_id, frame_number=number, **event))

        request_id, number = id_of(request, self.sessions[session_id]), 0
        try:
            header = parse_infer_request(raw, self.limits).header
            verify(request, self.sessions[session_id])
            number = header.frame_number
            self.requests.append((session_id, request_id, number))
            self.raw.append(raw)
            self.messages.setdefault((session_id, request_id), set()).add(raw)
            if self.ignore:
                self.ignore -= 1
                return
            if self.refusals.get(request.question):
                raise self.refusals[request.question].pop(0)
            known = self.remembered.get((session_id, request_id))
            if known not in (None, raw):
                raise FrameMalformedError("the request id was used before, with other bytes")
            if self.gate is not None:
                await self.gate.wait()
        except BridgeError as error:
            self._in_flight -= 1
            send(refused=refused(error))
            return
        self._in_flight -= 1
        if self.advice is not None:
            events.put_nowait(pb.InferEvent(rate_advice=self.advice))
            self.advice = None
        self.scenes.add((session_id, number))
        send(accepted=pb.Accepted(distortion=header.distortion.to_proto()))
        if not request.question:
            return
        cropped = b""
        if self.crop is not None and self.allowed[-1]:
            came = self.crops[request_id] = asyncio.get_running_loop().create_future()
            send(crop_wanted=self.crop)
            cropped = await came
        if self.remembers and known is None:
            self.remembered[session_id, request_id] = raw
        if known is None:
            self.computed[request.question] += 1
            self.computed_ids[request_id] += 1
        send(token=pb.Token(text="about", index=0))
        for _ in range(self.answers_per_request):
            send(
                answer=pb.Answer(
                    text=f"about {request.question}",
                    tokens=2,
                    timings=pb.Timings(ttft_ms=1.5, total_ms=2.0),
                    distortion=header.distortion.to_proto(),
                    warnings=self.warnings,
                    from_memory=known is not None,
                    fallback="crop" if cropped else "",
                )
            )

    async def _abort(self, context: Any, error: BridgeError) -> None:
        await context.abort(
            getattr(grpc.StatusCode, error.grpc_status),
            error.message,
            trailing_metadata=((ERROR_METADATA_KEY, str(error.code)),),
        )
