from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NegotiateRequest(_message.Message):
    __slots__ = ("protocol_version", "source_layout_json", "codecs", "agent_version", "bundle_digest", "source_settings_digest", "device", "keep_bundle")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LAYOUT_JSON_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SETTINGS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KEEP_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    source_layout_json: str
    codecs: _containers.RepeatedScalarFieldContainer[str]
    agent_version: str
    bundle_digest: str
    source_settings_digest: str
    device: str
    keep_bundle: bool
    def __init__(self, protocol_version: _Optional[int] = ..., source_layout_json: _Optional[str] = ..., codecs: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., source_settings_digest: _Optional[str] = ..., device: _Optional[str] = ..., keep_bundle: _Optional[bool] = ...) -> None: ...

class NegotiateResponse(_message.Message):
    __slots__ = ("session_id", "session_constants", "bundle_id", "bundle_version", "bundle_digest", "encoder_digest", "target_layout_json", "limits", "operating_points_json", "default_point", "ladder", "reverse_decoder_digest", "bundle_doubt", "parcel_requests")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENCODER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TARGET_LAYOUT_JSON_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINTS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_POINT_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    REVERSE_DECODER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DOUBT_FIELD_NUMBER: _ClassVar[int]
    PARCEL_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    session_constants: bytes
    bundle_id: str
    bundle_version: str
    bundle_digest: str
    encoder_digest: str
    target_layout_json: str
    limits: Limits
    operating_points_json: str
    default_point: str
    ladder: _containers.RepeatedScalarFieldContainer[str]
    reverse_decoder_digest: str
    bundle_doubt: str
    parcel_requests: int
    def __init__(self, session_id: _Optional[bytes] = ..., session_constants: _Optional[bytes] = ..., bundle_id: _Optional[str] = ..., bundle_version: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., encoder_digest: _Optional[str] = ..., target_layout_json: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., operating_points_json: _Optional[str] = ..., default_point: _Optional[str] = ..., ladder: _Optional[_Iterable[str]] = ..., reverse_decoder_digest: _Optional[str] = ..., bundle_doubt: _Optional[str] = ..., parcel_requests: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_payload_bytes", "max_header_bytes", "max_question_bytes", "max_tokens", "max_picture_bytes", "max_picture_px", "max_in_flight", "max_new_tokens")
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUESTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURE_PX_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_payload_bytes: int
    max_header_bytes: int
    max_question_bytes: int
    max_tokens: int
    max_picture_bytes: int
    max_picture_px: int
    max_in_flight: int
    max_new_tokens: int
    def __init__(self, max_payload_bytes: _Optional[int] = ..., max_header_bytes: _Optional[int] = ..., max_question_bytes: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_picture_bytes: _Optional[int] = ..., max_picture_px: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class FetchEncoderRequest(_message.Message):
    __slots__ = ("session_id", "encoder_digest", "offset")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENCODER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    encoder_digest: str
    offset: int
    def __init__(self, session_id: _Optional[bytes] = ..., encoder_digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data", "total_bytes", "offset")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    total_bytes: int
    offset: int
    def __init__(self, data: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("request_id", "frame", "question", "max_new_tokens", "priority", "parcel", "crop")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    frame: Frame
    question: str
    max_new_tokens: int
    priority: int
    parcel: bytes
    crop: Crop
    def __init__(self, request_id: _Optional[bytes] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., question: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., parcel: _Optional[bytes] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("picture", "digest")
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    picture: bytes
    digest: bytes
    def __init__(self, picture: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("header", "payload", "digest")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    payload: bytes
    digest: bytes
    def __init__(self, header: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class InferEvent(_message.Message):
    __slots__ = ("request_id", "frame_number", "accepted", "token", "answer", "refused", "rate_advice", "crop_wanted", "events")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RATE_ADVICE_FIELD_NUMBER: _ClassVar[int]
    CROP_WANTED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    frame_number: int
    accepted: Accepted
    token: Token
    answer: Answer
    refused: Refused
    rate_advice: RateAdvice
    crop_wanted: CropWanted
    events: _containers.RepeatedCompositeFieldContainer[InferEvent]
    def __init__(self, request_id: _Optional[bytes] = ..., frame_number: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., rate_advice: _Optional[_Union[RateAdvice, _Mapping]] = ..., crop_wanted: _Optional[_Union[CropWanted, _Mapping]] = ..., events: _Optional[_Iterable[_Union[InferEvent, _Mapping]]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("distortion",)
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    distortion: DistortionReport
    def __init__(self, distortion: _Optional[_Union[DistortionReport, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("text", "index")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    text: str
    index: int
    def __init__(self, text: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class CropWanted(_message.Message):
    __slots__ = ("left", "top", "right", "bottom", "max_bytes")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    right: int
    bottom: int
    max_bytes: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("text", "tokens", "timings", "distortion", "from_memory", "fallback", "warnings", "risk")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    FROM_MEMORY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: int
    timings: Timings
    distortion: DistortionReport
    from_memory: bool
    fallback: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    risk: float
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., distortion: _Optional[_Union[DistortionReport, _Mapping]] = ..., from_memory: _Optional[bool] = ..., fallback: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., risk: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "project_ms", "inject_ms", "prefill_ms", "generate_ms", "ttft_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PROJECT_MS_FIELD_NUMBER: _ClassVar[int]
    INJECT_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    project_ms: float
    inject_ms: float
    prefill_ms: float
    generate_ms: float
    ttft_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., project_ms: _Optional[float] = ..., inject_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., generate_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class DistortionReport(_message.Message):
    __slots__ = ("quantize", "dropped_attention", "latent_residual", "unfamiliarity")
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    LATENT_RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    UNFAMILIARITY_FIELD_NUMBER: _ClassVar[int]
    quantize: float
    dropped_attention: float
    latent_residual: float
    unfamiliarity: float
    def __init__(self, quantize: _Optional[float] = ..., dropped_attention: _Optional[float] = ..., latent_residual: _Optional[float] = ..., unfamiliarity: _Optional[float] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("code", "name", "message", "retryable", "grpc_status", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    GRPC_STATUS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    name: str
    message: str
    retryable: bool
    grpc_status: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., name: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., grpc_status: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class RateAdvice(_message.Message):
    __slots__ = ("point", "max_in_flight", "cause")
    POINT_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    point: str
    max_in_flight: int
    cause: str
    def __init__(self, point: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., cause: _Optional[str] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("session_id", "frame_number", "request_id", "question", "max_new_tokens", "digest")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    frame_number: int
    request_id: bytes
    question: str
    max_new_tokens: int
    digest: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., frame_number: _Optional[int] = ..., request_id: _Optional[bytes] = ..., question: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("session_id", "frame_number", "request_id", "point", "digest")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    frame_number: int
    request_id: bytes
    point: str
    digest: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., frame_number: _Optional[int] = ..., request_id: _Optional[bytes] = ..., point: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("session_id", "frame_number", "picture", "rest", "digest")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    frame_number: int
    picture: bytes
    rest: int
    digest: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., frame_number: _Optional[int] = ..., picture: _Optional[bytes] = ..., rest: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ShadowResponse(_message.Message):
    __slots__ = ("measured",)
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    measured: int
    def __init__(self, measured: _Optional[int] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("code", "request_der", "agent_version")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_DER_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    code: str
    request_der: bytes
    agent_version: str
    def __init__(self, code: _Optional[str] = ..., request_der: _Optional[bytes] = ..., agent_version: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("request_der", "agent_version")
    REQUEST_DER_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    request_der: bytes
    agent_version: str
    def __init__(self, request_der: _Optional[bytes] = ..., agent_version: _Optional[str] = ...) -> None: ...

class Certificates(_message.Message):
    __slots__ = ("chain_pem", "roots_pem", "tenant", "device", "now_s", "not_after_s", "device_port")
    CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    ROOTS_PEM_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_PORT_FIELD_NUMBER: _ClassVar[int]
    chain_pem: bytes
    roots_pem: bytes
    tenant: str
    device: str
    now_s: int
    not_after_s: int
    device_port: int
    def __init__(self, chain_pem: _Optional[bytes] = ..., roots_pem: _Optional[bytes] = ..., tenant: _Optional[str] = ..., device: _Optional[str] = ..., now_s: _Optional[int] = ..., not_after_s: _Optional[int] = ..., device_port: _Optional[int] = ...) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("agent_version", "running", "settings", "carried_out")
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CARRIED_OUT_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    running: _containers.RepeatedCompositeFieldContainer[Running]
    settings: Settings
    carried_out: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, agent_version: _Optional[str] = ..., running: _Optional[_Iterable[_Union[Running, _Mapping]]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., carried_out: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Running(_message.Message):
    __slots__ = ("kind", "name", "version", "sha256", "slot")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    version: str
    sha256: str
    slot: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., slot: _Optional[str] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("revision", "tried", "refused")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    tried: int
    refused: _containers.RepeatedCompositeFieldContainer[RefusedSetting]
    def __init__(self, revision: _Optional[int] = ..., tried: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[RefusedSetting, _Mapping]]] = ...) -> None: ...

class RefusedSetting(_message.Message):
    __slots__ = ("name", "code", "message")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    code: int
    message: str
    def __init__(self, name: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "configure", "restart", "send_logs", "capture", "update")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    SEND_LOGS_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    configure: Configure
    restart: Restart
    send_logs: SendLogs
    capture: TakePicture
    update: Update
    def __init__(self, id: _Optional[bytes] = ..., configure: _Optional[_Union[Configure, _Mapping]] = ..., restart: _Optional[_Union[Restart, _Mapping]] = ..., send_logs: _Optional[_Union[SendLogs, _Mapping]] = ..., capture: _Optional[_Union[TakePicture, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ...) -> None: ...

class Configure(_message.Message):
    __slots__ = ("revision", "settings_json")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    revision: int
    settings_json: str
    def __init__(self, revision: _Optional[int] = ..., settings_json: _Optional[str] = ...) -> None: ...

class Restart(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SendLogs(_message.Message):
    __slots__ = ("lines", "since_s")
    LINES_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    lines: int
    since_s: float
    def __init__(self, lines: _Optional[int] = ..., since_s: _Optional[float] = ...) -> None: ...

class TakePicture(_message.Message):
    __slots__ = ("camera",)
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    camera: str
    def __init__(self, camera: _Optional[str] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("kind", "name", "version", "sha256", "size_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    version: str
    sha256: str
    size_bytes: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("id", "body")
    ID_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    body: bytes
    def __init__(self, id: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class ReportBody(_message.Message):
    __slots__ = ("at_s", "crash", "log", "outcome", "vitals")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    CRASH_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    VITALS_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    crash: Crash
    log: LogPiece
    outcome: Outcome
    vitals: Vitals
    def __init__(self, at_s: _Optional[float] = ..., crash: _Optional[_Union[Crash, _Mapping]] = ..., log: _Optional[_Union[LogPiece, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., vitals: _Optional[_Union[Vitals, _Mapping]] = ...) -> None: ...

class Vitals(_message.Message):
    __slots__ = ("spool_frames", "spool_bytes", "spool_oldest_age_s", "temperature_celsius", "power_watts", "throttled", "certificate_end_s")
    SPOOL_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_OLDEST_AGE_S_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_END_S_FIELD_NUMBER: _ClassVar[int]
    spool_frames: int
    spool_bytes: int
    spool_oldest_age_s: float
    temperature_celsius: float
    power_watts: float
    throttled: bool
    certificate_end_s: float
    def __init__(self, spool_frames: _Optional[int] = ..., spool_bytes: _Optional[int] = ..., spool_oldest_age_s: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., power_watts: _Optional[float] = ..., throttled: _Optional[bool] = ..., certificate_end_s: _Optional[float] = ...) -> None: ...

class Crash(_message.Message):
    __slots__ = ("kind", "json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    json: bytes
    def __init__(self, kind: _Optional[str] = ..., json: _Optional[bytes] = ...) -> None: ...

class LogPiece(_message.Message):
    __slots__ = ("order_id", "index", "lines")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    order_id: bytes
    index: int
    lines: bytes
    def __init__(self, order_id: _Optional[bytes] = ..., index: _Optional[int] = ..., lines: _Optional[bytes] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("order_id", "done", "refused", "settings")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    order_id: bytes
    done: str
    refused: Refused
    settings: Settings
    def __init__(self, order_id: _Optional[bytes] = ..., done: _Optional[str] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckUpdateRequest(_message.Message):
    __slots__ = ("machine", "python", "jetpack", "number", "digest", "takes", "takes_older", "states")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    JETPACK_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TAKES_FIELD_NUMBER: _ClassVar[int]
    TAKES_OLDER_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    machine: str
    python: str
    jetpack: str
    number: int
    digest: str
    takes: bool
    takes_older: bool
    states: _containers.RepeatedCompositeFieldContainer[UpdateState]
    def __init__(self, machine: _Optional[str] = ..., python: _Optional[str] = ..., jetpack: _Optional[str] = ..., number: _Optional[int] = ..., digest: _Optional[str] = ..., takes: _Optional[bool] = ..., takes_older: _Optional[bool] = ..., states: _Optional[_Iterable[_Union[UpdateState, _Mapping]]] = ...) -> None: ...

class UpdateState(_message.Message):
    __slots__ = ("digest", "state", "cause", "failures")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    state: str
    cause: str
    failures: int
    def __init__(self, digest: _Optional[str] = ..., state: _Optional[str] = ..., cause: _Optional[str] = ..., failures: _Optional[int] = ...) -> None: ...

class CheckUpdateResponse(_message.Message):
    __slots__ = ("digest", "number", "version", "size_bytes", "older")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDER_FIELD_NUMBER: _ClassVar[int]
    digest: str
    number: int
    version: str
    size_bytes: int
    older: bool
    def __init__(self, digest: _Optional[str] = ..., number: _Optional[int] = ..., version: _Optional[str] = ..., size_bytes: _Optional[int] = ..., older: _Optional[bool] = ...) -> None: ...

class FetchUpdateRequest(_message.Message):
    __slots__ = ("digest", "offset", "length")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    length: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...
