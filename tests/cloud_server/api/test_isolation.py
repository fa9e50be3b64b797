"""Two tenants over HTTP: neither sees the other's data, and each has its own quota."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from cloud_server.state import devices
from tests.cloud_server.api.over_http import data_url
from tests.cloud_server.api.test_management import Manager, managed
from tests.cloud_server.secured import Secured

NEVER = "0" * 32


async def seen(it: Secured, tenant: str, device: str, seed: int) -> None:
    """A device of a tenant sends a scene."""
    edge = await it.edge(it.trusting(await it.enrol(it.premises.code(device, tenant))))
    assert (await edge.say("", seed=seed)).HasField("accepted")


def question(model: str, part: dict[str, Any], text: str = "count 2") -> dict[str, Any]:
    content = [part, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


async def what(caller: Manager, method: str, path: str, body: Any = None) -> tuple[int, str]:
    reply = await caller.http.request(method, path, json=body)
    return reply.status_code, reply.text


async def first_event(caller: Manager, path: str) -> dict[str, Any]:
    """What the first server-sent event of a feed says."""
    async with caller.http.stream("GET", path) as feed:
        async for line in feed.aiter_lines():
            if line.startswith("data: "):
                return dict(json.loads(line[6:]))
    raise AssertionError("the feed said nothing")


def test_no_route_shows_a_tenant_anothers_data(paths: dict[str, Any], tmp_path: Path) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            await seen(it, "acme", "gate-3", 1)
            await seen(it, "globex", "gate-9", 2)
            callers = {
                "acme": await caller(it.premises.key("acme", "dash", scopes=("ask", "read"))),
                "globex": await caller(it.premises.key("globex", "dash", scopes=("ask", "read"))),
            }
            devices = {"acme": "gate-3", "globex": "gate-9"}
            model = (await callers["acme"]("GET", "/v1/models"))[1]["data"][0]["id"]
            scenes = {
                tenant: (await one("GET", "/v1/scenes"))[1]["data"][0]["id"]
                for tenant, one in callers.items()
            }
            assert len(set(scenes.values())) == 2
            # The same idempotency key of both: neither gets the other's answer.
            ids: dict[str, str] = {}
            for tenant, one in callers.items():
                part = {"type": "scene", "device": devices[tenant]}
                reply = await one.http.post(
                    "/v1/chat/completions",
                    json=question(model, part),
                    headers={"idempotency-key": "the same"},
                )
                assert reply.json()["bridge"]["scene"] == scenes[tenant]
                ids[tenant] = reply.json()["id"].removeprefix("chatcmpl-")
            assert len(set(ids.values())) == 2
            pick = random.Random(7)
            for _ in range(120):
                mine, other = pick.sample(sorted(callers), 2)
                one, device, scene = callers[mine], devices[other], scenes[other]
                named = pick.choice([{}, {"tenant": other}])
                query = "".join(f"?tenant={name}" for name in named.values())
                made, never = pick.choice(
                    [
                        (("GET", f"/v1/scenes/{scene}{query}"), ("GET", f"/v1/scenes/{NEVER}")),
                        (("GET", f"/v1/devices/{device}{query}"), ("GET", "/v1/devices/nobody")),
                        (("GET", f"/v1/scenes?device={device}"), ("GET", "/v1/scenes?device=no-9")),
                        (
                            ("GET", f"/v1/live/devices/{device}{query}"),
                            ("GET", "/v1/live/devices/nobody"),
                        ),
                        (
                            ("GET", f"/v1/live/devices/{device}/requests/{ids[other]}{query}"),
                            ("GET", f"/v1/live/devices/nobody/requests/{NEVER}"),
                        ),
                        (
                            (
                                "GET",
                                f"/v1/live/devices/{device}/requests/{ids[other]}/picture{query}",
                            ),
                            ("GET", f"/v1/live/devices/nobody/requests/{NEVER}/picture"),
                        ),
                        (
                            ("GET", f"/v1/live/events?device={device}{query.replace('?', '&')}"),
                            ("GET", "/v1/live/events?device=nobody"),
                        ),
                        (
                            (
                                "POST",
                                "/v1/chat/completions",
                                question(
                                    model,
                                    {
                                        "type": "scene",
                                        "device": device,
                                        "at": pick.choice(["latest", scene]),
                                    }
                                    | named,
                                ),
                            ),
                            (
                                "POST",
                                "/v1/chat/completions",
                                question(model, {"type": "scene", "device": "nobody"}),
                            ),
                        ),
                        (
                            (
                                "POST",
                                "/v1/chat/completions",
                                question(
                                    model,
                                    {
                                        "type": "image_url",
                                        "image_url": {"url": f"bridge://{other}/{device}/latest"},
                                    },
                                ),
                            ),
                            (
                                "POST",
                                "/v1/chat/completions",
                                question(model, {"type": "scene", "device": "nobody"}),
                            ),
                        ),
                    ]
                )
                status, text = await what(one, *made)
                status_never, text_never = await what(one, *never)
                assert status == status_never, made
                for found, gone in ((scene, NEVER), (device, "nobody")):
                    text = text.replace(found, gone)
                text_never = text_never.replace("latest", NEVER)
                assert text.replace("latest", NEVER) == text_never, made
            listed = [(await one("GET", "/v1/scenes"))[1]["data"] for one in callers.values()]
            assert [{s["device"] for s in some} for some in listed] == [{"gate-3"}, {"gate-9"}]
            for tenant, one in callers.items():
                for query in ("", "?tenant=acme", "?tenant=globex"):
                    rows = (await one("GET", f"/v1/live/fleet{query}"))[1]["rows"]
                    mine = [devices[tenant]] if query[8:] in ("", tenant) else []
                    assert [row["device"] for row in rows] == mine, (tenant, query)
                    told = (await first_event(one, f"/v1/live/events{query}"))["rows"]
                    assert [row["device"] for row in told] == mine, (tenant, query)
                seen_request = await one(
                    "GET", f"/v1/live/devices/{devices[tenant]}/requests/{ids[tenant]}"
                )
                assert seen_request[1]["answer"] == "0 1"
            root = await caller(
                it.premises.key("service", "root", kind="operator", scopes=("ask", "read"))
            )
            rows = (await root("GET", "/v1/live/fleet"))[1]["rows"]
            assert [row["device"] for row in rows] == ["gate-3", "gate-9"]
            for tenant, device in devices.items():
                url = {
                    "type": "image_url",
                    "image_url": {"url": f"bridge://{tenant}/{device}/latest"},
                }
                status, answer = await root("POST", "/v1/chat/completions", question(model, url))
                assert (status, answer["bridge"]["scene"]) == (200, scenes[tenant])

    asyncio.run(work())


def test_a_key_for_some_devices_and_a_key_without_a_scope_do_no_more(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            await seen(it, "acme", "gate-3", 1)
            await seen(it, "acme", "gate-4", 2)
            narrow = await caller(it.premises.key("acme", "narrow", devices=("gate-3",)))
            assert [d["id"] for d in (await narrow("GET", "/v1/devices"))[1]["data"]] == ["gate-3"]
            assert len((await narrow("GET", "/v1/scenes"))[1]["data"]) == 1
            rows = (await narrow("GET", "/v1/live/fleet"))[1]["rows"]
            assert [row["device"] for row in rows] == ["gate-3"]
            assert (await narrow("GET", "/v1/live/devices/gate-4"))[0] == 404
            model = (await narrow("GET", "/v1/models"))[1]["data"][0]["id"]
            for device, status in (("gate-3", 200), ("gate-4", 404)):
                asked = question(model, {"type": "scene", "device": device})
                assert (await narrow("POST", "/v1/chat/completions", asked))[0] == status
            reader = await caller(it.premises.key("acme", "reader", scopes=("read",)))
            picture = {"type": "image_url", "image_url": {"url": data_url()}}
            for part in ({"type": "scene", "device": "gate-3"}, picture):
                asked = question(model, part)
                assert (await reader("POST", "/v1/chat/completions", asked))[0] == 403
            asker = await caller(it.premises.key("acme", "asker", scopes=("ask",)))
            for path in ("scenes", "live/fleet", "live/devices/gate-3", "live/events"):
                assert (await asker("GET", f"/v1/{path}"))[0] == 403, path

    asyncio.run(work())


def test_scenes_of_a_removed_device_are_not_seen_under_the_same_name(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            await seen(it, "acme", "gate-3", 1)
            await seen(it, "acme", "gate-4", 2)
            dash = await caller(it.premises.key("acme", "dash"))
            assert len((await dash("GET", "/v1/scenes"))[1]["data"]) == 2
            with it.premises.store.write("test") as tx:
                devices.remove(tx, "acme", "gate-3")
                devices.add(tx, "acme", "gate-3")
            await it.settled()
            while len(left := (await dash("GET", "/v1/scenes"))[1]["data"]) == 2:
                await asyncio.sleep(0.01)
            assert [one["device"] for one in left] == ["gate-4"]
            gone = (await dash("GET", "/v1/live/devices/gate-3"))[1]
            assert (gone["row"]["heard_at"], gone["requests"], gone["timeline"]["at"]) == (
                None,
                [],
                [],
            )

    asyncio.run(work())


def test_a_quota_holds_over_http_and_its_headers_tell_what_is_left(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with managed(paths, tmp_path) as (it, caller):
            dash = await caller(it.premises.key("acme", "dash"))
            other = await caller(it.premises.key("globex", "dash"))
            root = await caller(it.premises.operator())
            bounds = {"requests_per_s": 0.01, "request_burst": 3}
            change = {"device": "*", "bounds": bounds}
            assert (await root("PATCH", "/v1/admin/quotas?tenant=acme", change))[0] == 200
            await it.settled()
            left = []
            for _ in range(3):
                reply = await dash.http.get("/v1/models")
                assert reply.status_code == 200
                assert reply.headers["x-ratelimit-limit-requests"] == "3"
                left.append(int(reply.headers["x-ratelimit-remaining-requests"]))
            assert left == [2, 1, 0]
            refused = await dash.http.get("/v1/models")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert 1 <= int(refused.headers["retry-after"]) <= 100
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
            others = await other.http.get("/v1/models")
            assert others.status_code == 200, "the other tenant has its own"
            assert int(others.headers["x-ratelimit-remaining-requests"]) > 3

    asyncio.run(work())
