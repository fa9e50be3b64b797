"""No tenant or device sees another's data: another's id and an unknown id get the same answer."""

from __future__ import annotations

import hashlib
import secrets
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from cloud_server.frontend.sessions import Sessions
from cloud_server.identity.caller import Caller
from cloud_server.state import device_reports, orders
from protos.calls import EVENTS_APART, SESSION_METADATA_KEY
from protos.errors import MissingKeyFrameError, UnknownSessionError
from protos.header import Header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.parcel import Course, pack
from protos.quantize import QUANTIZERS
from protos.requests import seal_ask
from tests.cloud_server import stage
from tests.cloud_server.front_end import Edge
from tests.cloud_server.secured import Secured, secured
from tests.fakes.loop import on_loop

STEPS = 240


@dataclass
class Place:
    """A session with one held scene, and everything that a thief could know of it."""

    tenant: str
    device: str
    edge: Edge
    request: pb.InferRequest
    order: bytes

    @property
    def request_id(self) -> bytes:
        id: bytes = self.request.request_id
        return id


@dataclass
class Who:
    """A caller of the walk."""

    tenant: str
    name: str
    channel: Any
    metadata: tuple[tuple[str, str], ...] = ()
    sees: tuple[str, ...] = ()

    @property
    def stub(self) -> Any:
        return bridge_pb2_grpc.BridgeStub(self.channel)

    @property
    def is_key(self) -> bool:
        return bool(self.metadata)

    def may_ask(self, place: Place) -> bool:
        return place.tenant == self.tenant and place.device in (self.sees or (self.name,))


Said = tuple[str, str, str]
"""How a call ended: status, message, error code."""


async def heard(call: Any) -> Said:
    try:
        if hasattr(call, "read"):
            while (event := await call.read()) is not grpc.aio.EOF:
                if isinstance(event, pb.InferEvent) and event.HasField("answer"):
                    return "answered", event.answer.text, ""
                if isinstance(event, pb.Chunk):
                    return "chunk", "", ""
            return str(await call.code()), "", ""
        await call
        return "OK", "", ""
    except grpc.aio.AioRpcError as error:
        trailer = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
        return error.code().name, error.details() or "", trailer.get("nb-error-code", "")


def fetch(who: Who, place: Place, id: bytes) -> Any:
    digest = place.edge.session.encoder_digest
    request = pb.FetchEncoderRequest(session_id=id, encoder_digest=digest)
    return who.stub.FetchEncoder(request, metadata=who.metadata, timeout=60)


def fetch_rest(who: Who, place: Place, id: bytes) -> Any:
    digest = place.edge.session.encoder_digest
    request = pb.FetchEncoderRequest(session_id=id, encoder_digest=digest, offset=1 << 40)
    return who.stub.FetchEncoder(request, metadata=who.metadata, timeout=60)


def infer(who: Who, place: Place, id: bytes) -> Any:
    metadata = (*who.metadata, (SESSION_METADATA_KEY, id))
    call = who.stub.Infer(iter(()), metadata=metadata, timeout=60)
    return call


def infer_parcel(who: Who, place: Place, id: bytes) -> Any:
    """Two requests that were answered there, in one message, sealed as their owner sealed them.

    The message leaves with the call. `grpc.aio` replaces the status that came by INTERNAL when a
    later write fails.
    """
    metadata = (*who.metadata, (SESSION_METADATA_KEY, id))
    sent = pack(place.edge.session.session_constants, [place.request, place.request], Course())
    whole = who.channel.unary_stream(
        "/neuralbridge.v1.Bridge/Infer",
        request_serializer=pb.InferRequest.SerializeToString,
        response_deserializer=pb.InferEvent.FromString,
    )
    return whole(sent, metadata=metadata, timeout=60)


def infer_apart(who: Who, place: Place, id: bytes) -> Any:
    metadata = (*who.metadata, (SESSION_METADATA_KEY, id), EVENTS_APART)
    return who.stub.Infer(iter(()), metadata=metadata, timeout=60)


def events(who: Who, place: Place, id: bytes) -> Any:
    return who.stub.Events(pb.EventsRequest(session_id=id), metadata=who.metadata, timeout=0.5)


def ask(who: Who, place: Place, id: bytes) -> Any:
    """With the session's own constants and the id of a request that was answered there."""
    constants = place.edge.session.session_constants
    request = seal_ask(constants, id, place.request_id, 1, "count 2", 6)
    return who.stub.Ask(request, metadata=who.metadata, timeout=60)


def feedback(who: Who, place: Place, id: bytes) -> Any:
    request = pb.FeedbackRequest(
        session_id=id, frame_number=1, request_id=bytes(8), digest=bytes(8)
    )
    return who.stub.Feedback(request, metadata=who.metadata, timeout=60)


