"""A headless Chromium at the live page, which fails on what a strict browser would report."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
AXE = ROOT / "tests" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
try:
    from playwright.async_api import Page, async_playwright
except ImportError:
    CHROMIUM = ""
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not AXE.exists(), reason="no Chromium, Playwright or axe-core (make browser)"
)


@dataclass
class Viewer:
    """A browser's page at a service.

    Attributes:
        faults: what the browser reported: errors of scripts, refusals of the policy.
        hosts: hosts that it talked to.
    """

    page: Any
    url: str
    faults: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    async def open(self, path: str = "/live") -> None:
        await self.page.goto(self.url + path)

    async def sign_in(self, key: str) -> None:
        await self.open()
        await self.page.get_by_label("Key of an application or operator").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()

    async def sees(self, text: str) -> None:
        """Wait until a text is there."""
        await self.page.get_by_text(text).first.wait_for()

    async def serious(self) -> list[str]:
        """What axe finds serious or critical, in words."""
        await self.page.evaluate(AXE.read_text())
        found = await self.page.evaluate("axe.run(document)")
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    async def too_wide(self) -> bool:
        """Whether the page has to be scrolled sideways."""
        return bool(
            await self.page.evaluate(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
        )

    async def look(self, scheme: str, size: dict[str, int]) -> None:
        """Change the colour scheme and the window's size."""
        await self.page.emulate_media(color_scheme=scheme)
        await self.page.set_viewport_size(size)


@asynccontextmanager
async def viewer(url: str, limit_s: float = 60.0) -> AsyncIterator[Viewer]:
    """A new browser; at the end, nothing may have been wrong in it."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        context = await browser.new_context(ignore_https_errors=True, viewport=DESK)
        page: Page = await context.new_page()
        page.set_default_timeout(limit_s * 1000)
        made = Viewer(page, url)
        page.on("pageerror", lambda error: made.faults.append(str(error)))
        page.on(
            "console",
            lambda said: (
                made.faults.append(said.text) if "Content Security Policy" in said.text else None
            ),
        )
        page.on("request", lambda asked: made.hosts.add(asked.url.split("/")[2]))
        try:
            yield made
        finally:
            await browser.close()
        assert not made.faults, made.faults
        assert made.hosts <= {url.split("/")[2]}, "nothing from another host"


def screenshots(folder: str, tmp_path: Path) -> Path:
    """Where pictures of the page go: a folder of the checkout, or one that is thrown away."""
    into = ROOT / folder if folder else tmp_path
    into.mkdir(parents=True, exist_ok=True)
    return into
