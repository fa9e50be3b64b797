"""Management over HTTPS: who may do what, and that it takes effect."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from sqlalchemy import update

from cloud_server.identity.tls import SERVER, write_server
from cloud_server.state import bundles
from cloud_server.state.idempotency import KEPT_S
from cloud_server.state.tables import IdempotencyRow
from projector.bundle.load import Bundle
from tests.cloud_server import stage
from tests.cloud_server.secured import Secured, secured, serving


class Manager:
    """A caller with a key."""

    def __init__(self, it: Secured, key: str, context: ssl.SSLContext) -> None:
        self.http = httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{it.ports['api_port']}",
            headers={"authorization": f"Bearer {key}"},
            verify=context,
            timeout=60,
        )

    async def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        reply = await self.http.request(method, path, json=body)
        return reply.status_code, reply.json()


@asynccontextmanager
async def managed(paths: dict[str, Any], tmp_path: Path) -> AsyncIterator[tuple[Secured, Any]]:
    """A service with identities, and what makes callers of keys."""
    async with secured(paths, tmp_path / "service") as it, calling(it) as caller:
        yield it, caller


@asynccontextmanager
async def calling(it: Secured) -> AsyncIterator[Any]:
    """Makes callers of keys."""
    context = ssl.create_default_context(cadata=it.trusted_pem.decode())
    made: list[Manager] = []

    async def caller(key: str) -> Manager:
        manager = Manager(it, key, context)
        made.append(manager)

        await it.settled()
        return manager

    yield caller
    for manager in made:
        await manager.http.aclose()


def test_an_operator_adds_a_tenant_a_device_and_a_key_that_work(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            root = await caller(it.premises.operator())
            assert (await root("POST", "/v1/admin/tenants", {"name": "initech"}))[0] == 201
            status, device = await root(
                "POST", "/v1/admin/devices?tenant=initech", {"name": "gate-1"}
            )
            assert status == 201
            enrolled = await it.enrol(device["code"])
            edge = await it.edge(it.trusting(enrolled))
            assert (await edge.say("", seed=1)).HasField("accepted")
            status, key = await root("POST", "/v1/admin/keys?tenant=initech", {"name": "porter"})
            assert status == 201 and key["scopes"] == ["ask", "read"]
            porter = await caller(key["key"])
            assert (await porter("GET", "/v1/devices"))[1]["data"][0]["id"] == "gate-1"
            assert (await porter("GET", "/v1/admin/keys"))[0] == 403
            change = {"device": "gate-1", "bounds": {"requests_per_s": 5, "weight": 2}}
            status, quota = await root("PATCH", "/v1/admin/quotas?tenant=initech", change)
            assert status == 200 and quota["bounds"]["requests_per_s"] == 5
            change["bounds"] = {"weight": None}
            await root("PATCH", "/v1/admin/quotas?tenant=initech", change)
            (quota,) = (await root("GET", "/v1/admin/quotas?tenant=initech"))[1]["data"]
            assert (quota["bounds"]["requests_per_s"], quota["bounds"]["weight"]) == (5, None)
            shut = {"enabled": False}
            assert (await root("PATCH", "/v1/admin/keys/porter?tenant=initech", shut))[0] == 200
            await it.settled()
            assert (await porter("GET", "/v1/devices"))[0] == 401
            lines = (await root("GET", "/v1/admin/audit?tenant=initech"))[1]["data"]
            assert {line["actor"] for line in lines} >= {"key:service/root"}
            assert "key.disable" in {line["action"] for line in lines}
            first = (await root("GET", "/v1/admin/audit?limit=2"))[1]
            then = (await root("GET", f"/v1/admin/audit?limit=2&cursor={first['next_cursor']}"))[1]
            assert then["data"][0]["id"] < first["data"][-1]["id"]
            everything = await root("DELETE", "/v1/admin/tenants/initech")
            assert everything[0] == 409, "it has a device and a key"
            assert (await root("DELETE", "/v1/admin/tenants/initech?everything=true"))[0] == 200

    asyncio.run(work())


def test_a_tenants_manager_manages_its_tenant_alone_and_others_look_like_none(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            it.premises.code("gate-9", "globex")
            acme = await caller(
                it.premises.key("acme", "anna", kind="operator", scopes=("read", "manage"))
            )
            for method, path, body in (
                ("GET", "/v1/admin/devices?tenant={}", None),
                ("POST", "/v1/admin/devices?tenant={}", {"name": "gate-9"}),
                ("DELETE", "/v1/admin/devices/gate-9?tenant={}", None),
                ("GET", "/v1/admin/keys?tenant={}", None),
                ("POST", "/v1/admin/keys?tenant={}", {"name": "spy"}),
                ("GET", "/v1/admin/quotas?tenant={}", None),
                ("GET", "/v1/admin/audit?tenant={}", None),
                ("GET", "/v1/devices?tenant={}", None),
                ("GET", "/v1/devices/gate-9?tenant={}", None),
                ("GET", "/v1/scenes?tenant={}", None),
            ):
                # Names of one length, so that a message may repeat what was asked for.
                there = await acme.http.request(method, path.format("globex"), json=body)
                never = await acme.http.request(method, path.format("nobody"), json=body)
                assert there.status_code == never.status_code, path
                assert there.text.replace("globex", "nobody") == never.text, path
            assert (await acme("POST", "/v1/admin/tenants", {"name": "mine"}))[0] == 403
            assert (await acme("PATCH", "/v1/admin/quotas", {"bounds": {"weight": 9}}))[0] == 403
            assert (await acme("GET", "/v1/admin/bundles"))[0] == 403
            status, made = await acme("POST", "/v1/admin/devices", {"name": "gate-3"})
            assert (status, made["tenant"]) == (201, "acme")
            assert (await acme("GET", "/v1/admin/devices"))[1]["data"][0]["name"] == "gate-3"
            lines = (await acme("GET", "/v1/admin/audit"))[1]["data"]
            assert {line["tenant"] for line in lines} == {"acme"}
            narrow = await caller(
                it.premises.key("acme", "narrow", scopes=("manage",), devices=("gate-3",))
            )
            assert (await narrow("POST", "/v1/admin/keys", {"name": "wide"}))[0] == 403

    asyncio.run(work())


def test_an_operator_activates_rolls_back_and_retires_a_bundle(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            root = await caller(it.premises.operator())
            folder = tmp_path / "v2"
            digest = stage.describe(folder, 2, canary=stage.canary(*("0",) * 48))
            info = Bundle.peek(folder)
            with it.premises.store.write("test") as tx:
                bundles.add(
                    tx,
                    digest=digest,
                    bundle_id=info.id,
                    version=2,
                    source=info.source.fingerprint,
                    path=str(folder),
                )

            async def stands(state: str) -> None:
                while True:
                    listed = (await root("GET", "/v1/admin/bundles"))[1]["data"]
                    (row,) = [row for row in listed if row["digest"] == digest]
                    if state in {one["state"] for one in row["front_ends"]}:
                        return
                    await asyncio.sleep(0.05)

            on = f"/v1/admin/bundles/{info.id}@2"
            assert (await root("POST", f"{on}/activate", {"share": 0}))[0] == 400
            assert (await root("POST", f"{on}/activate", {"share": 1}))[1]["changed_by"] == (
                "key:service/root"
            )
            await asyncio.wait_for(stands("serving"), 60)
            assert (await root("POST", f"{on}/retire"))[0] == 409, "it is active"
            status, row = await root("POST", f"{on}/rollback", {"why": "a test"})
            assert (status, row["wanted"], row["note"]) == (200, "rolled_back", "a test")
            await asyncio.wait_for(stands("gone"), 60)
            assert (await root("POST", f"{on}/retire"))[1]["wanted"] == "retired"
            status, failed = await root("POST", "/v1/admin/bundles/nothing@1/retire")
            assert (status, failed["error"]["code"]) == (404, "missing")

    asyncio.run(work())


@pytest.mark.slow
def test_a_new_certificate_is_shown_to_new_connections_and_open_ones_live_on(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            key, tls = it.premises.key(), it.service.access.tls

            def serial(client: httpx.Response) -> str:
                shown = client.extensions["network_stream"].get_extra_info("ssl_object")
                return str(shown.getpeercert()["serialNumber"])

            old = await caller(key)
            before = serial(await old.http.get("/v1/models"))
            directory = it.premises.directory
            write_server(directory / SERVER, tls.authority, ["127.0.0.1"], time.time())
            tls.refresh()
            still = await old.http.get("/v1/models")
            assert (still.status_code, serial(still)) == (200, before)
            new = await (await caller(key)).http.get("/v1/models")
            assert new.status_code == 200 and serial(new) != before

    asyncio.run(work())


def test_only_tls_1_3_is_spoken_and_the_certificate_is_the_services(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            assert (await (await caller(it.premises.key()))("GET", "/v1/models"))[0] == 200
            context = ssl.create_default_context(cadata=it.trusted_pem.decode())
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.open_connection("127.0.0.1", it.ports["api_port"], ssl=context)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                strange = ssl.create_default_context()
                await asyncio.open_connection("127.0.0.1", it.ports["api_port"], ssl=strange)

    asyncio.run(work())


async def same(
    caller: Manager, key: str, path: str, body: Any, method: str = "POST"
) -> httpx.Response:
    return await caller.http.request(method, path, json=body, headers={"idempotency-key": key})


@pytest.mark.slow
def test_a_repeated_change_gets_the_same_answer_from_every_front_end_for_a_day(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    devices, keys = "/v1/admin/devices?tenant=acme", "/v1/admin/keys?tenant=acme"

    async def work() -> None:
        async with secured(paths, tmp_path / "service") as it:
            text, anna = it.premises.operator(), {"kind": "operator", "scopes": ["read", "manage"]}
            async with serving(paths, it.premises) as beside, calling(it) as one:
                root = await one(text)
                async with calling(beside) as two:
                    again = await two(text)
                    tries = [
                        same(who, "k1", devices, {"name": "gate-1"}) for who in [root, again] * 4
                    ]
                    first, *others = await asyncio.gather(*tries)
                    assert first.status_code == 201
                    assert {reply.content for reply in others} == {first.content}
                    assert {reply.status_code for reply in others} == {201}
                    replayed = [r.headers.get("idempotent-replayed") for r in (first, *others)]
                    assert sorted(replayed, key=str) == [None, *["true"] * 7]
                    made = (await same(root, "k2", keys, {"name": "anna", **anna})).json()
                    assert (await same(again, "k2", keys, {"name": "anna", **anna})).json() == made
                    other = await same(root, "k1", devices, {"name": "gate-2"})
                    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
                    other = await same(root, "k1", devices.replace("acme", "globex"), {"name": "g"})
                    assert other.status_code == 409 and "another request" in other.text
                    mine = await two(made["key"])
                    assert (await same(mine, "k1", devices, {"name": "gate-3"})).status_code == 201
                    taken = await same(root, "k3", devices, {"name": "gate-3"})
                    assert taken.status_code == 409 and "already" in taken.text
                    on = devices.replace("?", "/gate-3?")
                    for _ in range(2):
                        gone = await same(root, "k4", on, None, "DELETE")
                        assert gone.json() == {"removed": "gate-3"}
                    made = await same(root, "k3", devices, {"name": "gate-3"})
                    assert made.status_code == 201, "an error is not kept"
                    assert (await same(root, "x" * 256, devices, {"name": "g"})).status_code == 400
            async with serving(paths, it.premises) as after, calling(after) as three:
                root = await three(text)
                reply = await same(root, "k1", devices, {"name": "gate-1"})
                assert reply.content == first.content, "after a restart"
            raw = b"".join(path.read_bytes() for path in it.premises.directory.glob("state.db*"))
            assert first.json()["code"].encode() not in raw and b'"code"' not in raw
            with it.premises.store.write("test") as tx:
                tx.session.execute(
                    update(IdempotencyRow).values(made_s=IdempotencyRow.made_s - KEPT_S)
                )
            async with calling(it) as four:
                root = await four(text)
                reply = await same(root, "k1", devices, {"name": "gate-1"})
                assert reply.status_code == 409 and "already" in reply.text, "it was forgotten"
                lines = (await root("GET", "/v1/admin/audit?tenant=acme&action=device.add"))[1]
                assert [line["subject"] for line in lines["data"]] == ["gate-3", "gate-3", "gate-1"]

    asyncio.run(work())


def test_an_operator_revokes_a_devices_certificate_and_it_enrols_again(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            root = await caller(it.premises.operator())
            edge = await it.edge(await it.enrol(it.premises.code()))
            on = "/v1/admin/devices/gate-3{}?tenant=acme"
            (held,) = (await root("GET", on.format("")))[1]["certificates"]
            status, failed = await root("POST", on.format("/revoke"), {"serial": "0" * 40})
            assert (status, failed["error"]["code"]) == (404, "missing")
            status, done = await root("POST", on.format("/revoke"), {"serial": held["serial"][:6]})
            assert status == 200 and done["revoked"][0]["revoked_s"] is not None
            await it.settled()
            with pytest.raises(grpc.aio.AioRpcError):
                await edge.say("", seed=1)
            assert (await root("POST", on.format("/revoke"), {}))[1] == {"revoked": []}
            code = (await root("POST", on.format("/code")))[1]["code"]
            edge = await it.edge(await it.enrol(code))
            assert (await edge.say("", seed=1)).HasField("accepted")

    asyncio.run(work())
