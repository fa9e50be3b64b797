"""Orders down and reports up, of a front end with identities; the devices are bare clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.cli import main
from cloud_server.state import device_reports, device_settings, devices, orders
from cloud_server.state.orders import DeviceOrder
from cloud_server.state.store import Store
from protos.errors import BridgeError, ConfigError, OverloadedError, UnauthenticatedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import front_end
from tests.cloud_server.api.test_management import calling
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import Premises, Secured, asked, secured, serving, typed
from tests.fakes.loop import on_loop

RESTART = pb.Order(restart=pb.Restart())
LOGS = pb.Order(send_logs=pb.SendLogs(lines=5))


def give(store: Store, order: pb.Order, name: str = "gate-3", tenant: str = "acme") -> DeviceOrder:
    with store.write("cli:test", quiet=True) as tx:
        return orders.give(tx, tenant, name, order)


def listed(store: Store, name: str = "gate-3", tenant: str = "acme") -> list[DeviceOrder]:
    with store.read() as session:
        return orders.of(session, tenant, name, time.time())


def report(**of: Any) -> pb.ReportRequest:
    body = pb.ReportBody(at_s=5.0, **of).SerializeToString()
    return pb.ReportRequest(id=hashlib.sha256(body).digest(), body=body)


def crash(text: str = "boom") -> pb.ReportRequest:
    told = json.dumps({"kind": "exception", "cause": text, "log": ["a", "b"]}).encode()
    return report(crash=pb.Crash(kind="exception", json=zlib.compress(told)))


def done(id: str, text: str = "as asked") -> pb.ReportRequest:
    return report(outcome=pb.Outcome(order_id=bytes.fromhex(id), done=text))


async def attend(it: Secured, device: Device, **of: Any) -> Any:
    """An Attend call that the service has accepted."""
    call = it.stub(device).Attend(pb.AttendRequest(agent_version="7", **of))
    await accepted(call)
    return call


async def accepted(call: Any) -> None:
    await asyncio.wait_for(call.initial_metadata(), 60)
    if call.done():
        raise typed(grpc.aio.AioRpcError(
            await call.code(), grpc.aio.Metadata(), await call.trailing_metadata(),
            await call.details(),
        ))  # fmt: skip


async def next_order(call: Any) -> pb.Order:
    read: pb.Order = await asyncio.wait_for(call.read(), 60)
    return read


async def device_of(it: Secured, name: str = "gate-3", tenant: str = "acme") -> Device:
    made = await it.enrol(it.premises.code(name, tenant))
    await it.settled()
    return made


@pytest.mark.slow
@on_loop
async def test_an_order_waits_for_its_device_and_is_sent_until_its_outcome_is_known(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    premises = Premises(tmp_path / "svc")
    async with serving(paths, premises) as it:
        device = await device_of(it)
        given = give(premises.store, RESTART)
        assert (await next_order(await attend(it, device))).id.hex() == given.id
    async with serving(paths, premises) as it:  # the service was started again in between
        call = await attend(it, device)
        order = await next_order(call)
        assert (order.id.hex(), order.WhichOneof("order")) == (given.id, "restart")
        later = give(premises.store, LOGS)
        assert (await next_order(call)).id.hex() == later.id, "an order reaches an open call"
        newer = await attend(it, device)
        assert await next_order(call) is grpc.aio.EOF, "a newer call ends the older one"
        newer.cancel()
        for _ in range(2):  # an outcome that comes twice is answered alike
            await asked(it.stub(device).Report(done(given.id)))
        call = await attend(it, device, carried_out=[bytes.fromhex(later.id)])
        last = give(premises.store, RESTART)
        assert (await next_order(call)).id.hex() == last.id, "neither of the first two"
        states = {one.id: (one.state, one.cause) for one in listed(premises.store)}
        assert states[given.id] == ("done", "as asked")
    premises.store.close()


@pytest.mark.slow
@on_loop
async def test_a_command_has_one_camera_take_a_picture(
    paths: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    premises = Premises(tmp_path / "svc")
    async with serving(paths, premises) as it:
        call = await attend(it, await device_of(it))
        where = ["--directory", str(premises.directory), "--tenant", "acme"]
        command = ["devices", "capture", "gate-3", "--camera", "yard", *where]
        assert await asyncio.to_thread(main, command) == 0
        assert "the next picture of camera 'yard'" in capsys.readouterr().out
        assert (await next_order(call)).capture.camera == "yard"
        command[4] = "y" * 64
        assert await asyncio.to_thread(main, command) == 10
    premises.store.close()


@pytest.mark.slow
@on_loop
async def test_an_order_given_at_one_front_end_reaches_a_device_at_another(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    premises = Premises(tmp_path / "svc")
    async with serving(paths, premises) as one, serving(paths, premises) as other:
        device = await device_of(one)
        await other.settled()
        call = await attend(other, device)
        key = premises.key("acme", "ops", kind="operator", scopes=("manage",))
        async with calling(one) as caller:
            ops = await caller(key)
            status, made = await ops("POST", "/v1/devices/gate-3/orders", {"restart": True})
            assert status == 201, made
            assert (await next_order(call)).id.hex() == made["id"]
            await asked(other.stub(device).Report(crash()))
            await asked(other.stub(device).Report(done(made["id"])))
            change = {"settings": {"hold_every_s": 5}}
            assert (await ops("PATCH", "/v1/devices/gate-3/settings", change))[0] == 200
            status, kept = await ops("GET", "/v1/devices/gate-3/reports")
            assert (status, [one["kind"] for one in kept["data"]]) == (200, ["exception"])
            status, shown = await ops("GET", f"/v1/devices/gate-3/reports/{kept['data'][0]['id']}")
            assert shown["crash"]["cause"] == "boom"
            status, shown = await ops("GET", "/v1/devices/gate-3/orders")
            assert [(one["kind"], one["state"]) for one in shown["data"]][1] == ("restart", "done")
            waits = shown["data"][0]["id"]
            stranger = await caller(
                premises.key("globex", "ops", kind="operator", scopes=("manage",))
            )
            reader = await caller(premises.key("acme", "reader", scopes=("read", "ask")))
            for method, path, body in (
                ("GET", "orders", None),
                ("POST", "orders", {"restart": True}),
                ("DELETE", f"orders/{waits}", None),
                ("GET", f"orders/{waits}/log", None),
                ("GET", "reports", None),
                ("GET", f"reports/{kept['data'][0]['id']}", None),
                ("GET", "settings", None),
                ("PATCH", "settings", change),
            ):
                theirs = await stranger(method, f"/v1/devices/gate-3/{path}", body)
                nobodys = await stranger(method, f"/v1/devices/gate-9/{path}", body)
                assert theirs[0] == nobodys[0] == 404, path
                theirs[1]["error"].pop("request_id", None), nobodys[1]["error"].pop("request_id", 0)
                assert str(theirs[1]).replace("gate-3", "gate-9") == str(nobodys[1])
                named = await stranger(method, f"/v1/devices/gate-3/{path}?tenant=acme", body)
                assert named[0] == 404, path
                assert (await reader(method, f"/v1/devices/gate-3/{path}", body))[0] == 403
            for bad in ({}, {"restart": True, "capture": ""}, {"reboot": True}):
                assert (await ops("POST", "/v1/devices/gate-3/orders", bad))[0] in (400, 422)
            mask = {"settings": {"mask": "gate=0,0 1,1"}}
            assert (await ops("PATCH", "/v1/devices/gate-3/settings", mask))[0] in (400, 422)
            assert (await ops("DELETE", f"/v1/devices/gate-3/orders/{waits[:8]}"))[0] == 200
    premises.store.close()


@pytest.mark.slow
@on_loop
async def test_orders_and_reports_are_for_devices_with_a_certificate_that_is_valid(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it:
        device = await device_of(it)
        key = (("authorization", f"Bearer {it.premises.key()}"),)
        await it.settled()
        for metadata, code in (((), 701), (key, 702)):
            stub = bridge_pb2_grpc.BridgeStub(it.channel())
            for call in (stub.Attend, stub.Report):
                with pytest.raises(BridgeError) as refused:
                    one = call(
                        pb.AttendRequest() if call is stub.Attend else crash(), metadata=metadata
                    )
                    await (accepted(one) if call is stub.Attend else asked(one))
                assert refused.value.code == code
        call = await attend(it, device)
        with it.premises.store.write("test") as tx:
            devices.disable(tx, "acme", "gate-3")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await next_order(call)
        assert isinstance(typed(ended.value), UnauthenticatedError)
    async with front_end.running(paths) as bare:
        stub = bridge_pb2_grpc.BridgeStub(bare.channel)
        with pytest.raises(BridgeError, match="without identities"):
            await accepted(stub.Attend(pb.AttendRequest()))
        with pytest.raises(BridgeError, match="without identities"):
            await asked(stub.Report(crash()))


Spoilt = Callable[[pb.ReportRequest], bytes]
BAD: dict[str, tuple[bytes, int]] = {
    "noise": (b"\xff\xff\xff", 203),
    "empty": (b"", 202),
    "another digest": (pb.ReportRequest(id=bytes(32), body=b"x").SerializeToString(), 202),
    "too large": (report(crash=pb.Crash(json=bytes(200_000))).SerializeToString(), 204),
    "no report": (report().SerializeToString(), 203),
    "no zlib": (report(crash=pb.Crash(json=b"{}")).SerializeToString(), 203),
    **{
        name: (report(crash=pb.Crash(json=zlib.compress(text))).SerializeToString(), 203)
        for name, text in (
            ("no JSON", b"{"),
            ("deep JSON", b"[" * 60_000),
            ("a list", b"[]"),
            ("a bomb", bytes(8 << 20)),
        )
    },
    "neither": (report(outcome=pb.Outcome(order_id=bytes(16))).SerializeToString(), 203),
    "short id": (report(log=pb.LogPiece(order_id=b"x")).SerializeToString(), 203),
    "no order": (
        report(outcome=pb.Outcome(order_id=bytes(16), done="x")).SerializeToString(),
        705,
    ),
    "no log order": (report(log=pb.LogPiece(order_id=bytes(16))).SerializeToString(), 705),
    "long words": (
        report(outcome=pb.Outcome(order_id=bytes(16), done="x" * 999)).SerializeToString(),
        203,
    ),
}


@on_loop
async def test_bad_reports_are_refused_by_name_and_keep_nothing(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it:
        device = await device_of(it)
        raw = it.channel(device).unary_unary("/neuralbridge.v1.Bridge/Report")
        for name, (bad, code) in BAD.items():
            with pytest.raises(BridgeError) as refused:
                await asked(raw(bad))
            assert refused.value.code == code, name
        bomb = zlib.compress(bytes(8 << 20))
        given = give(it.premises.store, LOGS)
        piece = pb.LogPiece(order_id=bytes.fromhex(given.id), lines=bomb)
        with pytest.raises(BridgeError, match="more than"):
            await asked(it.stub(device).Report(report(log=piece)))
        many = pb.AttendRequest(running=[pb.Running(kind="agent")] * 40)
        for bad_attend in (many, pb.AttendRequest(carried_out=[b"short"])):
            with pytest.raises(BridgeError) as refused:
                await accepted(it.stub(device).Attend(bad_attend))
            assert refused.value.code == 203
        with it.premises.store.read() as session:
            assert device_reports.of(session, "acme", "gate-3") == []


@pytest.mark.slow
@on_loop
async def test_a_report_that_comes_again_is_kept_once(
    paths: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with secured(paths, tmp_path / "svc") as it:
        device = await device_of(it)
        for _ in range(3):
            await asked(it.stub(device).Report(crash()))
        given = give(it.premises.store, LOGS)
        for index, text in ((1, "third"), (0, "first\nsecond")):
            piece = pb.LogPiece(
                order_id=bytes.fromhex(given.id), index=index, lines=zlib.compress(text.encode())
            )
            await asked(it.stub(device).Report(report(log=piece)))
        await asked(it.stub(device).Report(done(given.id)))
        place = ["--directory", str(it.premises.directory), "--tenant", "acme"]

        def run(*line: str) -> str:
            assert main(["devices", *line, *place]) == 0
            return capsys.readouterr().out

        capsys.readouterr()
        shown = json.loads(run("reports", "gate-3", "--json"))
        assert sorted(one["kind"] for one in shown) == ["exception", "log", "log"]
        one = next(one for one in shown if one["kind"] == "exception")
        assert "boom\na\nb\n" in run("reports", "gate-3", "--show", one["id"][:8])
        assert run("logs", "gate-3", "--order", given.id[:8]) == "first\nsecond\nthird\n"
        assert "done" in run("orders", "gate-3")


def test_what_is_kept_of_a_device_and_of_its_tenant_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    premises = Premises(tmp_path / "svc")
    for name in ("gate-3", "gate-4"):
        premises.code(name)
    premises.code("gate-3", "globex")
    monkeypatch.setattr(device_reports, "MOST_OF_DEVICE", 5)
    monkeypatch.setattr(device_reports, "MOST_BYTES_OF_TENANT", 600)

    def keep(tenant: str, name: str, count: int) -> None:
        for _ in range(count):
            with premises.store.write("test", quiet=True) as tx:
                id = devices.find(tx.session, tenant, name).id
                body = pb.ReportBody(crash=pb.Crash(kind="fault", json=secrets.token_bytes(88)))
                raw = body.SerializeToString()
                device_reports.keep(tx, id, secrets.token_hex(32), "fault", "", raw)

    def kept(tenant: str, name: str) -> int:
        with premises.store.read() as session:
            return len(device_reports.of(session, tenant, name))

    keep("globex", "gate-3", 4)
    keep("acme", "gate-3", 9)
    assert kept("acme", "gate-3") == 5
    keep("acme", "gate-4", 4)
    assert (kept("acme", "gate-3"), kept("acme", "gate-4")) == (2, 4), "the oldest go first"
    assert kept("globex", "gate-3") == 4, "another tenant's stay"
    premises.store.close()


@pytest.mark.slow
@on_loop
async def test_settings_are_given_again_to_a_device_that_does_not_have_them(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it:
        device, store = await device_of(it), it.premises.store

        def change(**values: Any) -> DeviceOrder:
            with store.write("cli:test", quiet=True) as tx:
                return device_settings.change(tx, "acme", "gate-3", values)[1]

        first, second = change(hold_every_s=5), change(log_level="debug")
        states = {one.id: one.state for one in listed(store)}
        assert states == {first.id: "replaced", second.id: "waiting"}
        order = await next_order(await attend(it, device))
        assert (order.id.hex(), order.configure.revision) == (second.id, 2)
        assert json.loads(order.configure.settings_json) == {
            "hold_every_s": 5, "log_level": "debug"
        }  # fmt: skip
        stands = pb.Settings(
            revision=2, tried=2, refused=[pb.RefusedSetting(name="log_level", message="no")]
        )
        said = pb.Outcome(order_id=order.id, done="taken", settings=stands)
        await asked(it.stub(device).Report(report(outcome=said)))
        with store.read() as session:
            known = device_reports.standing(session, "acme", "gate-3")
        assert known is not None and known.refused[0]["name"] == "log_level"
        # It has them: nothing comes. It was flashed anew: they come again.
        call = await attend(it, device, settings=stands)
        marker = give(store, RESTART)
        assert (await next_order(call)).id.hex() == marker.id
        call = await attend(it, device, carried_out=[bytes.fromhex(marker.id)])
        again = await next_order(call)
        assert (again.configure.revision, again.id == order.id) == (2, False)


def test_a_setting_that_is_the_devices_own_is_refused_before_it_is_given(tmp_path: Path) -> None:
    premises = Premises(tmp_path / "svc")
    premises.code()
    place = ["--directory", str(premises.directory), "--tenant", "acme"]
    for text in ("mask=gate=0,0 1,1", "server=evil.example:1", "guard=picture", "hold_evry_s=3"):
        assert main(["devices", "configure", "gate-3", text, *place]) == ConfigError.exit_code
    assert listed(premises.store) == []
    premises.store.close()


def test_orders_that_wait_are_bounded_and_expire(tmp_path: Path) -> None:
    premises = Premises(tmp_path / "svc")
    premises.code()
    with premises.store.write("test", quiet=True) as tx:
        id = devices.find(tx.session, "acme", "gate-3").id
        for _ in range(orders.MOST_WAITING):
            orders.put(tx, id, RESTART)
    with pytest.raises(OverloadedError):
        give(premises.store, RESTART)
    first = listed(premises.store)[0]
    with premises.store.read() as session:
        assert orders.waiting(session, [id], first.expires_s - 1)
        assert not orders.waiting(session, [id], first.expires_s + 1)
        later = orders.of(session, "acme", "gate-3", first.expires_s + 1)
    assert {one.state for one in later} == {"expired"}
    premises.store.close()
