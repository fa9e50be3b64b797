"""A key that is taken away: its open HTTP requests end, as its gRPC calls do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_server.state import keys
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop

LIMIT_S = 10.0


@pytest.mark.quick(1)
@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_a_removed_keys_request_under_way_ends_and_frees_the_engine(
    paths: dict[str, Any], tmp_path: Path, stream: bool
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        premises = server.premises
        edge = await server.edge(await server.enrol(premises.code()))
        assert (await edge.say("", seed=1)).HasField("accepted")
        key, kept = premises.key(), premises.key(name="kept")
        await server.settled()
        context = Device(b"", b"", server.trusted_pem).context()
        context.set_alpn_protocols(["http/1.1"])
        url = f"https://127.0.0.1:{server.ports['api_port']}"
        async with httpx.AsyncClient(base_url=url, verify=context, timeout=60) as http:

            def ask(question: str, key: str) -> Any:
                about = [
                    {"type": "scene", "device": "gate-3"},
                    {"type": "text", "text": question},
                ]
                body = {"model": "any", "messages": [{"role": "user", "content": about}]}
                return http.post(
                    "/v1/chat/completions",
                    json=body | {"model": model, "stream": stream},
                    headers={"Authorization": f"Bearer {key}"},
                )

            listed = await http.get("/v1/models", headers={"Authorization": f"Bearer {kept}"})
            model = listed.json()["data"][0]["id"]
            held = asyncio.create_task(ask("hold", key))
            while server.service.access.open_calls < 1:
                assert not held.done(), held.result().text
                await asyncio.sleep(0.01)
            with premises.store.write("test") as tx:
                keys.remove(tx, "acme", "dashboard")
            reply = await asyncio.wait_for(held, LIMIT_S)
            assert reply.status_code == 401, reply.text
            assert (await ask("count 2", kept)).status_code == 200
        assert server.service.access.open_calls == 0


@pytest.mark.quick(1)
@pytest.mark.parametrize("verb", [keys.disable, keys.remove])
@on_loop
async def test_a_stream_that_has_begun_says_why_it_ends(
    paths: dict[str, Any], tmp_path: Path, verb: Any
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        premises = server.premises
        edge = await server.edge(await server.enrol(premises.code()))
        assert (await edge.say("", seed=1)).HasField("accepted")
        key = premises.key()
        await server.settled()
        context = Device(b"", b"", server.trusted_pem).context()
        context.set_alpn_protocols(["http/1.1"])
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{server.ports['api_port']}",
            headers={"Authorization": f"Bearer {key}"},
            verify=context,
            timeout=60,
        ) as http:
            model = (await http.get("/v1/models")).json()["data"][0]["id"]
            about = [{"type": "scene", "device": "gate-3"}, {"type": "text", "text": "begin"}]
            said = [{"role": "user", "content": about}]
            body = {"model": model, "messages": said, "stream": True}
            async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                lines = reply.aiter_lines()
                while '"content":"0 "' not in (line := await anext(lines)).replace(": ", ":"):
                    assert "error" not in line
                with premises.store.write("test") as tx:
                    verb(tx, "acme", "dashboard")
                rest = [line async for line in lines if line]
            assert len(rest) == 1 and '"code":"unauthenticated"' in rest[0].replace(": ", ":")
