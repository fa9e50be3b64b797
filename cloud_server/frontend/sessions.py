"""The sessions held: two bounded sets, those that brought a good frame and those that have not yet.

A flood of new sessions cannot push out those that work. When a set is full, the peer that holds
most of it loses its longest unused session.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cloud_server.crowd import Crowd
from cloud_server.engine.jobs import Offer
from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.answers import Owner
from cloud_server.frontend.terms import Terms, terms_of
from cloud_server.frontend.versions.offers import Offered, choices_of
from cloud_server.identity.caller import ANYONE, Caller
from projector.codec.risk import RiskModel
from protos.calls import SESSION_METADATA_KEY
from protos.digest import SESSION_ID_BYTES, session_constants, verify
from protos.errors import (
    BridgeError,
    BundleVersionError,
    EngineUnavailableError,
    FrameCorruptError,
    IncompatibleLayoutError,
    NoFeedbackError,
    UnknownSessionError,
)
from protos.identity import name_from
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.quantize import QUANTIZERS

_SESSION_BYTES = 2048
"""Memory of one session, with its share of tables, in bytes; an upper bound of measurements."""
_KEPT_UNUSED_S = 30.0
"""A session for waiting frames that brings none for so long keeps no bundle loaded, seconds."""
_EVERY = "*"
"""Stands for any tenant or device in look-ups; names cannot contain this character."""
Sealed: TypeAlias = pb.InferRequest | pb.AskRequest | pb.FeedbackRequest


_NOT_HELD = "this service does not hold that session: negotiate again, then resend"


@dataclass(eq=False)
class Session:
    """What both sides hold constant while a session lasts.

    Attributes:
        terms: shared by all sessions like this one.
        peer: the address that opened it.
        owner: the tenant and the device that it belongs to.
        path: owner that it counts for; on a service without identities, the peer's address.
        hex: the id, for jobs.
        whose: the owner, for jobs: "TENANT/DEVICE".
        views: keys by which callers may find it (`_views`).
        known_digest: digest of the bundle that the edge said it holds; empty if none.
        kept_since: when it was opened for frames that wait at the edge, on their bundle (monotonic
            seconds); None for other sessions.
    """

    __slots__ = (
        "constants",
        "hex",
        "id",
        "kept_since",
        "known_digest",
        "owner",
        "path",
        "peer",
        "terms",
        "views",
        "whose",
    )

    id: bytes
    constants: bytes
    terms: Terms
    peer: str
    known_digest: str
    owner: Owner
    path: Owner
    views: tuple[Owner, ...]
    kept_since: float | None

    def __post_init__(self) -> None:
        self.hex, self.whose = self.id.hex(), "/".join(self.owner)

    @property
    def offer(self) -> Offer:
        """The bundle."""
        return self.terms.offer

    @property
    def bundle_id(self) -> str:
        """The bundle's id."""
        return self.offer.bundle_id

    @property
    def risk(self) -> RiskModel | None:
        """The service's guard, if the bundle has one."""
        return self.terms.risk

    @property
    def source(self) -> KVLayout:
        """The edge model's cache layout."""
        return self.terms.source

    @property
    def feedback_constants(self) -> bytes:
        """The key of feedback frames, whose source is the cloud's model.

        Raises:
            NoFeedbackError: the bundle has no feedback.
        """
        target = self.terms.target
        if target is None:
            raise NoFeedbackError(
                f"bundle '{self.offer.bundle_id}' has no way back: its map goes from the edge to "
                "the cloud only (one of the family 'bidirectional' goes both ways)"
            )
        return session_constants(self.id, target.fingerprint, self.offer.bundle_digest)