def report(who: Who, place: Place, id: bytes) -> Any:
    """How an order of that device ended; of any other caller, and of no order, the same error."""
    order = place.order if id == place.edge.session.session_id else id
    body = pb.ReportBody(outcome=pb.Outcome(order_id=order, done="x")).SerializeToString()
    request = pb.ReportRequest(id=hashlib.sha256(body).digest(), body=body)
    return who.stub.Report(request, metadata=who.metadata, timeout=60)


def log_piece(who: Who, place: Place, id: bytes) -> Any:
    order = place.order if id == place.edge.session.session_id else id
    piece = pb.LogPiece(order_id=order, lines=zlib.compress(b"{}"))
    body = pb.ReportBody(log=piece).SerializeToString()
    request = pb.ReportRequest(id=hashlib.sha256(body).digest(), body=body)
    return who.stub.Report(request, metadata=who.metadata, timeout=60)


CALLS: tuple[Callable[[Who, Place, bytes], Any], ...] = (
    fetch,
    fetch_rest,
    infer,
    infer_parcel,
    infer_apart,
    events,
    ask,
    feedback,
    report,
    log_piece,
)


def ordered(server: Secured, tenant: str, name: str) -> bytes:
    """Order a device to send its log; returns the order's id."""
    asked = pb.Order(send_logs=pb.SendLogs())
    with server.premises.store.write("test", quiet=True) as tx:
        return bytes.fromhex(orders.give(tx, tenant, name, asked).id)


async def town(server: Secured) -> tuple[list[Who], list[Place]]:
    """Two tenants with two devices each, and keys of several rights."""
    callers, places = [], []
    for tenant in ("acme", "globex"):
        for name in ("gate-3", "gate-4"):
            device = await server.enrol(server.premises.code(name, tenant))
            edge = await server.edge(device)
            request = edge.frame(seed=1, question="count 2")
            call = edge.open()
            await call.write(request)
            await call.done_writing()
            assert [event async for event in call][-1].answer.text == "0 1"
            places.append(Place(tenant, name, edge, request, ordered(server, tenant, name)))
            callers.append(Who(tenant, name, edge.channel))
        rights: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
            "all": ({}, ("gate-3", "gate-4")),
            "one": ({"devices": ("gate-3",)}, ("gate-3",)),
            "none": ({"scopes": ("read",)}, ("",)),
        }
        for name, (about, sees) in rights.items():
            token = server.premises.key(tenant, name, **about)
            metadata = (("authorization", f"Bearer {token}"),)
            callers.append(Who(tenant, name, server.channel(), metadata, sees))
    await server.settled()
    return callers, places


@on_loop
async def test_no_call_shows_a_caller_anothers_data(paths: dict[str, Any], tmp_path: Path) -> None:
    random = Random(26)
    wide = {"device_requests_per_s": 0.0, "device_bytes_per_s": 0.0}
    async with secured(paths, tmp_path / "svc", **wide) as server:
        callers, places = await town(server)
        reached = set()
        for _ in range(STEPS):
            who, call = random.choice(callers), random.choice(CALLS)
            own = [place for place in places if who.may_ask(place)]
            place = random.choice(own if own and random.random() < 0.4 else places)
            unknown = "705" if call in (report, log_piece) else "303"
            said = await heard(call(who, place, place.edge.session.session_id))
            nothing = await heard(call(who, place, secrets.token_bytes(16)))
            told = f"{who.tenant}/{who.name} {call.__name__} of {place.tenant}/{place.device}"
            if who.is_key and call is not ask:
                assert said == nothing and said[2] == "702", told
            elif who.is_key and who.name == "none":
                assert said == nothing and said[2] == "702", told
            elif who.may_ask(place):
                assert said != nothing and nothing[2] == unknown, told
                reached.add((who.is_key, call.__name__))
            else:
                assert said == nothing and said[2] == unknown, told
        assert reached == {(True, "ask")} | {(False, call.__name__) for call in CALLS}
        given = {
            (one.tenant, one.device): ordered(server, one.tenant, one.device) for one in places
        }
        with server.premises.store.read() as session:
            for one in places:
                kept = device_reports.of(session, one.tenant, one.device)
                assert {report.order for report in kept} <= {one.order.hex()}
        for who in callers:
            if not who.is_key:
                done = [
                    one.order
                    for one in places
                    if (one.tenant, one.device) == (who.tenant, who.name)
                ]
                call = who.stub.Attend(pb.AttendRequest(carried_out=done), timeout=60)
                assert (await call.read()).id == given[who.tenant, who.name]
                call.cancel()


