"""The messages between the front end and the engine: jobs down, events up.

Messages travel as MessagePack, checked against their types when they are read. The sockets are in
`link.py`.

    front end                                    engine
      │ ◀── Status (loading) ───────────────────── │   also the heartbeat, both ways
      │ ◀── Offer, Offer, …, Ready (or Broken) ─── │
      │ ─── Job ──────────────────────────────────▶│
      │ ◀── Accepted ── TokenMade* ── Answered ─── │   or Failed at any point
      │ ◀── Compressed ─────────────────────────── │   or Failed, to a Job for feedback
      │ ◀── PartWanted ─────────────────────────── │   or Failed, to a Job with `look`
      │ ◀── Measured ───────────────────────────── │   or Failed, to a Job with `shadow`
      │ ─── Cancel ───────────────────────────────▶│   Dropped, unless it came too late
      │ ─── Forget (a session's scenes), Drop ────▶│
      │ ─── Load (one more bundle) ───────────────▶│
      │ ◀── Offer, Loaded ─────────────────────── │   or NotLoaded
      │ ─── Unload (a bundle) ────────────────────▶│
      │ ─── Shutdown ─────────────────────────────▶│
"""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from protos.errors import BridgeError, FrameMalformedError, OverloadedError, from_code


class _Sent(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A message; its class travels as the first element.

    Attributes:
        ends: whether it is a job's last event, whatever the job; see `Accepted` too.
    """

    ends: ClassVar[bool] = False


class Job(_Sent, frozen=True):
    """A frame with or without a question; or a question about a held scene; or its feedback.

    With `look` it asks which part of the picture a question about a held scene needs. With `box`
    its body is that part, and the question is answered from both. With `shadow` its body is the
    whole picture of a held scene: scene and picture are compared, when the engine has time for it.

    Attributes:
        id: counts up over the life of the front end.
        session: session id, hex.
        frame_number: which scene of the session.
        request_id: hex; for logs.
        question: empty to just hold the scene.
        max_new_tokens: longest answer in tokens, at least 1.
        received_ns: when the request's last byte arrived (the host's monotonic clock).
        bundle: digest of the bundle that decodes the frame, or encodes the feedback; else empty.
        point: index of the frame's operating point; -1 without a frame.
        kept: which tokens of the frame's grid the body holds, one byte (0 or 1) a token.
        body: what the quantizer wrote, or a picture file.
        base: frame number of the session's frame that a delta frame changes; -1 for a key frame.
        differences: 1 if the body holds differences to the base.
        feedback: index of the operating point for sending the scene's state to the edge; -1 for no
            feedback.
        hold: 0 if the frame's scene is for this question only and replaces no other scene.
        owner: "TENANT/DEVICE"; engines share their memory fairly between owners.
        rank: jobs of a lower rank go first (`Waiting`).
        step_rows: joins a step only while it has fewer rows than this (`Waiting`); 0 for any step.
        look: share of the question's attention that the part is to have; 0 if none is looked for.
        most_share: largest share of the picture's width and height that it may have.
        box: left, top, right and bottom of the part in the body (`protos.crop.Box`); else empty.
        shadow: questions to answer from scene and picture; empty if they are not to be compared.
        values: what a memory says to the question, each with its weight, 0 to 1; empty: nothing.
        gain: how much of it is added (`values.py`).
        trace: W3C context of the request's span (`traceparent`); with it, the engine's spans go up
            with its events.
    """

    id: int
    session: str
    frame_number: int
    request_id: str
    question: str
    max_new_tokens: int
    received_ns: int
    bundle: str = ""
    point: int = -1
    kept: bytes = b""
    body: bytes = b""
    base: int = -1
    differences: int = 0
    feedback: int = -1
    hold: int = 1
    owner: str = ""
    rank: int = 1
    step_rows: int = 0
    look: float = 0.0
    most_share: float = 1.0
    box: list[int] = []
    shadow: list[str] = []
    values: list[tuple[float, str]] = []
    gain: float = 0.0
    trace: str = ""

    @property
    def has_frame(self) -> bool:
        """False for a question about a scene that is held, and for feedback."""
        return self.point >= 0

    @property
    def scene(self) -> tuple[str, int]:
        """The name under which the scene is held."""
        return self.session, self.frame_number

    @property
    def kept_mask(self) -> npt.NDArray[np.bool_]:
        """The frame's kept tokens as bool `[tokens]`; a view, not to be written to."""
        return np.frombuffer(self.kept, dtype=np.bool_)


class Forget(_Sent, frozen=True):
    """The session is over: its scenes need not be held."""

    session: str


