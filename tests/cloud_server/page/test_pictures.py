"""Shadowed pictures on the live page: who may see them, and of which request."""

from __future__ import annotations

import pytest
import structlog

from cloud_server.api.held import Held
from cloud_server.frontend.attend.fleet import Present
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.frontend.shadowing.pictures import ShadowPicture, ShadowPictures
from cloud_server.identity.caller import Caller
from cloud_server.page.sight import Sight
from cloud_server.page.watch import Watch
from cloud_server.page_settings import PageSettings
from protos.errors import ForbiddenError, MissingError
from tests.cloud_server.page.test_timeline import seen

FILE = b"\x89PNG and so on"


def caller(tenant: str, *scopes: str, devices: frozenset[str] | None = None) -> Caller:
    return Caller("application", tenant, "anna", frozenset(scopes), devices)


def test_a_picture_is_shown_if_it_was_shadowed_and_its_tenant_lets_viewers_see_it() -> None:
    scenes = HeldScenes(1 << 20, lambda *_: 0)
    watch = Watch(PageSettings(), scenes, structlog.get_logger())
    pictures = ShadowPictures(1 << 20, {"acme"})
    sight = Sight(watch, Held(scenes), None, lambda _: False, pictures, 60.0)
    for tenant in ("acme", "globex"):
        watch.present(Present(tenant, "gate-3", "1"))
        for number in (5, 6):
            watch.requests.add(seen(number, tenant=tenant))
    ids = {number: f"{number:032x}" for number in (5, 6)}
    anna = caller("acme", "read")
    assert not sight.request(anna, None, "gate-3", ids[5]).has_picture
    pictures.keep(ShadowPicture("acme", "gate-3", "", 5, FILE, 1.0))
    pictures.keep(ShadowPicture("globex", "gate-3", "", 6, FILE, 1.0))  # it does not allow it
    assert sight.request(anna, None, "gate-3", ids[5]).has_picture
    assert sight.picture(anna, None, "gate-3", ids[5]) == FILE
    refused = (
        (anna, None, ids[6]),  # another request of the same device
        (anna, "globex", ids[5]),  # another tenant's device
        (caller("globex", "read"), None, ids[5]),  # the same names in another tenant
        (caller("globex", "read"), None, ids[6]),
        (caller("acme", "read", devices=frozenset({"gate-4"})), None, ids[5]),
    )
    for who, tenant, id in refused:
        with pytest.raises(MissingError):
            sight.picture(who, tenant, "gate-3", id)
    with pytest.raises(ForbiddenError):
        sight.picture(caller("acme", "ask"), None, "gate-3", ids[5])
