"""Signing in to the live page: what a cookie may do, where it comes from, when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_server.identity import certificates
from cloud_server.identity.certificates import Signer
from cloud_server.identity.cookies import NAME, Cookie, Cookies
from cloud_server.state import keys
from protos.errors import UnauthenticatedError
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import Secured, secured
from tests.fakes.loop import on_loop

OWN = {"x-neural-bridge-page": "1", "sec-fetch-site": "same-origin"}


@asynccontextmanager
async def browsing(it: Secured) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key, that keeps cookies."""
    await it.settled()
    context = Device(b"", b"", it.trusted_pem).context()
    context.set_alpn_protocols(["http/1.1"])
    url = f"https://127.0.0.1:{it.ports['api_port']}"
    async with httpx.AsyncClient(base_url=url, verify=context, timeout=60) as http:
        yield http


async def sign_in(http: httpx.AsyncClient, key: str) -> httpx.Response:
    return await http.post("/live/sign-in", json={"key": key}, headers=OWN)


def question(model: str) -> dict[str, Any]:
    content = [{"type": "scene", "device": "gate-3"}, {"type": "text", "text": "count 2"}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


@on_loop
async def test_a_key_becomes_a_cookie_that_reads_asks_and_never_manages(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it, browsing(it) as http:
        edge = await it.edge(it.trusting(await it.enrol(it.premises.code())))
        assert (await edge.say("", seed=1)).HasField("accepted")
        key = it.premises.key("acme", "anna", kind="operator", scopes=("ask", "read", "manage"))
        await it.settled()
        for path in ("/live/session", "/v1/live/fleet", "/v1/live/events"):
            assert (await http.get(path)).status_code == 401, path
        assert (await sign_in(http, key[:-1] + "x")).status_code == 401
        signed = await sign_in(http, f" {key} ")
        assert signed.status_code == 200, signed.text
        assert signed.json()["tenant"] == "acme" and signed.json()["may_ask"]
        assert 0 < signed.json()["expires_at"] - time.time() <= 12 * 3600
        set_cookie = signed.headers["set-cookie"]
        for word in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/", "Max-Age="):
            assert word in set_cookie
        assert set_cookie.startswith(f"{NAME}=") and key[4:] not in set_cookie
        fleet = (await http.get("/v1/live/fleet")).json()
        assert [row["device"] for row in fleet["rows"]] == ["gate-3"]
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        asked = question(model)
        answered = await http.post("/v1/chat/completions", json=asked, headers=OWN)
        assert answered.status_code == 200, answered.text
        assert (await http.get("/v1/admin/keys")).status_code == 403, "a page never manages"
        # What another site makes the browser send is refused, although it carries the cookie.
        for headers in (
            {},
            OWN | {"sec-fetch-site": "cross-site"},
            OWN | {"sec-fetch-site": "none"},
        ):
            told = await http.post("/v1/chat/completions", json=asked, headers=headers)
            assert told.status_code == 403, headers
        assert (await http.post("/live/sign-in", json={"key": key})).status_code == 403
        assert (await http.request("TRACE", "/live/sign-in")).status_code == 405
        # A cookie is no key.
        text = http.cookies[NAME]
        async with browsing(it) as other:
            bearer = {"authorization": f"Bearer {text}"}
            assert (await other.get("/v1/devices", headers=bearer)).status_code == 401
        left = await http.post("/live/sign-out", headers=OWN)
        assert left.status_code == 204 and NAME not in http.cookies
        assert (await http.get("/live/session")).status_code == 401


@on_loop
async def test_a_session_and_its_feed_end_with_the_key(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it, browsing(it) as http:
        key = it.premises.key("acme", "anna")
        await it.settled()
        await sign_in(http, key)
        async with http.stream("GET", "/v1/live/events") as feed:
            lines = feed.aiter_lines()
            assert await anext(lines) == "event: fleet"
            with it.premises.store.write("test") as tx:
                keys.remove(tx, "acme", "anna")
            last = [line async for line in lines if line][-1]
            assert '"unauthenticated"' in last
        assert (await http.get("/live/session")).status_code == 401
        # The same name again is another key.
        it.premises.key("acme", "anna")
        await it.settled()
        assert (await http.get("/live/session")).status_code == 401


@on_loop
async def test_the_page_needs_no_key_no_internet_and_no_inline_script(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it, browsing(it) as http:
        assert (await http.get("/")).headers["location"] == "/live"
        page = await http.get("/live")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "//" not in page.text.replace("<!doctype", ""), "nothing from another host"
        names = [part.split('"')[0] for part in page.text.split('"/live/files/')[1:]]
        assert len(names) >= 4
        for name in names:
            found = await http.get(f"/live/files/{name}")
            assert found.status_code == 200, name
            again = await http.get(
                f"/live/files/{name}", headers={"if-none-match": found.headers["etag"]}
            )
            assert again.status_code == 304
        assert (await http.get("/live/files/../settings.toml")).status_code in (401, 404)
        assert (await http.get("/live/files/%2e%2e/__init__.py")).status_code == 404


def signer() -> Signer:
    key = certificates.fresh_key()
    return Signer(certificates.make_root(key, time.time() + 1e6), key)


def test_a_forged_an_altered_and_an_old_cookie_are_refused() -> None:
    now_s = 1000.0
    mine, other = signer(), signer()
    cookies = Cookies(lambda: mine, lambda: now_s)
    cookie = cookies.make("ab12", "f" * 64, 1500.0)
    cookies.check(cookie, "f" * 64)
    assert cookies.claim(cookie).key_id == "ab12"
    parts = cookie.text.split(".")
    altered = [
        ".".join([parts[0], "ab13", *parts[2:]]),
        ".".join([*parts[:2], "9999", *parts[3:]]),
        cookie.text[:-1] + ("A" if cookie.text[-1] != "A" else "B"),
    ]
    for text in altered:
        with pytest.raises(UnauthenticatedError):
            cookies.check(Cookie(text), "f" * 64)
    with pytest.raises(UnauthenticatedError):
        cookies.check(cookie, "e" * 64)
    with pytest.raises(UnauthenticatedError):
        Cookies(lambda: other, lambda: now_s).check(cookie, "f" * 64)
    for text in ("", "1", "x" * 10_000, cookie.text + ".", "2" + cookie.text[1:], "1.é.9.a.b"):
        with pytest.raises(UnauthenticatedError):
            cookies.claim(Cookie(text))
    now_s = 1500.0
    with pytest.raises(UnauthenticatedError):
        cookies.claim(cookie)


@on_loop
async def test_a_service_without_identities_needs_no_signing_in(paths: dict[str, Any]) -> None:
    from tests.cloud_server.api.over_http import asking

    async with asking(paths) as it:
        session = (await it.http.get("/live/session")).json()
        assert session["kind"] == "anyone" and session["expires_at"] is None
        (row,) = (await it.http.get("/v1/live/fleet")).json()["rows"]
        assert row["device"] == it.device and row["scene"]["id"] == it.scene
        assert await it.text("count 2") == "0 1"
        await asyncio.sleep(0)
