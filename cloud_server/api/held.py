"""The scenes that a caller may see, and the risk of answers about them."""

from __future__ import annotations

from cloud_server.api.subject import LATEST, SceneName
from cloud_server.frontend.ask import Application
from cloud_server.frontend.scenes import HeldScene, HeldScenes
from cloud_server.identity.caller import Caller
from protos.errors import RiskError, UnknownSceneError


class Held:
    """Looks scenes up for callers.

    Args:
        scenes: all scenes held.
    """

    def __init__(self, scenes: HeldScenes) -> None:
        self._scenes = scenes

    def find(self, caller: Caller, name: SceneName) -> HeldScene:
        """Find the scene that a caller names.

        Raises:
            UnknownSceneError: it is not held, or this caller may not see it; the error is the same.
        """
        tenant, found = name.tenant or caller.tenant, None
        if caller.sees(tenant, name.device):
            if name.at == LATEST:
                found = self._scenes.latest(tenant, name.device)
            else:
                found = self._scenes.get(tenant, name.device, name.at)
        if found is None:
            raise UnknownSceneError(
                f"no scene '{name.at}' of a device '{name.device}' is held here: GET /v1/scenes "
                "lists those that are"
            )
        return found

    def by_id(self, caller: Caller, tenant: str, scene_id: str) -> HeldScene:
        """A scene by its id alone.

        Raises:
            UnknownSceneError: as `find`.
        """
        for scene in self.of(caller, tenant):
            if scene.scene_id == scene_id:
                return scene
        raise UnknownSceneError(
            f"no scene '{scene_id}' is held here: GET /v1/scenes lists those that are"
        )

    def of(self, caller: Caller, tenant: str, device: str | None = None) -> list[HeldScene]:
        """The scenes of a tenant, or of one of its devices, that a caller may see, newest first."""
        found = self._scenes.of(tenant, device)
        return [scene for scene in found if caller.sees(scene.tenant, scene.device)]

    def latest(self, tenant: str, device: str) -> HeldScene | None:
        """A device's newest scene."""
        return self._scenes.latest(tenant, device)


def asked_about(scene: HeldScene) -> Application:
    """The application's side of a question about a scene."""
    return Application(bytes.fromhex(scene.session_id), scene.bundle_id, scene.risk_model)


def require_risk(scene: HeldScene, risk: float | None, most: float | None) -> None:
    """Refuse a question whose answer's risk is above the caller's bound.

    Args:
        scene: the scene that it is about.
        risk: the answer's risk.
        most: the caller's bound; None for none.

    Raises:
        RiskError: the risk is higher, or not known.
    """
    if most is None or most >= 1.0:
        return
    if risk is None:
        raise RiskError(
            f"the risk of an answer about this scene is not known, because {scene.risk_unknown}: "
            "leave out max_risk"
        )
    if risk > most:
        raise RiskError(
            f"the risk of an answer about this scene is {risk:.3g}, at most {most:g} is accepted"
        )
