"""The live page in headless Chromium: every view, live updates, an expired key, a dead server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_server.state import keys
from tests.cloud_server.front_end import Edge
from tests.cloud_server.page.browser import DESK, PHONE, Viewer, needs_browser, viewer
from tests.cloud_server.secured import Premises, Secured, secured, serving
from tests.fakes.loop import on_loop

pytestmark = [pytest.mark.slow, needs_browser]


@asynccontextmanager
async def watched(
    paths: dict[str, Any], folder: Path, **settings: Any
) -> AsyncIterator[tuple[Secured, Edge, Viewer, str]]:
    """A service, a device with a scene, a browser, and a person's key."""
    async with secured(paths, folder / "svc", **settings) as it:
        edge = await it.edge(it.trusting(await it.enrol(it.premises.code())))
        assert (await edge.say("", seed=1)).HasField("accepted")
        key = it.premises.key("acme", "anna")
        await it.settled()
        async with viewer(f"https://127.0.0.1:{it.ports['api_port']}") as seen:
            yield it, edge, seen, key


@on_loop
async def test_a_person_signs_in_by_keyboard_and_no_script_gets_the_key(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with watched(paths, tmp_path) as (_, _, seen, key):
        await seen.open()
        await seen.sees("Sign in")
        assert await seen.serious() == []
        keyboard = seen.page.keyboard
        field = seen.page.get_by_label("Key of an application or operator")
        await field.focus()
        await keyboard.type("nbk_wrong")
        await keyboard.press("Enter")
        await seen.sees("This key is not valid here")
        assert await field.evaluate("field => field === document.activeElement")
        assert await seen.serious() == []
        await keyboard.press("Control+A")
        await keyboard.type(key)
        await keyboard.press("Enter")
        await seen.page.get_by_role("link", name="gate-3").wait_for()
        state = await seen.page.evaluate(
            "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), "
            "location.href, document.body.innerText].join()"
        )
        assert key not in state and "__Host-" not in state
        # The device's link is reached by the Tab key, and opened by Enter.
        for _ in range(12):
            await keyboard.press("Tab")
            if await seen.page.evaluate("document.activeElement.textContent") == "gate-3":
                break
        await keyboard.press("Enter")
        await seen.page.get_by_role("heading", name="gate-3").wait_for()
        await seen.page.get_by_role("button", name="Sign out").click()
        await seen.sees("Key of an application or operator")


@on_loop
async def test_the_fleet_follows_its_devices(paths: dict[str, Any], tmp_path: Path) -> None:
    async with watched(paths, tmp_path, page_silent_s=3.0) as (it, edge, seen, key):
        await seen.sign_in(key)
        row = seen.page.get_by_role("row", name="gate-3")
        await row.wait_for()
        before = await row.get_attribute("data-scene")
        assert (await edge.say("", seed=2)).HasField("accepted")
        await seen.page.wait_for_function(
            "before => document.querySelector('tr[data-scene]').dataset.scene !== before",
            arg=before,
        )
        await row.get_by_text("silent").wait_for()  # three seconds without a word
        it.premises.code("gate-4")
        await seen.page.get_by_role("row", name="gate-4").get_by_text("not heard yet").wait_for()


@on_loop
async def test_a_device_is_asked_and_its_request_is_shown(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with watched(paths, tmp_path) as (_, _, seen, key):
        await seen.sign_in(key)
        page = seen.page
        await page.get_by_role("link", name="gate-3").click()
        await page.get_by_role("img", name="tokens are known").wait_for()
        await page.locator(".chart canvas").nth(4).wait_for()
        await page.get_by_label("Ask about the newest scene").fill("count 3")
        await page.get_by_role("button", name="Ask").click()
        await page.locator("output").get_by_text("0 1 2").wait_for()
        await seen.sees("Risk not known")
        await page.get_by_role("row", name="count 3").wait_for()  # the feed brought it
        await page.get_by_role("link", name="Where the time went").click()
        await page.get_by_role("heading", name="Request").wait_for()
        await page.get_by_role("row", name="Generated the answer").wait_for()
        await seen.sees("held already")
        await page.go_back()
        await page.locator("table.requests a").last.click()
        await seen.sees("travelled")
        await page.get_by_role("row", name="Rounding (quantize)").wait_for()
        await seen.open("/live#/device/acme/nobody")
        await seen.sees("there is no device 'nobody'")


@on_loop
async def test_a_key_that_is_taken_away_is_shown_plainly(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with watched(paths, tmp_path) as (it, _, seen, key):
        await seen.sign_in(key)
        await seen.page.get_by_role("link", name="gate-3").click()
        await seen.page.get_by_role("heading", name="gate-3").wait_for()
        with it.premises.store.write("test") as tx:
            keys.remove(tx, "acme", "anna")
        await seen.sees("You are signed out")
        assert await seen.serious() == []
        await seen.page.get_by_label("Key of an application or operator").fill(
            it.premises.key("acme", "bert")
        )
        await it.settled()
        await seen.page.get_by_role("button", name="Sign in").click()
        await seen.page.get_by_role("heading", name="gate-3").wait_for()


@on_loop
async def test_a_dead_server_is_shown_plainly_and_its_return_noticed(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    premises = Premises(tmp_path / "svc")
    premises.code()
    key = premises.key("acme", "anna")
    async with serving(paths, premises) as it:
        port = it.ports["api_port"]
        made = viewer(f"https://127.0.0.1:{port}")
        seen = await made.__aenter__()
        try:
            await seen.sign_in(key)
            await seen.page.get_by_role("row", name="gate-3").wait_for()
        except BaseException:
            await made.__aexit__(None, None, None)
            raise
    try:
        await seen.sees("The service does not answer")
        assert await seen.page.get_by_role("row", name="gate-3").is_visible(), (
            "what was known stays"
        )
        assert await seen.serious() == []
        async with serving(paths, premises, api_port=port):
            banner = seen.page.get_by_text("The service does not answer")
            await banner.wait_for(state="detached")
            await seen.page.get_by_role("row", name="gate-3").wait_for()
    finally:
        await made.__aexit__(None, None, None)
        premises.store.close()


@on_loop
async def test_every_view_is_accessible_in_light_and_dark_and_on_a_phone(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with watched(paths, tmp_path) as (_, edge, seen, key):
        answered = await edge.say("count 3", seed=5)
        await seen.sign_in(key)
        device = "/live#/device/acme/gate-3"
        for path, there in (
            ("/live#/", "gate-3"),
            (device, "Newest requests"),
            (f"{device}/request/{answered.request_id.hex()}", "What each stage lost"),
        ):
            await seen.open(path)
            await seen.page.reload()
            await seen.sees(there)
            for scheme in ("light", "dark"):
                for size in (DESK, PHONE):
                    await seen.look(scheme, size)
                    assert await seen.serious() == [], (path, scheme, size)
                    assert not await seen.too_wide(), (path, scheme, size)
