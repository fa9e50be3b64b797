"""The scenes held: the bytes of each accepted frame, from which any engine can rebuild its scene.

A delta frame needs the frames that it builds on, back to its key frame. This chain is kept and
dropped as a whole. Memory is bounded: the largest device of the largest tenant loses its least
recently used chain first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from cloud_server.crowd import Crowd
from cloud_server.engine.jobs import Job
from cloud_server.engine.store import Name
from cloud_server.frontend.risk import risk_of
from projector.codec.risk import RiskModel
from protos.neuralbridge.v1 import bridge_pb2 as pb

MOST_LINKS = 256
"""Longest chain, in frames. A scene of a longer one cannot be rebuilt in another engine."""
ENTRY_BYTES = 3072
"""Memory of one scene beside its frame, with its share of tables, in bytes; measured."""
Device = tuple[str, str]
"""Tenant and device."""


class HeldScene(Struct, frozen=True, eq=False):
    """A scene that is held.

    Attributes:
        session_id: session that sent it, hex.
        scene_id: unguessable.
        bundle: digest of the bundle that decodes the frame.
        point: name of the operating point.
        kept: which tokens of the grid were sent, one byte (0 or 1) a token; empty for a picture.
        grid: rows and columns of the token map.
        delta: whether the frame holds what changed since an earlier one.
        payload_bytes: size of this frame's payload; for a delta frame, of the change.
        moments_score: score of the service's guard, measured by the engine.
        far: how far each token is from usual (`Accepted.far`); empty if the engine did not say.
        risk_model: the service's guard in the bundle, if it has one.
        fallback: why the device sent a picture; empty without a cause.
        warnings: names of reasons not to rely on answers.
        accepted_at: when the engine accepted the frame, seconds since 1970.
        rebuildable: whether another engine can rebuild it from the bytes held here.
    """

    tenant: str
    device: str
    session_id: str
    frame_number: int
    scene_id: str
    bundle: str
    bundle_id: str
    bundle_version: str
    point: str
    kept: bytes
    grid: tuple[int, int]
    delta: bool
    payload_bytes: int
    distortion: pb.DistortionReport
    moments_score: float
    risk_model: RiskModel | None
    fallback: str
    warnings: tuple[str, ...]
    accepted_at: float
    rebuildable: bool = True
    far: bytes = b""

    @property
    def risk(self) -> float | None:
        """Risk of an answer to an average question, 0..1; None if unknown."""
        return self.risk_of("")

    def risk_of(self, question: str) -> float | None:
        """Risk of an answer to a question, 0..1; None if unknown."""
        return risk_of(self.risk_model, self.distortion, self.moments_score, question)

    @property
    def risk_unknown(self) -> str:
        """Why the risk is not known; empty if it is."""
        if self.risk is not None:
            return ""
        if self.risk_model is None:
            return "its bundle has no guard for the service (projector guard adds one)"
        return f"the service's guard is not calibrated for operating point '{self.point}'"

    @property
    def name(self) -> Name:
        """Its name in engines: session and frame number."""
        return self.session_id, self.frame_number


class _Chain(Struct, eq=False):
    """A key frame and the delta frames that build on it.

    Attributes:
        held: names of its scenes that are held.
        frames: names of all its frames, which later ones may build on.
        size: bytes of all its frames.
    """

    device: Device
    held: set[Name] = set()
    frames: set[Name] = set()
    size: int = 0


class _Link(Struct, frozen=True, eq=False):
    """One frame of a chain.

    Attributes:
        job: the job that makes its scene, without a question.
        base: the frame that it builds on; None for a key frame, or if that frame is not kept.
        depth: frames before it, back to the key frame.
        kept: tokens known after this frame, one byte each.
        whole: whether the chain reaches back to a key frame.
    """

    job: Job
    base: _Link | None
    depth: int
    kept: bytes
    whole: bool
    chain: _Chain


class HeldScenes:
    """The scenes held, by tenant and device.

    Args:
        most_bytes: bound on their memory together.
        most_of: bound on the scenes of one device; 0 for no bound.
    """

    def __init__(self, most_bytes: int, most_of: Callable[[str, str], int]) -> None:
        self._most_bytes, self._most_of = most_bytes, most_of
        self._scenes: dict[Name, HeldScene] = {}
        self._links: dict[Name, _Link] = {}
        self._devices: dict[Device, OrderedDict[Name, None]] = {}  # in the order of acceptance
        self._crowd: Crowd[_Chain] = Crowd()
        self._told: list[Callable[[HeldScene], None]] = []
        self._gone: list[Callable[[Name, bool], object]] = []
        self._of_bundle: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def bytes(self) -> int:
        """Approximate memory of all scenes, in bytes."""
        return self._crowd.cost

    def bytes_of(self, tenant: str) -> int:
        """Approximate memory of a tenant's scenes, in bytes."""
        return self._crowd.size(tenant)

    def of_bundle(self, bundle: str) -> int:
        """Number of scenes of a bundle, by its digest."""
        return self._of_bundle[bundle]

    def changed(self, callback: Callable[[HeldScene], None]) -> None:
        """Call a function with each new scene."""
        self._told.append(callback)

    def gone(self, callback: Callable[[Name, bool], object]) -> None:
        """Call a function with the name of each scene that is no longer held.

        Its second argument says whether the frame is kept, because later frames may build on it. If
        so, the function is called once more when it no longer is.
        """
        self._gone.append(callback)

    # ------------------------------------------------------------------ look-up

    def latest(self, tenant: str, device: str) -> HeldScene | None:
        """A device's newest scene."""
        names = self._devices.get((tenant, device))
        return self._scenes[next(reversed(names))] if names else None

    def get(self, tenant: str, device: str, scene_id: str) -> HeldScene | None:
        """A device's scene by id."""
        for name in self._devices.get((tenant, device), ()):
            if self._scenes[name].scene_id == scene_id:
                return self._scenes[name]
        return None

    def keeps(self, name: Name) -> bool:
        """Whether a frame is kept: its scene is held, or one that builds on it."""
        return name in self._links

    def named(self, name: Name) -> HeldScene | None:
        """A scene by its name in engines."""
        return self._scenes.get(name)

    def of(self, tenant: str, device: str | None = None) -> list[HeldScene]:
        """The scenes of a tenant, or of one of its devices, the newest first."""
        devices = [(tenant, device)] if device is not None else list(self._devices)
        scenes = [
            self._scenes[name]
            for pair in devices
            if pair[0] == tenant
            for name in self._devices.get(pair, ())
        ]
        return sorted(scenes, key=lambda scene: scene.accepted_at, reverse=True)

    def owner(self, name: Name) -> str:
        """Id (hex) of the request that brought a scene; empty if it is not held."""
        return self._links[name].job.request_id if name in self._scenes else ""

    def frames(self, name: Name) -> list[Job]:
        """The jobs that rebuild a scene, in order; empty if it cannot be rebuilt.

        They have no question, and their ids are 0.
        """
        link = self._links.get(name)
        if link is None or not link.whole:
            return []
        self._crowd.touch(link.chain)
        jobs = [link.job]
        while link.base is not None:
            link = link.base
            jobs.append(link.job)
        return jobs[::-1]

    # ------------------------------------------------------------------ hold and drop

    def hold(self, scene: HeldScene, job: Job) -> None:
        """Hold the scene of a frame that an engine accepted.

        Args:
            scene: its `kept` covers this frame only; the base of a delta frame adds to it.
            job: the frame.
        """
        name = scene.name
        if name in self._scenes:
            if self._links[name].job.request_id == job.request_id:
                return  # an engine accepted the same frame again
            self._drop(name)
        link = self._links[name] = self._link(scene, job)
        chain = link.chain
        if link.base is not None or not link.whole:
            scene = replace(scene, kept=link.kept, rebuildable=link.whole)
        self._scenes[name] = scene
        names = self._devices.get(chain.device)
        if names is None:
            names = self._devices[chain.device] = OrderedDict()
        names[name] = None
        self._of_bundle[scene.bundle] += 1
        chain.held.add(name)
        chain.frames.add(name)
        chain.size += len(job.body) + 2 * len(job.kept) + ENTRY_BYTES
        if chain in self._crowd:
            self._crowd.remove(chain)
        self._crowd.add(chain.device, chain, chain.size)
        most = self._most_of(*chain.device)
        while most and len(names) > most:
            self._drop(next(iter(names)))
        while self._crowd.cost > self._most_bytes:
            for old in list(self._crowd.next_to_go().held):
                self._drop(old)
        if name in self._scenes:
            for told in self._told:
                told(scene)

    def forget(self, gone: Callable[[str, str], bool]) -> None:
        """Drop the scenes of devices that are gone.

        Args:
            gone: whether a device is, by tenant and name.
        """
        for device in [device for device in self._devices if gone(*device)]:
            for name in list(self._devices[device]):
                self._drop(name)

    def forget_bundle(self, bundle: str) -> None:
        """Drop the scenes of a bundle that is no longer served."""
        for name in [name for name, scene in self._scenes.items() if scene.bundle == bundle]:
            self._drop(name)

    def _link(self, scene: HeldScene, job: Job) -> _Link:
        plain = replace(job, id=0, question="", max_new_tokens=1)
        base = self._links.get((job.session, job.base))
        kept = job.kept if base is None else _both(base.kept, job.kept)
        if base is not None and base.whole and base.depth + 1 < MOST_LINKS:
            return _Link(plain, base, base.depth + 1, kept, True, base.chain)
        chain = _Chain((scene.tenant, scene.device))
        return _Link(plain, None, 0, kept, job.base < 0, chain)

    def _drop(self, name: Name) -> None:
        gone = self._scenes.pop(name, None)
        if gone is None:
            return
        self._of_bundle[gone.bundle] -= 1
        chain = self._links[name].chain
        names = self._devices[chain.device]
        del names[name]
        if not names:
            del self._devices[chain.device]
        chain.held.discard(name)
        if chain.held:
            for told in self._gone:
                told(name, True)
        else:
            self._crowd.remove(chain)
            for frame in chain.frames:
                if self._links[frame].chain is chain:  # else another frame has the number now
                    del self._links[frame]
                    for told in self._gone:
                        told(frame, False)


def _both(one: bytes, other: bytes) -> bytes:
    """Tokens known by either, one byte each."""
    if len(one) != len(other):
        return other
    return (int.from_bytes(one, "big") | int.from_bytes(other, "big")).to_bytes(len(one), "big")
