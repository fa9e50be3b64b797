"""Every typed error: its code, name, gRPC status, HTTP status and exit code.

A code is stable: it is never reused or renumbered, only retired. The hundreds group by cause:

| Codes | Cause                                   | Exit codes |
|-------|-----------------------------------------|------------|
| 1xx   | configuration, input files              | 10-19      |
| 2xx   | a frame's bytes                         | 20-29      |
| 3xx   | negotiation, sessions                   | 30-39      |
| 4xx   | the question, and the memory it reads   | 40-49      |
| 5xx   | the service or the way to it            | 50-59      |
| 6xx   | bundles, packages, corpora on disk      | 60-69      |
| 7xx   | identities, and the service's database  | 70-79      |
| 8xx   | this machine: its memory, its time      | 80-89      |
"""

from __future__ import annotations

from typing import ClassVar

HTTP_STATUS: dict[str, int] = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 422,
    "DATA_LOSS": 422,
    "RESOURCE_EXHAUSTED": 429,
    "UNKNOWN": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""The HTTP status that goes with a gRPC status."""


class BridgeError(Exception):
    """Base of all typed errors; itself raised only for a code that this version does not know.

    Args:
        message: What was wrong, what was expected, what to do. Shown to the user as it is.

    Attributes:
        code: Stable number, sent in `Refused.code` and in the `nb-error-code` trailer.
        name: Stable snake-case name, sent in `Refused.name` and used as a metric label.
        grpc_status: Name of the `grpc.StatusCode` member that a failed RPC ends with.
        exit_code: Status of a process that ends because of this error.
        retryable: True if sending the same request again, later, can succeed.
        summary: One sentence, for lists of exit codes. An attribute, because `python -OO` strips
            docstrings; it is the class's docstring too.
    """

    summary: ClassVar[str] = "An error that this version does not know."
    code: ClassVar[int] = 0
    name: ClassVar[str] = "bridge_error"
    grpc_status: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def http_status(self) -> int:
        """Status of an HTTP response that carries this error."""
        return HTTP_STATUS[self.grpc_status]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "summary" in vars(cls):
            cls.__doc__ = cls.summary


# ------------------------------------------------------------------ 1xx: configuration and input


class ConfigError(BridgeError):
    summary = "A setting, option or combination of them makes no sense."
    code = 101
    name = "config"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 10


class SourceError(BridgeError):
    summary = "A picture source is empty, or its folder or device is missing."
    code = 102
    name = "source"
    grpc_status = "NOT_FOUND"
    exit_code = 11


class PictureError(BridgeError):
    summary = "Bytes that should be a picture are not one that can be decoded within the limits."
    code = 103
    name = "picture"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 12


class ModelError(BridgeError):
    summary = "A path is not a usable model checkpoint."
    code = 104
    name = "model"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 13


class UnsupportedModelError(BridgeError):
    summary = "A model has a feature that a cache layout cannot describe; the message names it."
    code = 105
    name = "unsupported_model"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 14


class SelfCheckError(BridgeError):
    summary = "A model answers differently from its rebuilt cache than from its own prompt."
    code = 106
    name = "self_check"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 15


class DegenerateError(BridgeError):
    summary = "A picture that shows nothing, such as one flat colour; made at the edge, never sent."
    code = 107
    name = "degenerate"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 16


class UselessMapError(BridgeError):
    summary = "A map is no better than its controls, or its report cannot say: see --force."
    code = 108
    name = "useless_map"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 17


class MaskError(BridgeError):
    summary = "A mask is missing, unreadable or hides nothing, so its camera is not opened."
    code = 109
    name = "mask"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 18


class SpoolError(BridgeError):
    summary = "The spool cannot be used: another agent has it, or it was written with another key."
    code = 110
    name = "spool"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 19


# ------------------------------------------------------------------ 2xx: the bytes of a frame


class FrameTruncatedError(BridgeError):
    summary = "A header or payload ends before its own counts say it should."
    code = 201
    name = "frame_truncated"
    grpc_status = "DATA_LOSS"
    exit_code = 20


class FrameCorruptError(BridgeError):
    summary = "A frame's digest does not match its bytes and the session's constants."
    code = 202
    name = "frame_corrupt"
    grpc_status = "DATA_LOSS"
    exit_code = 21


class FrameMalformedError(BridgeError):
    summary = "Fields are missing, repeated or unknown; counts are wrong; sizes lie."
    code = 203
    name = "frame_malformed"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 22


class FrameTooLargeError(BridgeError):
    summary = "A field is longer than the limit that `Negotiate` announced."
    code = 204
    name = "frame_too_large"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 23


class UnknownQuantizerError(BridgeError):
    summary = "A quantizer or operating point is named that this side does not have."
    code = 205
    name = "unknown_quantizer"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 24


class NonFiniteError(BridgeError):
    summary = "A latent, a scale or a distortion figure is NaN or infinite."
    code = 206
    name = "non_finite"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 25


class EmptyFrameError(BridgeError):
    summary = "A frame carries no tokens or no payload."
    code = 207
    name = "empty_frame"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 26


class DistortionError(BridgeError):
    summary = "A frame would lose too much of what its picture shows; made at the edge, never sent."
    code = 208
    name = "distortion"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 27


class UnfamiliarError(BridgeError):
    summary = (
        "A picture, or a question about it, unlike those that the map answers as the picture does."
    )
    code = 209
    name = "unfamiliar"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 28


# ------------------------------------------------------------------ 3xx: negotiation, sessions


class IncompatibleLayoutError(BridgeError):
    summary = "No bundle maps this edge model's cache layout to the cloud's model."
    code = 301
    name = "incompatible_layout"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 30


class BundleVersionError(BridgeError):
    summary = "The two sides hold different versions of the bundle."
    code = 302
    name = "bundle_version"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 31


class UnknownSessionError(BridgeError):
    summary = "The cloud does not hold this session (any more): negotiate again, then resend."
    code = 303
    name = "unknown_session"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 32
    retryable = True


class UnknownSceneError(BridgeError):
    summary = "A question is asked about a frame that the cloud does not hold (any more)."
    code = 304
    name = "unknown_scene"
    grpc_status = "NOT_FOUND"
    exit_code = 33


class ProtocolVersionError(BridgeError):
    summary = "The peer speaks another version of the protocol."
    code = 305
    name = "protocol_version"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 34


class MissingKeyFrameError(BridgeError):
    summary = (
        "A delta frame changes a frame that the cloud does not hold (any more): send a key frame."
    )
    code = 306
    name = "missing_key_frame"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 35
    retryable = True


class NoFeedbackError(BridgeError):
    summary = "The session's bundle has no way back from the cloud's states to the edge's."
    code = 307
    name = "no_feedback"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 36


class FrameNumberError(BridgeError):
    summary = "A frame's number is taken by another frame of the session, which is still held."
    code = 308
    name = "frame_number"
    grpc_status = "ALREADY_EXISTS"
    exit_code = 37


class BundleGoneError(BridgeError):
    summary = "A frame waited, and the service no longer has the bundle that it was made with."
    code = 309
    name = "bundle_gone"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 38


# ------------------------------------------------------------------ 4xx: the question


class QuestionError(BridgeError):
    summary = "A question is blank or cannot be answered."
    code = 401
    name = "question"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 40


class QuestionTooLongError(BridgeError):
    summary = "A question is longer than the limit that `Negotiate` announced."
    code = 402
    name = "question_too_long"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 41


class ContextError(BridgeError):
    summary = (
        "A text is empty, holds reserved tokens, or does not fit the model or its sliding windows."
    )
    code = 403
    name = "context"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 42


class RiskError(BridgeError):
    summary = "The risk of an answer about this scene is above the caller's bound; none was made."
    code = 404
    name = "risk"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 43


class FactError(BridgeError):
    summary = "A fact, its value or its key is empty, too long, or of the wrong size."
    code = 405
    name = "fact"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 44


class MemoryForeignError(BridgeError):
    summary = "A memory belongs to other models, or to another basis of keys, than the ones in use."
    code = 406
    name = "memory_foreign"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 45


class MemoryCorruptError(BridgeError):
    summary = "A memory's bytes were altered or truncated, or are not of the format that is read."
    code = 407
    name = "memory_corrupt"
    grpc_status = "DATA_LOSS"
    exit_code = 46


class MemoryMissingError(BridgeError):
    summary = "There is no memory to read or write: the bundle brings no basis, or none is held."
    code = 408
    name = "memory_missing"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 47


# ------------------------------------------------------------------ 5xx: the service


class OverloadedError(BridgeError):
    """See `BridgeError`.

    Args:
        message: see `BridgeError`.
        retry_after_s: when there may be room for it, seconds; 0 if that is not known.
        cause: what was full, a short word for metrics.
    """

    summary = "The cloud has no room for this request now."
    code = 501
    name = "overloaded"
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 50
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 0.0, cause: str = "") -> None:
        super().__init__(message)
        self.retry_after_s, self.cause = retry_after_s, cause


class EngineUnavailableError(BridgeError):
    summary = "The cloud's engine process is starting, restarting or gone."
    code = 502
    name = "engine_unavailable"
    grpc_status = "UNAVAILABLE"
    exit_code = 51
    retryable = True


class OfflineError(BridgeError):
    summary = "The cloud cannot be reached."
    code = 503
    name = "offline"
    grpc_status = "UNAVAILABLE"
    exit_code = 52
    retryable = True


class LateError(BridgeError):
    summary = "The cloud is reached, but its answer did not come within the objective."
    code = 504
    name = "late"
    grpc_status = "DEADLINE_EXCEEDED"
    exit_code = 53


class QuarantinedError(BridgeError):
    summary = "This request ended an engine twice; it is refused from now on."
    code = 505
    name = "quarantined"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 54


class DroppedError(BridgeError):
    summary = "A frame that waited on the device was dropped: no room, too old, or damaged."
    code = 506
    name = "dropped"
    grpc_status = "DATA_LOSS"
    exit_code = 55


class CaptivePortalError(OfflineError):
    summary = "Something else answers in the server's place: a captive portal, or a proxy."
    code = 507
    name = "captive_portal"
    exit_code = 56


# ------------------------------------------------------------------ 6xx: bundles


class BundleMissingError(BridgeError):
    summary = "A bundle, or one of its files, is not there."
    code = 601
    name = "bundle_missing"
    grpc_status = "NOT_FOUND"
    exit_code = 60


class BundleCorruptError(BridgeError):
    summary = "A bundle's file does not match the digest or size that the bundle states."
    code = 602
    name = "bundle_corrupt"
    grpc_status = "DATA_LOSS"
    exit_code = 61


class BundleLayoutError(BridgeError):
    summary = "A bundle was trained for other models than the ones that are running."
    code = 603
    name = "bundle_layout"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 62


class BundleFormatError(BridgeError):
    summary = "A bundle's contents are not of the format that this version reads."
    code = 604
    name = "bundle_format"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 63


class SignatureError(BridgeError):
    summary = (
        "A bundle or package is not signed, not by a trusted key, or was altered after signing."
    )
    code = 605
    name = "signature"
    grpc_status = "PERMISSION_DENIED"
    exit_code = 64


class PackageCorruptError(BridgeError):
    summary = "A memory package was altered or truncated, or is not in its canonical form."
    code = 606
    name = "package_corrupt"
    grpc_status = "DATA_LOSS"
    exit_code = 65


class PackageFormatError(BridgeError):
    summary = "A memory package's contents are not of the format that this version reads."
    code = 607
    name = "package_format"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 66


class CorpusError(BridgeError):
    summary = "A corpus of paired caches is empty, damaged, of mixed pairs, or holds NaN."
    code = 608
    name = "corpus"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 67


class FitError(BridgeError):
    summary = "A map cannot be fitted: an impossible rank, a singular system, an unknown family."
    code = 609
    name = "fit"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 68


class DiskFullError(BridgeError):
    summary = "There was no room to write; nothing half-written was left in place."
    code = 610
    name = "disk_full"
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 69


# ------------------------------------------------------------------ 7xx: callers, state


class UnauthenticatedError(BridgeError):
    summary = "The caller has no valid certificate or key."
    code = 701
    name = "unauthenticated"
    grpc_status = "UNAUTHENTICATED"
    exit_code = 70


class ForbiddenError(BridgeError):
    summary = "The caller is identified, but may not do this."
    code = 702
    name = "forbidden"
    grpc_status = "PERMISSION_DENIED"
    exit_code = 71


class EnrolmentError(BridgeError):
    summary = "A one-time code is wrong, used or expired, or no certificate can be issued for it."
    code = 703
    name = "enrolment"
    grpc_status = "PERMISSION_DENIED"
    exit_code = 72


class CertificateError(BridgeError):
    summary = (
        "A certificate or private key is missing, unreadable, expired or from another authority."
    )
    code = 704
    name = "certificate"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 73


class MissingError(BridgeError):
    summary = "There is no tenant, device, key or bundle with this name."
    code = 705
    name = "missing"
    grpc_status = "NOT_FOUND"
    exit_code = 74


class ConflictError(BridgeError):
    summary = "A name is taken, or something that is still in use cannot be removed."
    code = 706
    name = "conflict"
    grpc_status = "ALREADY_EXISTS"
    exit_code = 75


class StateError(BridgeError):
    summary = "The service's database cannot be used: gone, locked, full or of another version."
    code = 707
    name = "state"
    grpc_status = "UNAVAILABLE"
    exit_code = 76
    retryable = True


class BackupError(BridgeError):
    summary = "A backup is damaged, of another version, or its passphrase is wrong."
    code = 708
    name = "backup"
    grpc_status = "DATA_LOSS"
    exit_code = 77


class ClockError(BridgeError):
    summary = "The system's clock is too wrong to check a certificate; set it, or wait."
    code = 709
    name = "clock"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 78
    retryable = True


# ------------------------------------------------------------------ 8xx: this machine


class NoMemoryError(BridgeError):
    summary = "A model needs more memory than is free; the message says what would fit."
    code = 801
    name = "no_memory"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 80


class StartTimeoutError(BridgeError):
    summary = "Loading the model or its first run took longer than its limit; start again."
    code = 802
    name = "start_timeout"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 81


class NotAllowedHereError(BridgeError):
    summary = "The device's own settings do not allow what the service wants of it."
    code = 803
    name = "not_allowed_here"
    grpc_status = "PERMISSION_DENIED"
    exit_code = 82


class UpdateError(BridgeError):
    summary = "An update is damaged, for another device, not newer, or does not install."
    code = 809
    name = "update"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 89


ERRORS: dict[int, type[BridgeError]] = {
    cls.code: cls
    for cls in (
        ConfigError,
        SourceError,
        PictureError,
        ModelError,
        UnsupportedModelError,
        SelfCheckError,
        DegenerateError,
        UselessMapError,
        MaskError,
        SpoolError,
        FrameTruncatedError,
        FrameCorruptError,
        FrameMalformedError,
        FrameTooLargeError,
        UnknownQuantizerError,
        NonFiniteError,
        EmptyFrameError,
        DistortionError,
        UnfamiliarError,
        IncompatibleLayoutError,
        BundleVersionError,
        UnknownSessionError,
        UnknownSceneError,
        ProtocolVersionError,
        MissingKeyFrameError,
        NoFeedbackError,
        FrameNumberError,
        BundleGoneError,
        QuestionError,
        QuestionTooLongError,
        ContextError,
        RiskError,
        FactError,
        MemoryForeignError,
        MemoryCorruptError,
        MemoryMissingError,
        OverloadedError,
        EngineUnavailableError,
        OfflineError,
        LateError,
        QuarantinedError,
        DroppedError,
        CaptivePortalError,
        BundleMissingError,
        BundleCorruptError,
        BundleLayoutError,
        BundleFormatError,
        SignatureError,
        PackageCorruptError,
        PackageFormatError,
        CorpusError,
        FitError,
        DiskFullError,
        UnauthenticatedError,
        ForbiddenError,
        EnrolmentError,
        CertificateError,
        MissingError,
        ConflictError,
        StateError,
        BackupError,
        ClockError,
        NoMemoryError,
        StartTimeoutError,
        NotAllowedHereError,
        UpdateError,
    )
}
"""Code to class, for every error that can travel."""


def from_code(code: int, message: str) -> BridgeError:
    """Rebuild an error that travelled as a number.

    Args:
        code: `Refused.code` or the `nb-error-code` trailer.
        message: The message that came with it.

    Returns:
        An instance of the class of that code. A code from a newer peer gives a plain
        `BridgeError` whose message keeps the number.
    """
    cls = ERRORS.get(code)
    if cls is None:
        return BridgeError(f"error {code}, which this version does not know: {message}")
    return cls(message)
