"""CheckUpdate and FetchUpdate: a device gets the update that it is offered, and nobody else's."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from cloud_server.frontend.updates import Updates
from cloud_server.metrics import Metrics
from cloud_server.state import update_moves, update_offers, updates
from cloud_server.state.stages import Stages
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.update import open_update
from protos.errors import FrameMalformedError, MissingError, StateError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.secured import Secured, asked, secured, typed
from tests.fakes.loop import on_loop
from tests.fakes.updates import write_update

SAID = pb.CheckUpdateRequest(
    machine="aarch64", python="3.10", jetpack="6", number=1, takes=True, takes_older=False
)


def put(server: Secured, folder: Path, number: int) -> str:
    """Add an update; returns its digest."""
    key = SigningKey.create(folder / f"{number}.pem")
    file = write_update(folder / f"{number}", key, {"model/a": bytes(700_000)}, number=number)
    with open_update(file, TrustedKeys({key.public: "maker"})) as update:
        manifest, digest = update.manifest, update.digest
    place = updates.file_of(server.premises.directory, digest)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(file.read_bytes())
    with server.premises.store.write("test", quiet=True) as tx:
        size = place.stat().st_size
        updates.add(tx, manifest, digest=digest, size_bytes=size, signer="maker")
    return digest


async def part(stub: Any, digest: str, offset: int = 0, length: int = 1 << 30) -> bytes:
    call = stub.FetchUpdate(pb.FetchUpdateRequest(digest=digest, offset=offset, length=length))
    return b"".join([chunk.data async for chunk in call])


async def ending(call: Any) -> tuple[Any, ...]:
    """How a call ends, by everything that its caller sees."""
    try:
        async for chunk in call:
            return ("chunk", len(chunk.data))
    except grpc.aio.AioRpcError:
        pass
    return await call.code(), await call.details(), sorted(await call.trailing_metadata() or ())


@on_loop
async def test_an_update_reaches_the_device_that_it_is_offered_to_in_parts(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        mine = server.stub(await server.enrol(server.premises.code("gate-3", "acme")))
        theirs = server.stub(await server.enrol(server.premises.code("gate-3", "globex")))
        beside = server.stub(await server.enrol(server.premises.code("gate-4", "acme")))
        await server.settled()
        digest, store = put(server, tmp_path, 2), server.premises.store
        assert await asked(mine.CheckUpdate(SAID)) == pb.CheckUpdateResponse()
        with store.write("test", quiet=True) as tx:
            update_offers.offer(tx, "2", "acme", Stages((1.0,)))
        for stub in (theirs, beside):
            said = pb.CheckUpdateRequest()
            said.CopyFrom(SAID)
            said.takes = stub is theirs
            assert await asked(stub.CheckUpdate(said)) == pb.CheckUpdateResponse()

        # One device's digest, and one that never was, by everybody who is not offered it.
        for stub in (theirs, beside):
            stranger = await ending(stub.FetchUpdate(pb.FetchUpdateRequest(digest=digest)))
            never = await ending(
                stub.FetchUpdate(pb.FetchUpdateRequest(digest=secrets.token_hex(32)))
            )
            odd = await ending(stub.FetchUpdate(pb.FetchUpdateRequest(digest="../state.db")))
            assert stranger == never == odd and MissingError(str(stranger[1])).code == 705

        reply = await asked(mine.CheckUpdate(SAID))
        place = updates.file_of(server.premises.directory, digest)
        whole = place.read_bytes()
        assert (reply.digest, reply.number, reply.size_bytes) == (digest, 2, len(whole))
        assert await part(mine, digest) == whole
        assert await part(mine, digest, 1000, 10) == whole[1000:1010]
        assert await part(mine, digest, len(whole) - 5, 10) == whole[-5:]
        assert await part(mine, digest, len(whole)) == await part(mine, digest, 1 << 60) == b""
        assert await part(mine, digest, (1 << 64) - 1, (1 << 64) - 1) == b""
        longer = pb.FetchUpdateRequest(digest=f"{digest}/../{digest}")
        assert await ending(mine.FetchUpdate(longer)) == never

        # An operator pauses it while a device fetches it; its next part is refused.
        with store.write("test", quiet=True) as tx:
            update_offers.pause(tx, "2", "acme")
        assert await ending(mine.FetchUpdate(pb.FetchUpdateRequest(digest=digest))) == never
        with store.write("test", quiet=True) as tx:
            update_offers.resume(tx, "2", "acme")
        place.rename(tmp_path / "away")
        call = mine.FetchUpdate(pb.FetchUpdateRequest(digest=digest, length=10))
        with pytest.raises(StateError):
            try:
                await call.read()
            except Exception as error:
                raise typed(error) from error  # type: ignore[arg-type]

        # It failed there: the offer halts, says so, and is offered to nobody any more.
        told = pb.CheckUpdateRequest()
        told.CopyFrom(SAID)
        told.states.add(digest=digest, state="failed", cause="no_answers", failures=1)
        assert await asked(mine.CheckUpdate(told)) == pb.CheckUpdateResponse()
        metrics, lines = Metrics(), structlog.testing.CapturingLogger()
        parts: Any = (None, None, metrics, None, lines)
        look = Updates(store, server.premises.directory, *parts)
        for _ in range(2):
            await look.turn()
        labels = {"tenant": "acme", "number": "2", "digest": digest[:12]}
        value = metrics.registry.get_sample_value
        assert value("neural_bridge_cloud_update_halted", labels) == 1
        assert value("neural_bridge_cloud_update_devices", labels | {"state": "failed"}) == 1
        assert [call.args for call in lines.calls] == [("update halted",)], "told once"
        with store.read() as session:
            (stands,) = update_offers.every(session, 0.0)
        assert stands.state == update_moves.HALTED


@on_loop
async def test_a_malformed_question_is_refused_and_changes_nothing(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        stub = server.stub(await server.enrol(server.premises.code()))
        await server.settled()
        for fields in (
            {"machine": ""}, {"machine": "a b"}, {"python": "x" * 65}, {"jetpack": "ü"},
            {"digest": "abc"}, {"digest": "A" * 64}, {"number": 1 << 60},
            {"states": [pb.UpdateState(digest="0" * 64, state="fine")]},
            {"states": [pb.UpdateState(digest="x", state="kept")]},
            {"states": [pb.UpdateState(digest="0" * 64, state="kept")] * 33},
        ):  # fmt: skip
            said = pb.CheckUpdateRequest()
            said.CopyFrom(SAID)
            if "states" in fields:
                said.states.extend(fields["states"])
            else:
                for name, value in fields.items():
                    setattr(said, name, value)
            with pytest.raises(FrameMalformedError):
                await asked(stub.CheckUpdate(said))
        raw = server.channels[-1].unary_unary("/neuralbridge.v1.Bridge/CheckUpdate")
        for blob in (b"\xff\xff\xff", bytes(70_000)):
            with pytest.raises(FrameMalformedError):
                await asked(raw(blob))
        with server.premises.store.read() as session:
            assert update_offers.every(session, 0.0) == []