class Drop(_Sent, frozen=True):
    """A frame is no longer held: nobody can ask about its scene.

    Attributes:
        base: 1 while later frames may build on its latents.
    """

    session: str
    frame_number: int
    base: int


class Cancel(_Sent, frozen=True):
    """A job is not wanted any more.

    Attributes:
        begun: 1 to end it even if it has begun, 0 to leave it alone then.
    """

    job: int
    begun: int = 1


class Load(_Sent, frozen=True):
    """Load a bundle beside the others.

    Attributes:
        digest: the digest that it must have.
        path: its folder.
        trusted_keys: file of the keys whose signatures are trusted; empty trusts every bundle.
    """

    digest: str
    path: str
    trusted_keys: str = ""


class Unload(_Sent, frozen=True):
    """Unload a bundle that no session, job or scene uses any more."""

    digest: str


class Loaded(_Sent, frozen=True):
    """A bundle was loaded; its `Offer` came just before.

    Attributes:
        memory_bytes: growth of the process during the load.
    """

    digest: str
    memory_bytes: int
    load_s: float


class NotLoaded(_Sent, frozen=True):
    """A bundle could not be loaded, with the reason; the others are still served."""

    digest: str
    code: int
    message: str


class Shutdown(_Sent, frozen=True):
    """Leave, now."""


class Offer(_Sent, frozen=True):
    """One bundle that the engine has loaded against its live model.

    Attributes:
        encoder: the edge half, as `FetchEncoder` sends it.
        feedback_decoder: the edge's half of feedback, as `FetchEncoder` sends it; may be empty.
        feedback_points_json: operating points of feedback; may be empty.
        verdict: empty if the certificate says that the bundle's map beats its controls; else its
            verdict (`projector.bundle.certificate`).
        why: the reason for a verdict.
        canary: the bundle's canary set, `projector.bundle.canary`; empty if it has none.
        service_risk: the service's guard, a `RiskModel` as bytes; may be empty.
        differ: calibrated share of answers that differ from the picture's, by operating point.
        tokens: tokens of a frame's grid; 0 for as many as the edge model has.
    """

    bundle_id: str
    bundle_version: str
    bundle_digest: str
    encoder_digest: str
    source_fingerprint: str
    source_layout_json: str
    target_layout_json: str
    operating_points_json: str
    default_point: str
    ladder: list[str]
    encoder: bytes
    feedback_decoder: bytes = b""
    feedback_points_json: str = ""
    verdict: str = ""
    why: str = ""
    canary: bytes = b""
    service_risk: bytes = b""
    differ: dict[str, float] = {}
    tokens: int = 0

    @property
    def doubt(self) -> str:
        """Why the certificate does not vouch for the map, in words; empty if it does."""
        return f"{self.verdict}: {self.why}" if self.verdict else ""

    @property
    def feedback_decoder_digest(self) -> str:
        """SHA-256 hex; empty if the bundle has no feedback."""
        return hashlib.sha256(self.feedback_decoder).hexdigest() if self.feedback_decoder else ""


class Ready(_Sent, frozen=True):
    """The model and every bundle are loaded; jobs may come."""

    model: str
    load_s: float


class Broken(_Sent, frozen=True):
    """The engine cannot start, and why; it then ends with that error's exit code."""

    code: int
    message: str


class Status(_Sent, frozen=True):
    """A heartbeat; the engine's carries its load.

    Attributes:
        step_s: how long the engine has been in its present step; 0 between steps.
        log_lines_dropped: count since the engine process started.
        pool_bytes: memory set aside for scenes and latents, used or free.
        cap_bytes: what scenes, latents and the running batch may take.
        resident_bytes: memory of the whole process that is in RAM.
    """

    step_s: float = 0.0
    waiting: int = 0
    running: int = 0
    scenes: int = 0
    scene_bytes: int = 0
    log_lines_dropped: int = 0
    pool_bytes: int = 0
    cap_bytes: int = 0
    resident_bytes: int = 0


FAR_STEPS = 32


class Accepted(_Sent, frozen=True):
    """The frame is decoded and its scene is held. Last event of a job without a question.

    Attributes:
        queue_s: from receipt until the engine took it up.
        warnings: names of reasons not to rely on answers about the scene.
        moments_score: `RiskModel.moments_score` by the service's guard; NaN without a guard,
        minus infinity for a picture, which has no risk.
        far: how far each token of the grid is from usual, one byte each: 0 if it is not known, else
        its distance (`unfamiliarity_of_tokens`, about 1 is usual) times `FAR_STEPS`; empty for a
        picture.
        spans: for a job with `trace`: names, begin and end (nanoseconds, the host's monotonic
            clock).
    """

    job: int
    queue_s: float
    decode_s: float
    project_s: float
    inject_s: float
    warnings: list[str] = []
    moments_score: float = math.nan
    far: bytes = b""
    spans: list[tuple[str, int, int]] = []


