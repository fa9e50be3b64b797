"""The sources that the settings name, as one: named, masked, with triggers and fair turns."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from edge_agent.cameras.camera import Camera
from edge_agent.cameras.mask import Mask
from edge_agent.cameras.triggers import rules_of
from edge_agent.cameras.watch import Patience
from edge_agent.settings import Settings
from edge_agent.sources import Capture, Source
from edge_agent.sources.address import shown
from edge_agent.sources.folder import Folder
from edge_agent.sources.tries import Tries
from edge_agent.sources.turns import Finite, Member, Turns, named
from edge_agent.sources.watched import WatchedFolder
from projector.models.pictures import as_rgb
from protos.errors import BridgeError, ConfigError, MaskError
from protos.identity import NAME, NAME_RULE
from protos.process.nearest import nearest

_NAME_OPTION = re.compile(r"([?&])name=([^&]*)(&|$)")


def open_sources(
    chosen: Settings, open_source: Callable[[str], Source], memory: Path | None = None
) -> Source:
    """Open every source of the settings.

    A single folder or other finite source without a name comes as it is.

    Args:
        chosen: the settings.
        open_source: opens one address.
        memory: folder where watched folders remember which files were taken, and all folders which
            ended a start of the agent; None: they do not.

    Raises:
        ConfigError: two sources have one name, a mask or trigger is none or belongs to no source.
        MaskError: no camera can be opened because of its masks.
        SourceError: an address cannot be used.
    """
    tries = Tries(memory)
    found = [
        _open(address, place, chosen, open_source, tries)
        for place, address in enumerate(chosen.source, 1)
    ]
    for _, source in found:
        if isinstance(source, WatchedFolder) and memory is not None:
            source.remember(memory)
    cameras = [name for name, source in found if isinstance(source, Camera)]
    rules = rules_of(chosen.trigger, cameras)
    masks = _masks(chosen.mask, [name for name, _ in found if name])
    if len(found) == 1 and not found[0][0]:
        return found[0][1]
    members: list[Member] = []
    skipped: Counter[str] = Counter()
    broken: list[MaskError] = []
    patience = Patience(memory_bytes=chosen.camera_memory_mib << 20)
    for name, source in found:
        texts = masks.get(name, ())
        try:
            mask = Mask.of(texts)
        except MaskError as error:
            broken.append(MaskError(f"camera {name}: {error}"))
            mask = Mask()
        if isinstance(source, Camera):
            members.append(Camera(source.address, name, texts, rules[name], patience))
        elif broken and broken[-1].message.startswith(f"camera {name}:"):
            raise broken[-1]
        elif isinstance(source, WatchedFolder):
            source.change = _Painted(name, mask)
            members.append(source)
        else:
            skipped.update(getattr(source, "skipped", {}))
            members.append(Finite(source, _Painted(name, mask)))
    if len(broken) == len(members):
        raise broken[0]
    return Turns(members, skipped)


@dataclasses.dataclass(frozen=True)
class _Painted:
    """Names a finite source's captures and paints its masks as they enter."""

    name: str
    mask: Mask

    def __call__(self, capture: Capture) -> Capture:
        """The capture as the agent may see it."""
        if capture.picture is not None and self.mask:
            try:
                pixels = np.asarray(as_rgb(capture.picture))
            except BridgeError as error:
                return dataclasses.replace(named(capture, self.name), picture=None, error=error)
            painted = Image.fromarray(self.mask.paint(pixels))
            capture = dataclasses.replace(capture, picture=painted)
        return named(capture, self.name) if self.name else capture


def _open(
    address: str, place: int, chosen: Settings, open_source: Callable[[str], Source], tries: Tries
) -> tuple[str, Source]:
    """A source and its name; a camera without one is numbered."""
    name, address = _named(address)
    source = open_source(address)
    if isinstance(source, Folder):  # a folder decodes no larger pictures than the setting allows
        source = dataclasses.replace(source, max_pixels=chosen.max_picture_pixels, tries=tries)
    if isinstance(source, WatchedFolder):
        source.max_pixels, source.tries = chosen.max_picture_pixels, tries
    if not name and (isinstance(source, Camera) or len(chosen.source) > 1):
        name = f"camera{place}"
    return name, source


def _named(address: str) -> tuple[str, str]:
    """Take `?name=…` out of an address, whatever its scheme."""
    found = _NAME_OPTION.search(address)
    if found is None or "://" not in address:
        return "", address
    if not NAME.fullmatch(found[2]):
        raise ConfigError(f"source {shown(address)!r}: {NAME_RULE}")
    head, tail = address[: found.start()], address[found.end() :]
    return found[2], head + (found[1] + tail if tail else "")


def _masks(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The masks of each source by its name.

    Raises:
        ConfigError: a mask names no source, or two sources have one name.
    """
    for name, number in Counter(names).items():
        if number > 1:
            raise ConfigError(f"{number} sources are named {name!r}: give each its own ?name=")
    masks: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, region = text.partition("=")
        name = name.strip()
        if not equals or not region.strip():
            raise ConfigError(f"mask {text!r}: write CAMERA=POLYGON or CAMERA=FILE.png")
        if name not in names:
            hint = nearest(name, names) or f"; names: {', '.join(names) or 'none'}"
            raise ConfigError(f"mask {text!r}: no source is named {name!r}{hint}")
        masks[name] = (*masks.get(name, ()), region.strip())
    return masks
