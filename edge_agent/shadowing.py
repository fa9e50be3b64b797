"""Puts shadowing together from the settings, where this device's owner allows it."""

from __future__ import annotations

from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.settings import Settings
from edge_agent.uplink.day_bytes import DayBytes
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.shadows import Shadows
from protos.process.logs import Logger

_FILE = "shadow-bytes.json"


def shadows_for(
    chosen: Settings, state: Path | None, metrics: Metrics, log: Logger
) -> Shadows | None:
    """What sends pictures of a share of frames; None if this device does not allow it.

    Args:
        chosen: the settings.
        state: this device's directory, if there is one.
        metrics: what is counted.
        log: structured logger.
    """
    if not chosen.allow_shadow:
        return None
    codec = PictureCodec(chosen.picture_codec, chosen.picture_quality, chosen.picture_px)
    budget = DayBytes(chosen.shadow_day_bytes, None if state is None else state / _FILE)
    log.info("shadows_allowed", share=chosen.shadow_share, day_bytes=chosen.shadow_day_bytes)
    memory_bytes = chosen.shadow_memory_mib << 20
    return Shadows(chosen.shadow_share, codec, budget, memory_bytes, metrics, log)


def follow(uplink: Uplink, shadows: Shadows) -> None:
    """Send pictures by an uplink's stream, in the gaps between its frames."""
    shadows.busy = lambda: uplink.busy
    shadows.stream = lambda: uplink.connection.stream
    shadows.bytes_per_s = lambda: uplink.controller.link[1]