class TokenMade(_Sent, frozen=True):
    """One more token of an answer.

    Attributes:
        prompt_tokens: as in `Answered`.
    """

    job: int
    index: int
    text: str
    prompt_tokens: int = 0


class Answered(_Sent, frozen=True):
    """Last event of a job with a question.

    Attributes:
        prompt_tokens: tokens before the answer: the constant part, the scene and the question.
        spans: as in `Accepted`.
    """

    ends: ClassVar[bool] = True
    job: int
    text: str
    tokens: int
    queue_s: float
    prefill_s: float
    generate_s: float
    prompt_tokens: int = 0
    spans: list[tuple[str, int, int]] = []


class Compressed(_Sent, frozen=True):
    """Last event of a job for feedback: the state that the engine holds of the scene.

    Attributes:
        compress_s: time to un-rotate and encode it.
        quantize: in the cloud's latents, like the next two; defined in `protos.distortion`.
        body: what the quantizer wrote for all tokens.
    """

    ends: ClassVar[bool] = True
    job: int
    queue_s: float
    compress_s: float
    quantize: float
    latent_residual: float
    unfamiliarity: float
    body: bytes


class PartWanted(_Sent, frozen=True):
    """Last event of a job with `look`.

    Attributes:
        box: as `Job.box`.
        attention: share of the attention of the question's last token that falls into it.
    """

    ends: ClassVar[bool] = True
    job: int
    box: list[int]
    attention: float


class Measured(_Sent, frozen=True):
    """Last event of a job with `shadow`: how far the scene is from its picture's own cache.

    Attributes:
        errors: of each layer, the relative error of keys and values together.
        questions: those that were answered; one that does not fit the model's windows is left out.
        given: the answers from the scene.
        seen: the answers from the picture.
        kl: of each question, the divergence in nats of the scene's distribution of the first token
            from the picture's.
    """

    ends: ClassVar[bool] = True
    job: int
    queue_s: float
    errors: list[float]
    questions: list[str]
    given: list[str]
    seen: list[str]
    kl: list[float]


class Failed(_Sent, frozen=True):
    """Last event of a job that the engine refused.

    Attributes:
        retry_after_s: when it may be sent again; 0 if that is not known.
        cause: of an `OverloadedError`.
    """

    ends: ClassVar[bool] = True
    job: int
    code: int
    message: str
    retry_after_s: float = 0.0
    cause: str = ""

    @property
    def error(self) -> BridgeError:
        """The error that this message carries."""
        error = from_code(self.code, self.message)
        if isinstance(error, OverloadedError):
            error.retry_after_s, error.cause = self.retry_after_s, self.cause
        return error


class Dropped(_Sent, frozen=True):
    """Last event of a job that was cancelled in time."""

    ends: ClassVar[bool] = True
    job: int


Message: TypeAlias = (
    Job
    | Forget
    | Drop
    | Cancel
    | Load
    | Unload
    | Loaded
    | NotLoaded
    | Shutdown
    | Offer
    | Ready
    | Broken
    | Status
    | Accepted
    | TokenMade
    | Answered
    | Compressed
    | PartWanted
    | Measured
    | Failed
    | Dropped
)
BundleEvent: TypeAlias = Offer | Loaded | NotLoaded
JobEvent: TypeAlias = (
    Accepted | TokenMade | Answered | Compressed | PartWanted | Measured | Failed | Dropped
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Message])


def ends(said: JobEvent, job: Job) -> bool:
    """Whether an event is the last one of its job."""
    return said.ends or (type(said) is Accepted and not job.question)


def failed(job: int, error: BridgeError) -> Failed:
    """An error as a job's last event (back: `Failed.error`)."""
    if isinstance(error, OverloadedError):
        return Failed(job, error.code, error.message, error.retry_after_s, error.cause)
    return Failed(job, error.code, error.message)


def pack(*messages: Message) -> bytes:
    """Write messages as one block of bytes."""
    return _ENCODER.encode(messages)


def unpack(block: bytes) -> list[Message]:
    """Read what `pack` wrote.

    Raises:
        FrameMalformedError: the bytes are not messages, or a field is missing or of another type.
    """
    try:
        return _DECODER.decode(block)
    except msgspec.MsgspecError as error:
        raise FrameMalformedError(f"engine link: {error}") from error
