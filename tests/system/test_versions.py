"""Agents and services of both versions of layouts understand each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_server.engine.jobs import Offer
from cloud_server.frontend.sessions import Sessions
from edge_agent.metrics import Metrics
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.negotiate import negotiate
from protos.digest import session_constants
from protos.errors import IncompatibleLayoutError
from protos.layout import KVLayout
from protos.points import points_to_json
from protos.quantize import QUANTIZERS
from tests.cloud_server import stage
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import LAYOUT, make_encoder

OLD = stage.SOURCE
NEW = replace(OLD, settings_digest="5" * 64)
CHANGED = replace(OLD, settings_digest="6" * 64)


def offer(source: KVLayout) -> Offer:
    encoder = stage.encoder(source)
    return Offer(
        bundle_id=f"for {source.settings_digest[:1] or 'version 1'}",
        bundle_version="1",
        bundle_digest=source.fingerprint,
        encoder_digest=encoder.digest,
        source_fingerprint=source.fingerprint,
        source_layout_json=source.to_json(),
        target_layout_json="{}",
        operating_points_json=points_to_json(encoder.points),
        default_point="fp8",
        ladder=["fp8"],
        encoder=encoder.to_bytes(),
    )


def served(*sources: KVLayout) -> Sessions:
    sessions = Sessions(8, 8, lambda _: None)
    sessions.offer([offer(source) for source in sources])
    return sessions


@pytest.mark.parametrize(
    ("bundles", "agent", "meant"),
    [
        ((OLD,), OLD, OLD),  # as ever
        ((OLD,), NEW, OLD),  # a new agent, an old bundle
        ((NEW,), NEW, NEW),
        ((OLD, NEW), NEW, NEW),
        ((OLD, NEW), OLD, OLD),
        ((OLD, NEW), CHANGED, OLD),
    ],
)
def test_a_session_is_on_the_newest_bundle_that_fits_the_agents_model(
    bundles: tuple[KVLayout, ...], agent: KVLayout, meant: KVLayout
) -> None:
    session = served(*bundles).open(agent, sorted(QUANTIZERS), "", "peer")
    assert session.offer.source_fingerprint == meant.fingerprint
    constants = session_constants(session.id, meant.fingerprint, session.offer.bundle_digest)
    assert session.constants == constants


def test_a_model_with_another_setting_is_refused_a_bundle_of_version_two() -> None:
    with pytest.raises(IncompatibleLayoutError, match="another configuration, template or setting"):
        served(NEW).open(CHANGED, sorted(QUANTIZERS), "", "peer")


def test_an_old_agent_is_told_to_be_updated_for_a_bundle_of_version_two() -> None:
    with pytest.raises(IncompatibleLayoutError, match="update the agent"):
        served(NEW).open(OLD, sorted(QUANTIZERS), "", "peer")


def test_a_new_agent_gets_on_with_an_old_service(tmp_path: Path) -> None:
    """One that reads the layout alone, as this fake does, and knows no field of settings."""

    async def run() -> None:
        bridge = FakeBridge(make_encoder())
        await bridge.start()
        try:
            async with bridge.dial() as channel:
                new = replace(LAYOUT, settings_digest="5" * 64)
                session = await negotiate(channel, new, EncoderStore(tmp_path), Metrics())
            assert session.encoder.source_fingerprint == LAYOUT.fingerprint
            assert session.constants == bridge.sessions[session.session_id]
        finally:
            await bridge.stop()

    asyncio.run(run())
