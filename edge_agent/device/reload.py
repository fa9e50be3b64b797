"""Reads the settings again at SIGHUP, and changes what can change while the agent runs.

The log names what changed and what needs a restart. Masks are only added: a mask that is gone from
the settings stays painted until a restart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_agent.agent import Agent
from edge_agent.cameras.camera import Camera
from edge_agent.cameras.mask import Mask
from edge_agent.cameras.triggers import Trigger, rules_of
from edge_agent.device.notify import Notify
from edge_agent.plan import AUTO, unknown_point
from edge_agent.settings import Settings
from edge_agent.sources import endless
from edge_agent.sources.turns import Turns
from protos.errors import BridgeError, ConfigError
from protos.process import logs
from protos.process.logs import Logger

CHANGEABLE = (
    "questions",
    "trigger",
    "mask",
    "hold_every_s",
    "max_new_tokens",
    "priority",
    "guard_limit",
    "cascade_limit",
    "distortion_limit",
    "latency_objective_ms",
    "highest_point",
    "log_level",
)
"""Settings that may change while the agent runs."""


@dataclass
class Reload:
    """Follows the settings of one agent.

    Attributes:
        now: the settings in use.
        again: reads them again, from all their sources.
        agent: the agent.
        notify: tells systemd.
        log: structured logger.
    """

    now: Settings
    again: Callable[[], Settings]
    agent: Agent
    notify: Notify
    log: Logger

    def read(self) -> None:
        """Read the settings and take over what can change; call it on the event loop."""
        self.log.info("reloading")
        self.notify.reloading()
        try:
            self.take(self.again())
        except BridgeError as error:
            self.log.error("settings not taken over", cause=error.message)
        finally:
            self.notify.ready()

    def take(self, fresh: Settings) -> None:
        """Take over what can change; the log names the rest.

        Raises:
            BridgeError: a mask or a trigger cannot be used, the service has no such point, or no
                question is left; nothing was changed.
        """
        differ = {
            name
            for name in Settings.model_fields
            if getattr(fresh, name) != getattr(self.now, name)
        }
        cameras = self._cameras()
        rules = self.require_usable(fresh)
        live = {camera.name: camera for camera in cameras if camera.live}
        added = [mask for mask in fresh.mask if mask not in self.now.mask and _named(mask) in live]
        masks = {name: [*one.masks, *_regions(added, name)] for name, one in live.items()}
        for texts in masks.values():
            Mask.of(texts)  # raises before anything changes
        changed = {name: getattr(fresh, name) for name in sorted(differ.intersection(CHANGEABLE))}
        changed.pop("mask", None)
        if added:
            changed["mask"] = (*self.now.mask, *added)
        self.now = self.now.model_copy(update=changed)
        restart = differ.difference(changed)
        if set(self.now.mask) != set(fresh.mask):
            restart.add("mask")
        for camera in cameras:
            camera.change(masks.get(camera.name, camera.masks), rules[camera.name])
        self._tell_the_agent()
        if "log_level" in changed:
            logs.set_level(fresh.log_level)
            self.log.warning("log level changed", least=fresh.log_level)
        if differ:
            self.log.warning(
                "settings reloaded", changed=sorted(changed), need_restart=sorted(restart)
            )

    def require_usable(self, fresh: Settings) -> Mapping[str, list[Trigger]]:
        """Refuse settings that would end the run at the next picture or start.

        Returns:
            Each camera's triggers.

        Raises:
            ConfigError: a trigger is none or names no camera, the service has no such point, or no
                question is left.
        """
        session = self.agent.uplink.connection.latest
        if session is not None and fresh.highest_point != self.now.highest_point:
            unknown = unknown_point(AUTO, fresh.highest_point, session.points)
            if unknown is not None:
                raise unknown
        if self.now.questions and not fresh.questions and endless(self.agent.source):
            raise ConfigError("questions: none is left, and cameras bring none of their own")
        return rules_of(fresh.trigger, [camera.name for camera in self._cameras()])

    def _cameras(self) -> list[Camera]:
        source = self.agent.source
        members = source.members if isinstance(source, Turns) else ()
        return [member for member in members if isinstance(member, Camera)]

    def _tell_the_agent(self) -> None:
        agent, now = self.agent, self.now
        agent.questions = now.questions
        if agent.hold_every_s is not None:
            agent.hold_every_s = now.hold_every_s
        agent.plan = dataclasses.replace(
            agent.plan,
            highest_point=now.highest_point,
            max_new_tokens=now.max_new_tokens,
            priority=now.priority_number,
            guard=dataclasses.replace(agent.plan.guard, limit=now.guard_limit),
        )
        if agent.cascade is not None:
            agent.cascade.limit = now.cascade_limit
        if agent.controller is not None:
            objective_ms = now.latency_objective_ms
            agent.controller.latency_s = None if objective_ms is None else objective_ms / 1000
            agent.controller.distortion = now.distortion_limit


def _named(mask: str) -> str:
    """The camera that a mask is for."""
    return mask.partition("=")[0].strip()


def _regions(masks: list[str], name: str) -> list[str]:
    """A camera's regions, as `Camera` takes them."""
    return [mask.partition("=")[2].strip() for mask in masks if _named(mask) == name]
