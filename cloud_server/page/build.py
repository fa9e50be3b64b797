"""Builds the live page from the parts of the front end."""

from __future__ import annotations

from fastapi import APIRouter

from cloud_server.api.held import Held
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.page import files, routes, signing_in
from cloud_server.page.feed import Feed
from cloud_server.page.sight import Sight
from cloud_server.page.watch import Watch
from cloud_server.page_settings import PageSettings
from protos.process.logs import Logger


def page_routers(
    settings: PageSettings,
    bridge: Bridge,
    scenes: HeldScenes,
    held: Held,
    access: Access,
    log: Logger,
) -> list[APIRouter]:
    """The routes of the live page; from now on the front end remembers what it shows.

    Args:
        settings: its bounds.
        bridge: says how requests end.
        scenes: the scenes held.
        held: looks scenes up for callers.
        access: who callers are.
        log: a bound logger.
    """
    watch = Watch(settings, scenes, log)
    scenes.changed(watch.scene)
    bridge.teller.ends.append(watch.ended)
    if access.live is not None:
        access.live.on_removal(watch.forget)
    bridge.fleet.changes.append(watch.present)
    sight = Sight(
        watch,
        held,
        access.live,
        lambda device_id: bridge.fleet.of(device_id) is not None,
        bridge.shadows.pictures,
        settings.page_silent_s,
    )
    feed = Feed(sight, lambda: bridge.under_way.draining)
    return [
        files.router(),
        signing_in.router(access, sight, settings.page_session_h),
        routes.router(sight, feed),
    ]
