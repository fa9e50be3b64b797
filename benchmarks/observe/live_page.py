"""The live page with 100 devices on loopback: when its table is painted, how far it lags behind.

Every device sends a frame a second to a service whose engine answers at once. The clock of the page
is the service's. A lag counts from the moment in which the service accepted a frame to the paint
after its row changed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.edge.figures import at_most, beside, not_run, percentile
from benchmarks.serve.device import Device
from benchmarks.serve.identities import Identities
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool, pool
from benchmarks.serve.site import Site, stubbed

DEVICES = 100
FOLLOWED_S, QUICK_S = 60.0, 10.0
PAINT, LAG = "live page, 100 devices: table painted", "live page, 100 devices: lag of updates, p99"
_OPENINGS = 5
_TOLD = """
addEventListener("DOMContentLoaded", () => {
  const told = (globalThis.told = { table_ms: 0, lags_s: [] });
  const painted = (then) => requestAnimationFrame(() => setTimeout(then));
  new MutationObserver((changes) => {
    if (!told.table_ms && document.querySelectorAll("tr[data-at]").length >= DEVICES)
      painted(() => { told.table_ms ||= performance.now(); });
    for (const { type, target } of changes) {
      if (type !== "attributes") continue;
      const at = Number(target.dataset.at);
      painted(() => told.lags_s.push(Date.now() / 1000 - at));
    }
  }).observe(document.body, { subtree: true, childList: true, attributeFilter: ["data-at"] });
});
""".replace("DEVICES", str(DEVICES))


def chromium() -> str:
    """Where Chromium is; empty if it is not there, or Playwright is not."""
    try:
        import playwright.async_api  # noqa: F401
    except ImportError:
        return ""
    return shutil.which("chromium") or shutil.which("chromium-browser") or ""


def live_page(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns `figures`, and the measurements behind them.

    Args:
        folder: for files of the run.
        quick: follow it for a few seconds alone.
    """
    if not chromium():
        why = "no Chromium or no Playwright (make browser)"
        return {"figures": [not_run(name, "≤ 1", "s", why) for name in (PAINT, LAG)]}
    frames = pool(command.REPORTS / "serve")  # the same frames as for the service
    shutil.rmtree(folder / "service", ignore_errors=True)
    identities = Identities.make(folder / "service", DEVICES)
    with stubbed(folder, identities) as place:
        found = asyncio.run(_look(place, frames, QUICK_S if quick else FOLLOWED_S))
    lags = found["lags_s"]
    found["figures"] = [
        at_most(PAINT, percentile(found["table_s"], 0.5), 1.0, "s"),
        beside("live page, 100 devices: first contentful paint", found["first_paint_s"], "s"),
        at_most(LAG, percentile(lags, 0.99), 1.0, "s"),
        beside("live page, 100 devices: lag of updates, median", percentile(lags, 0.5), "s"),
    ]
    found["updates"], found["lags_s"] = len(lags), []
    return found


async def _look(place: Site, frames: Pool, follow_s: float) -> dict[str, Any]:
    async with fleet(DEVICES, place.dial, frames) as devices:
        sending = asyncio.create_task(_send(devices, len(frames.items)))
        try:
            return await _in_browser(place, follow_s)
        finally:
            sending.cancel()


async def _send(devices: Sequence[Device], items: int) -> None:
    """A frame a second from each device, one device after another."""
    began, sent = time.monotonic(), 0
    while True:
        device = devices[sent % len(devices)]
        await device.send(device.prepare(sent % items))
        device.forget()
        sent += 1
        await asyncio.sleep(max(0.0, began + sent / len(devices) - time.monotonic()))


async def _in_browser(place: Site, follow_s: float) -> dict[str, Any]:
    from playwright.async_api import async_playwright

    url = f"https://127.0.0.1:{place.api_port}/live"
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = await browser.new_context(ignore_https_errors=True)
        await context.add_init_script(_TOLD)
        page = await context.new_page()
        await page.goto(url)
        await page.get_by_label("Key of an application or operator").fill(place.identities.operator)
        await page.get_by_role("button", name="Sign in").click()
        tables: list[float] = []
        for _ in range(_OPENINGS):
            await page.goto(url)
            await page.reload()
            await page.wait_for_function("() => told.table_ms > 0")
            tables.append(await page.evaluate("told.table_ms") / 1e3)
        first_ms = await page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        await page.evaluate("told.lags_s.length = 0")
        await asyncio.sleep(follow_s)
        lags = await page.evaluate("told.lags_s")
        await browser.close()
    return {"table_s": tables, "first_paint_s": first_ms / 1e3, "lags_s": lags}


def _bench(given: argparse.Namespace) -> int:
    found = live_page(given.out / "observe" / "live_page", given.quick)
    for figure in found["figures"]:
        print(f"{figure['name']}: {figure['value']} {figure['unit']} ({figure['target']})")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: measures this row alone."""
    parser = command.parser("observe.live_page", __doc__)
    parser.add_argument("--out", type=Path, default=command.REPORTS, help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="follow it for seconds alone")
    return command.run(parser, _bench, argv)


if __name__ == "__main__":
    sys.exit(main())