class Sessions:
    """The sessions held and the bundles they can be opened on.

    Args:
        most: sessions held that brought a good frame.
        most_fresh: sessions held that have not yet.
        dropped: called with each session that is no longer held.
        memory: counts their bytes.

    Attributes:
        on_refused: called with a bundle's digest, and whose request on it was refused, and why.
    """

    on_refused: Callable[[str, Owner, BridgeError], None] = staticmethod(lambda *_: None)

    def __init__(
        self,
        most: int,
        most_fresh: int,
        dropped: Callable[[Session], None],
        memory: Room | None = None,
    ) -> None:
        self._memory = Room() if memory is None else memory
        self._most, self._most_fresh, self._dropped = most, most_fresh, dropped
        self._held: dict[bytes, Session] = {}
        self._seen: dict[tuple[str, str, bytes], Session] = {}  # by who may name them, see `_views`
        self._fresh: Crowd[bytes] = Crowd()
        self._worked: Crowd[bytes] = Crowd()
        self._choices: dict[str, Offered] = {}
        self._loaded: dict[str, Offer] = {}
        self._coming: frozenset[str] = frozenset()
        self._on: Counter[str] = Counter()  # sessions by the digest of their bundle
        self._kept: set[bytes] = set()
        self._terms: dict[tuple[str, str, frozenset[str]], Terms] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def fresh(self) -> int:
        """Sessions that never brought a good frame."""
        return len(self._fresh)

    def offer(self, offers: Collection[Offer]) -> None:
        """Serve each edge model with one bundle; sessions on other bundles end."""
        self.serve(choices_of(offers), offers)

    def serve(
        self,
        choices: Mapping[str, Offered],
        loaded: Collection[Offer],
        coming: Collection[str] = (),
    ) -> None:
        """Open sessions on these versions from now on.

        Args:
            choices: versions offered, by the fingerprint of the edge model.
            loaded: all versions that the engines have; sessions on others end.
            coming: fingerprints of edge models whose version is being loaded.
        """
        self._choices, self._coming = dict(choices), frozenset(coming)
        self._terms.clear()
        served = self._loaded = {offer.bundle_digest: offer for offer in loaded}
        if self._on.keys() <= served.keys():
            return
        for session in [s for s in self._held.values() if s.offer.bundle_digest not in served]:
            self._drop(session)

    def on(self, digest: str) -> int:
        """Number of sessions open on a bundle, without kept ones that bring no frames."""
        idle, now = 0, time.monotonic()
        for session_id in self._kept:
            session = self._held[session_id]
            since = session.kept_since or 0.0
            unused = session_id in self._fresh and now - since > _KEPT_UNUSED_S
            idle += session.offer.bundle_digest == digest and unused
        return self._on[digest] - idle

    def misplaced(self) -> list[Session]:
        """Sessions whose device would get another version now."""
        found = []
        for session in self._held.values():
            choice = self._choices.get(session.source.fingerprint)
            if choice is not None and session.kept_since is None:
                offer = choice.of(*session.owner)
                if offer.bundle_digest != session.offer.bundle_digest:
                    found.append(session)
        return found

    def refused(self, bundle: str, owner: Owner, error: BridgeError) -> None:
        """Report a refused frame.

        Args:
            bundle: digest of its bundle; empty for a question about a scene.
            owner: whose frame it was.
            error: why.
        """
        if bundle:
            self.on_refused(bundle, owner, error)

    def end(self, session: Session) -> None:
        """End a session; later calls that name it are told to negotiate again."""
        if self._held.get(session.id) is session:
            self._drop(session)

    def open(
        self,
        source: KVLayout,
        codecs: Collection[str],
        known_digest: str,
        peer: str,
        caller: Caller = ANYONE,
        device: str = "",
        keep: bool = False,
    ) -> Session:
        """Open a session for an edge model.

        Args:
            source: its live cache layout.
            codecs: quantizers that the edge can encode.
            known_digest: digest of the bundle that the edge holds; empty if none. If another bundle
                is served, nothing is refused: the edge fetches the new encoder.
            peer: the caller's address.
            caller: who calls.
            device: its name on a service without identities; empty for the peer's address.
            keep: open it on the bundle `known_digest` if an engine has it still: frames wait.

        Raises:
            EngineUnavailableError: no engine has come up yet.
            IncompatibleLayoutError: no bundle is for this model.
            UnknownQuantizerError: the edge can encode none of the bundle's operating points.
        """
        anyone = caller.kind == "anyone"
        owner = (caller.tenant, device or name_from(peer) if anyone else caller.name)
        if not self._choices and not self._coming:
            raise EngineUnavailableError("the engine is still loading; try again")
        old = self._loaded.get(known_digest) if keep else None
        fitting = [
            layout
            for layout in source.versions
            if layout.fingerprint in (self._choices if old is None else (old.source_fingerprint,))
        ]
        if not fitting:
            if any(layout.fingerprint in self._coming for layout in source.versions):
                raise EngineUnavailableError("the bundle for this model is being loaded; try again")
            raise IncompatibleLayoutError(self._why_incompatible(source))
        source = fitting[0]
        offer = old or self._choices[source.fingerprint].of(*owner)
        known = frozenset(codecs) & frozenset(QUANTIZERS)
        key = (source.fingerprint, offer.bundle_digest, known)
        terms = self._terms.get(key)
        if terms is None:
            terms = self._terms[key] = terms_of(offer, source, known)
        session_id = secrets.token_bytes(SESSION_ID_BYTES)
        session = Session(
            id=session_id,
            constants=session_constants(session_id, source.fingerprint, offer.bundle_digest),
            terms=terms,
            peer=peer,
            known_digest=known_digest,
            owner=owner,
            path=(caller.tenant, peer if anyone else caller.name),
            views=((caller.tenant, caller.name),)
            if anyone
            else ((caller.tenant, caller.name), (caller.tenant, _EVERY), (_EVERY, _EVERY)),
            kept_since=None if old is None else time.monotonic(),
        )
        if old is not None:
            self._kept.add(session_id)
        self._held[session_id] = session
        self._on[offer.bundle_digest] += 1
        for view in session.views:
            self._seen[(*view, session_id)] = session
        self._memory.add(caller.tenant, _SESSION_BYTES)
        self._fresh.add(session.path, session_id)
        if len(self._fresh) > self._most_fresh:
            self._drop(self._held[self._fresh.next_to_go()])
        return session

    def get(self, session_id: bytes, caller: Caller = ANYONE) -> Session:
        """The session of that id; this counts as a use.

        Args:
            session_id: its id, or anything else.
            caller: the caller. Another caller's session and a session that never existed get the
            same error.

        Raises:
            UnknownSessionError: it is not held (any more).
        """
        session = None
        for view in _views(caller):
            session = self._seen.get((*view, session_id), session)
        if session is None and len(session_id) != SESSION_ID_BYTES:
            raise UnknownSessionError(
                f"a session id of {len(session_id)} bytes, expected {SESSION_ID_BYTES}: negotiate, "
                f"then send it in the metadata of Infer as {SESSION_METADATA_KEY}, in other calls "
                "as session_id"
            )
        if session is None:
            raise UnknownSessionError(_NOT_HELD)
        (self._worked if session_id in self._worked else self._fresh).touch(session_id)
        return session

    def require(self, session: Session) -> None:
        """Check that a session that was found before is still held.

        Raises:
            UnknownSessionError: it is not.
        """
        if session.id not in self._held:
            raise UnknownSessionError(_NOT_HELD)

    def worked(self, session: Session) -> None:
        """A session brought a good frame: sessions that never did cannot push it out any more."""
        if session.id not in self._fresh:
            return
        self._fresh.remove(session.id)
        self._worked.add(session.path, session.id)
        if len(self._worked) > self._most:
            self._drop(self._held[self._worked.next_to_go()])

    def check(self, request: Sealed, session: Session) -> None:
        """Check a request's digest; if it does not match, say why as exactly as possible.

        Raises:
            BundleVersionError: it was sealed for the other bundle that the edge said it holds.
            IncompatibleLayoutError: it was sealed for another edge model that is served here.
            FrameCorruptError: bytes changed on the way, or it was sealed for something else.
        """
        try:
            verify(request, session.constants)
        except FrameCorruptError as corrupt:
            raise self._diagnose(request, session) or corrupt from None

    def _diagnose(self, request: Sealed, session: Session) -> BridgeError | None:
        here, mine = session.offer, session.source.fingerprint

        def sealed_for(fingerprint: str, bundle_digest: str) -> bool:
            try:
                verify(request, session_constants(session.id, fingerprint, bundle_digest))
            except FrameCorruptError:
                return False
            return True

        if session.known_digest and sealed_for(mine, session.known_digest):
            return BundleVersionError(
                f"the frame was made with bundle {session.known_digest[:12]}…, this session is on "
                f"'{here.bundle_id}' {here.bundle_version} ({here.bundle_digest[:12]}…): fetch its "
                "encoder and send the frame again"
            )
        for other in self._offers:
            source = other.source_fingerprint
            if source != mine and sealed_for(source, other.bundle_digest):
                return IncompatibleLayoutError(
                    f"the frame was made for bundle '{other.bundle_id}', that is for another edge "
                    f"model; this session is on '{here.bundle_id}': negotiate for that model"
                )
        return None

    @property
    def _offers(self) -> list[Offer]:
        """All versions that serve devices."""
        return [offer for choice in self._choices.values() for offer in choice.every]

    def _drop(self, session: Session) -> None:
        self._kept.discard(session.id)
        del self._held[session.id]
        self._on[session.offer.bundle_digest] -= 1
        if not self._on[session.offer.bundle_digest]:
            del self._on[session.offer.bundle_digest]
        for view in session.views:
            self._seen.pop((*view, session.id), None)
        self._memory.add(session.owner[0], -_SESSION_BYTES)
        (self._fresh if session.id in self._fresh else self._worked).remove(session.id)
        self._dropped(session)

    def _why_incompatible(self, source: KVLayout) -> str:
        told = []
        for offer in self._offers:
            served = KVLayout.from_json(offer.source_layout_json)
            differs = [
                f"{name} {getattr(source, name)!r} instead of {getattr(served, name)!r}"
                for name in ("layers", "kv_heads", "head_dim", "grid", "cache_dtype")
                if getattr(source, name) != getattr(served, name)
            ]
            differs += [
                f"another {what}"
                for what, name in (
                    ("RoPE", "rope"),
                    ("tokenizer or processor", "tokenizer_digest"),
                    ("set of weights", "weights_digest"),
                    ("configuration, template or setting", "settings_digest"),
                )
                if getattr(source, name) != getattr(served, name)
            ]
            if source.fingerprint == served.versions[-1].fingerprint != served.fingerprint:
                differs = ["a version that does not tell its settings: update the agent"]
            told.append(
                f"'{offer.bundle_id}' is for '{served.model_id}' (the edge has "
                f"{'; '.join(differs) or 'another model id'})"
            )
        return (
            f"no bundle maps the cache of edge model '{source.model_id}' "
            f"({source.fingerprint[:12]}…) to this service's model: {' | '.join(told)}"
        )


def _views(caller: Caller) -> tuple[Owner, ...]:
    """Keys of the sessions that a caller may name: tenant and device."""
    if caller.kind in ("device", "anyone"):
        return ((caller.tenant, caller.name),)
    if caller.of_service:
        return ((_EVERY, _EVERY),)
    if caller.devices is None:
        return ((caller.tenant, _EVERY),)
    return tuple((caller.tenant, device) for device in sorted(caller.devices))