@pytest.mark.slow
@on_loop
async def test_a_frame_of_another_session_is_no_base_for_a_delta_frame(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    """Every other session gets the same answer as for an unknown frame."""
    async with secured(paths, tmp_path / "svc") as server:
        _, places = await town(server)
        for number, place in enumerate((*places, places[0])):
            edge = place.edge
            if number:
                await edge.meet()  # a session that holds nothing; at last the owner's next one

            async def told(edge: Edge, base: int) -> pb.InferEvent:
                frame = edge.encoder.encode(stage.state(2), edge.encoder.point(stage.FP8))
                header = Header(stage.FP8, edge.number(100), frame.kept, base=base)
                call = edge.open()
                await call.write(edge.sealed(header, frame.payload, "count 2"))
                await call.done_writing()
                return [event async for event in call][-1]

            held, never = await told(edge, 1), await told(edge, 77)
            if not number:
                assert held.answer.text == "0 1" and never.HasField("refused")
            else:
                assert held.refused == never.refused
                assert held.refused.code == MissingKeyFrameError.code


@on_loop
async def test_a_parcel_of_another_session_is_refused_like_noise(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    """Even with another device's constants, frames and questions, on a stream of one's own."""
    async with secured(paths, tmp_path / "svc") as server:
        _, (mine, *others) = await town(server)

        async def told(parcel: bytes) -> pb.InferEvent:
            call = mine.edge.open()
            await call.write(pb.InferRequest(parcel=parcel))
            await call.done_writing()
            return [event async for event in call][-1]

        for place in others:
            sent = pack(place.edge.session.session_constants, [place.request], Course()).parcel
            noise = secrets.token_bytes(4) + sent[4:]
            stolen, made_up = await told(sent), await told(noise)
            assert stolen.refused.code == made_up.refused.code == 202
            assert not stolen.request_id and not stolen.frame_number


@on_loop
async def test_the_same_request_id_of_a_key_and_of_a_device_are_two_requests(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        callers, places = await town(server)
        device, key = callers[0], next(who for who in callers if who.name == "all")
        place = places[0]
        id = secrets.token_bytes(8)

        async def asked(who: Who) -> pb.Answer:
            session = place.edge.session
            request = seal_ask(session.session_constants, session.session_id, id, 1, "count 3", 6)
            call = who.stub.Ask(request, metadata=who.metadata, timeout=60)
            return [event async for event in call][-1].answer

        assert not (await asked(device)).from_memory
        assert (await asked(device)).from_memory
        assert not (await asked(key)).from_memory, "what the device was told stays its own"
        assert (await asked(key)).from_memory


def _sessions() -> Sessions:
    made = Sessions(64, 64, lambda _: None)
    made.offer([stage.offer()])
    return made


@pytest.mark.parametrize(
    "stranger",
    [
        Caller("device", "globex", "gate-3"),
        Caller("device", "acme", "gate-4"),
        Caller("application", "globex", "key", frozenset({"ask"})),
        Caller("application", "acme", "key", frozenset({"ask"}), frozenset({"gate-4"})),
        Caller("operator", "globex", "key", frozenset({"ask"})),
    ],
)
def test_another_callers_session_and_an_unknown_one_run_the_same_code(stranger: Caller) -> None:
    sessions = _sessions()
    owner = Caller("device", "acme", "gate-3")
    held = sessions.open(stage.SOURCE, tuple(QUANTIZERS), "", "10.0.0.1", owner).id
    assert sessions.get(held, owner).owner == ("acme", "gate-3")

    def lines(id: bytes) -> tuple[list[tuple[str, int]], bytes]:
        seen: list[tuple[str, int]] = []

        def trace(frame: Any, event: str, _: Any) -> Any:
            seen.append((frame.f_code.co_filename, frame.f_lineno))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            sessions.get(id, stranger)
        except UnknownSessionError as error:
            message = error.message.encode()
        finally:
            sys.settrace(before)
        return seen, message

    assert lines(held) == lines(secrets.token_bytes(16))


@pytest.mark.parametrize(
    ("caller", "finds"),
    [
        (Caller("application", "acme", "key"), True),
        (Caller("application", "acme", "key", devices=frozenset({"gate-3", "gate-9"})), True),
        (Caller("application", "acme", "key", devices=frozenset()), False),
        (Caller("operator", "service", "root"), True),
        (Caller("anyone", "local", "anyone"), False),
    ],
)
def test_a_key_finds_the_sessions_of_its_devices_alone(caller: Caller, finds: bool) -> None:
    sessions = _sessions()
    owner = Caller("device", "acme", "gate-3")
    held = sessions.open(stage.SOURCE, tuple(QUANTIZERS), "", "10.0.0.1", owner).id
    try:
        found = sessions.get(held, caller).id == held
    except UnknownSessionError:
        found = False
    assert found == finds
