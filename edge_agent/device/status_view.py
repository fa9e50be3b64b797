"""Shows how an agent is on a terminal, again every second."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

from protos.process.console import printable


def lines(found: Mapping[str, Any], width: int) -> list[str]:
    """An agent's status as lines of text.

    Args:
        found: from `Upkeep.snapshot`.
        width: columns of the terminal.
    """
    spool, power = found["spool"], found["power"]
    shown = [
        _row("agent", f"{found['state']}{_why(found)}, process {found['pid']}, "
                      f"{found['version']}, up {duration(found['uptime_s'])}"),
        _row("newest scene", _ago(found["newest_scene_age_s"])),
        _row("link", "; ".join(_link(found))),
        _row("on the disk", f"{spool['frames'] or 0:.0f} frames, {spool['bytes'] or 0:,.0f} bytes"
                            + _oldest(spool)),
        _row("questions", f"{found['answers'] or 0:.0f} answered, {found['held'] or 0:.0f} held, "
                          f"{sum(found['fallbacks'].values()):.0f} fallbacks, "
                          f"{sum(found['refusals'].values()):.0f} without an answer"),
        _row("machine", ", ".join(_machine(power, found))),
        _row("certificate", _certificate(found["certificate_ends"])),
    ]  # fmt: skip
    if sum(found["shadows"].values()):
        shown.append(_row("shadowing", _shadowing(found)))
    if found.get("update"):
        shown.append(_row("update", update(found["update"])))
    if found.get("service_settings"):
        shown.append(_row("settings", service_settings(found["service_settings"])))
    for name, camera in sorted(found["cameras"].items()):
        shown.append(
            _row(
                "camera",
                f"{name}: {camera['state']}, newest picture {_ago(camera['newest_age_s'])}, "
                f"{camera['frames']:.0f} pictures, {camera['restarts']:.0f} restarts",
            )
        )
    for row in found["last_errors"]:
        said = " ".join(f"{key}={row[key]}" for key in row if key not in _NOT_SHOWN)
        shown.append(_row("log", f"{row.get('timestamp', '')} {row.get('event')} {said}"))
    return [printable(line)[:width] for line in shown]


_NOT_SHOWN = ("timestamp", "event", "level", "component")


def screen(found: Mapping[str, Any]) -> str:
    """The status in place of what the terminal shows."""
    size = shutil.get_terminal_size()
    text = "\n".join(line + "\x1b[K" for line in lines(found, size.columns)[: size.lines - 1])
    return f"\x1b[H{text}\n\x1b[J"


def duration(seconds: float) -> str:
    """Seconds in words: the two largest units."""
    whole = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if whole >= size or (name == "s" and not parts):
            parts.append(f"{whole // size} {name}")
            whole %= size
    return " ".join(parts[:2])


def _row(name: str, text: str) -> str:
    return f"{name:<13} {text}"


def _why(found: Mapping[str, Any]) -> str:
    return f": {found['stuck']} does not move" if found["stuck"] else ""


def _ago(seconds: float | None) -> str:
    return "none yet" if seconds is None else f"{duration(seconds)} ago"


def _link(found: Mapping[str, Any]) -> list[str]:
    parts = ["connected" if found["connected"] else "no connection"]
    if found["plain_text"]:
        parts.append("plain text")
    if found["point"]:
        parts.append(f"point {found['point']}")
    if found.get("point_fallback"):
        parts.append("THE BUNDLE LACKS THE SETTINGS' POINT")
    if found["round_trip_s"]:
        parts.append(f"round trip {1000 * found['round_trip_s']:.0f} ms")
    if found["uplink_bytes_per_s"]:
        parts.append(f"{found['uplink_bytes_per_s']:,.0f} bytes/s")
    return [*parts, f"{found['in_flight'] or 0:.0f} in flight"]


def _oldest(spool: Mapping[str, Any]) -> str:
    dropped = sum(spool["dropped"].values())
    text = f", oldest {_ago(spool['oldest_age_s'])}" if spool["frames"] else ""
    return text + (f"; {dropped:.0f} dropped" if dropped else "")


def _shadowing(found: Mapping[str, Any]) -> str:
    """How the pictures ended that chance chose for the service to measure."""
    counts = {name: count for name, count in found["shadows"].items() if count}
    measured = counts.pop("measured", 0)
    text = f"{measured:.0f} pictures measured, {found['shadow_bytes'] or 0:,.0f} bytes"
    others = [f"{count:.0f} {name.replace('_', ' ')}" for name, count in sorted(counts.items())]
    return "; ".join([text, *others])


def _machine(power: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    parts = [f"model on {found['model_device'] or 'unknown'}"]
    if found["device_fallback"]:
        parts.append("SLOWER THAN THIS MACHINE CAN")
    if power["watts"] is not None:
        parts.append(f"{power['watts']:.1f} W")
    if power["celsius"] is not None:
        parts.append(f"{power['celsius']:.0f} °C")
    if power["mode"]:
        parts.append(f"mode {power['mode']}")
    if power["throttled"]:
        parts.append("THROTTLED")
    if found["memory_bytes"]:
        parts.append(f"{found['memory_bytes'] / (1 << 20):,.0f} MiB")
    return parts


def update(found: Mapping[str, Any]) -> str:
    """An update that is under way, in words.

    Args:
        found: from `FromService.shown`.
    """
    text = f"number {found['number']} ({found['version']}): {found['state']}"
    if found["bytes"] is not None:
        text += f", {found['bytes'] / 1e6:.1f} of {found['size_bytes'] / 1e6:.1f} MB"
    return text + (f" ({found['cause']})" if found["cause"] else "")


def service_settings(found: Mapping[str, Any]) -> str:
    """The settings that the service set, in words.

    Args:
        found: from `RemoteSettings.stand`.
    """
    trial, back = found["on_trial"], found["taken_back"]
    parts = [f"revision {found['revision']} of the service" if found["revision"] else "its own"]
    if trial:
        parts.append(
            f"revision {trial['revision']} on trial, start {trial['starts']} of "
            f"{trial['most_starts']}"
        )
    if found["taken"]:
        parts.append(f"in use: {', '.join(found['taken'])}")
    parts += [f"refused: {cause}" for cause in found["refused"].values()]
    if back:
        parts.append(f"revision {back['revision']} TAKEN BACK: {back['cause']}")
    return "; ".join(parts)


def _certificate(ends: float | None) -> str:
    if ends is None:
        return "none: this device is not enrolled"
    return f"ends {time.strftime('%Y-%m-%d', time.gmtime(min(ends, 4e9)))}"
