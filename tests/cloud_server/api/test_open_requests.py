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
