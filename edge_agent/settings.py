"""Every setting of the agent: its name, type, default and meaning.

Flags beat the environment (`NEURAL_BRIDGE_EDGE_*`), which beats the TOML file, which beats the
defaults (`protos/process/settings.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from edge_agent.remote.rules import RemoteRules
from edge_agent.shadow_settings import ShadowSettings
from edge_agent.sources.address import shown
from edge_agent.update.settings import UpdateSettings
from projector.models import pictures
from protos.calls import MOST_ACCEPTED_WAIT_MS, PRIORITIES
from protos.crop import MOST_CROP_BYTES
from protos.identity import NAME, NAME_RULE
from protos.process import addresses
from protos.process import settings as configuration
from protos.process.settings import ANY_CASE, Dtype, Host, LogLevel
from protos.process.trace_settings import TraceSettings

PREFIX = "NEURAL_BRIDGE_EDGE_"


class Settings(UpdateSettings, ShadowSettings, TraceSettings):
    """The agent's settings; units end the names, and `description` is what `--help` prints."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    model: Path | None = Field(
        None, description="directory of the small model: an edge export, or a checkpoint for torch"
    )
    device: str = Field(
        "auto",
        min_length=1,
        description="where the small model runs: auto (a GPU if it can be used, else the CPU; the "
        "log says which), cpu, cuda, cuda:1; for an edge export also tensorrt",
    )
    dtype: Dtype = Field(
        "float32",
        description="number format that a checkpoint runs in (an edge export has its own)",
    )
    memory_check: bool = Field(
        True, description="refuse a model that would not fit into free memory before loading it"
    )
    start_limit_s: float = Field(
        900.0,
        ge=0.0,
        le=86400.0,
        description="longest time for loading the model and its first run, seconds; then the "
        "process ends, to be started again; 0: no limit",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the small model; 0: as many as the CPU quota, the affinity "
        "mask and the cores allow",
    )
    server: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="address of the cloud server: host:port, [IPv6]:port, or one of gRPC's forms; "
        "repeatable, the preferred one first: the next is used while it fails (environment: a JSON "
        "list, or one address a line); default: what the service said when this device enrolled, "
        "else 127.0.0.1:50051",
    )
    server_back_s: float = Field(
        30.0,
        gt=0.0,
        le=3600.0,
        description="with several servers: first pause before one that failed is preferred again, "
        "seconds; it doubles each time that it fails again, up to 15 minutes",
    )
    keepalive_s: float = Field(
        240.0,
        ge=0.0,
        le=3600.0,
        description="pings on an idle connection begin at this interval, seconds; it is halved "
        "(down to 20) after each idle connection that was found dead, and doubled for good if the "
        "server finds it too often; 0: no pings",
    )
    proxy: SecretStr = Field(
        SecretStr(""),
        description="HTTP proxy on the way to the server: http://host:port or "
        "http://user:password@host:port (a password belongs into the environment or the file: "
        "others see command lines); it is never logged; default: what grpc_proxy, https_proxy or "
        "http_proxy name; no_proxy names the exceptions",
    )
    ca: str = Field(
        "",
        description="roots for a server certificate that is not from the service's own authority: "
        "a PEM file, or 'system' for the roots of this system",
    )
    server_name: str = Field(
        "", description="name in the server's certificate; default: the host in --server"
    )
    insecure: bool = Field(
        False,
        description="use plain text even if this device is enrolled; without it, a device that is "
        "enrolled or has --ca uses TLS",
    )
    device_name: str = Field(
        "",
        description="this device's name for a service without identities; default: made from the "
        "host's name (an enrolled device uses the name in its certificate)",
    )
    source: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="where pictures come from, repeatable: a path, folder:///path, csi://0, "
        "v4l2:///dev/video0, rtsp://host/stream, file:///clip.mp4, yard://test?count=50; "
        "?name=gate names it (environment: a JSON list, or one address a line)",
    )
    mask: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="region that may never be seen, repeatable: CAMERA=POLYGON with the corners as "
        "shares of width and height ('gate=0,0 0.5,0 0.5,1 0,1'), or CAMERA=FILE.png, in which "
        "everything but white is hidden",
    )
    trigger: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="when a picture of a camera is taken, repeatable: every=10s, "
        "motion=0.01,min=1s,max=60s (share of the picture that moves), request (the service "
        "asks), 'local=is there a fire ?=yes,min=1s' (the small model says so), each also with "
        "priority=alarm; 'gate: every=1m' is for the camera gate, which then has only its own; "
        "default: as often as the model is free",
    )
    camera_memory_mib: int = Field(
        512,
        ge=64,
        le=1 << 20,
        description="most memory of a camera's process; one that takes more is started again",
    )
    questions: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="question asked about every picture, repeatable; without one, each capture's "
        "own questions are asked (environment: a JSON list, or one question a line)",
    )
    question_mode: Literal["infer", "ask", "feedback", "hold"] = Field(
        "infer",
        description="infer: each question travels with the frame; ask: the frame once, then each "
        "question about it by Ask; feedback: the frame once, then the server sends its own "
        "state of it back and the small model answers from that (for bundles with feedback); "
        "hold: send the frame without a question, so that applications can ask about it",
    )
    hold_every_s: float = Field(
        10.0,
        ge=0.0,
        le=86400.0,
        description="with question_mode hold: seconds between captures",
    )
    priority: Annotated[Literal["alarm", "normal", "background"], ANY_CASE] = Field(
        "normal",
        description="priority of this device's requests when the service is busy: alarm before "
        "normal before background",
    )
    feedback_point: str = Field(
        "",
        max_length=64,
        description="operating point of the state that is sent back; default: the bundle's own",
    )
    point: str = Field(
        "auto",
        min_length=1,
        description="operating point: auto (the server's default and advice), a name of the "
        "server's ladder, raw_kv_fp8, or picture",
    )
    target_tokenizer: Path | None = Field(
        None,
        description="for a model that reads texts: directory of the large model's tokenizer (texts "
        "are aligned to its tokens)",
    )
    text_tokens: int = Field(
        128,
        ge=1,
        le=1024,
        description="for a model that reads texts: the longest text, in tokens of either model; "
        "must be the bundle's",
    )
    highest_point: str | None = Field(
        None,
        min_length=1,
        description="most expensive operating point that auto climbs to; default: the server's "
        "default and advice",
    )
    latency_objective_ms: float | None = Field(
        None,
        gt=0.0,
        le=600_000.0,
        description="longest time from sending a frame to its answer, milliseconds: auto keeps to "
        "it by cheaper points and by sending less often; without an objective auto stays "
        "where it is",
    )
    distortion_limit: float | None = Field(
        None,
        gt=0.0,
        le=10.0,
        description="largest mean distortion (relative error of the latents, and attention "
        "dropped) of a point that auto may choose; default: no limit",
    )
    joules_per_answer: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="most energy for one capture and its answer, above what the device takes when "
        "idle, joules: above it points become cheaper, then captures fewer; needs a power monitor "
        "(a Jetson has one); default: no limit",
    )
    celsius_limit: float | None = Field(
        None,
        ge=20.0,
        le=120.0,
        description="temperature of the hottest zone above which captures become fewer and points "
        "cheaper; default: no limit",
    )
    picture_codec: Annotated[Literal["png", "jpeg", "webp"], ANY_CASE] = Field(
        "webp", description="file format of the picture point"
    )
    picture_quality: int = Field(
        80, ge=1, le=100, description="JPEG or WebP quality of the picture point"
    )
    picture_px: int = Field(
        0,
        ge=0,
        le=16384,
        description="longest side of the picture point in pixels; 0 sends it as captured",
    )
    max_picture_pixels: pictures.MaxPicturePixels = pictures.MAX_PIXELS
    selector: str | None = Field(
        None, description="token selector; default: the one that the bundle names"
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="tokens kept per picture; default: the operating point's own",
    )
    token_threshold: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="keep the fewest tokens whose scores reach this share of their sum",
    )
    delta: bool = Field(
        False,
        description="for a camera that stands still: send only the tokens that changed since the "
        "last frame that was accepted",
    )
    max_new_tokens: int = Field(16, ge=1, le=4096, description="longest answer, in tokens")
    in_flight: int = Field(
        8, ge=1, le=1024, description="frames on their way at once (the server may allow fewer)"
    )
    linger_ms: int = Field(
        0,
        ge=0,
        le=600_000,
        description="longest time that a frame waits for others to share its message, which saves "
        "bytes, milliseconds; an alarm never waits, and takes the waiting frames along. A message "
        "has at most in_flight frames (the server may allow fewer)",
    )
    ack_wait_ms: int = Field(
        0,
        ge=0,
        le=MOST_ACCEPTED_WAIT_MS,
        description="longest time that the service may keep back the acknowledgement of a frame "
        "without a question, so that several share a packet and draw one packet up instead of one "
        "each, milliseconds; half of in_flight frames never wait longer, nor any frame more than "
        "three quarters of answer_timeout_s",
    )
    output: str = Field("-", min_length=1, description="file of JSON lines; - is standard output")
    resume: bool = Field(
        False, description="skip questions that the output already answers (`run`)"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of /metrics, /healthz and /readyz; 0 takes a free one; default: no port",
    )
    metrics_host: Host = Field("127.0.0.1", description="address that port is bound to")
    state_dir: Path | None = Field(
        None,
        description="directory of this device's identity and of encoders, by digest; default: "
        "neural-bridge/edge in $XDG_STATE_HOME or ~/.local/state, or memory if that cannot be "
        "written",
    )
    spool: Path | None = Field(
        None,
        description="directory where frames wait on the disk until they are answered (`run`); "
        "default for a source that does not end: spool in the state directory; a folder that is "
        "read once waits in memory instead",
    )
    spool_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="bytes on the disk that waiting frames may take",
    )
    spool_age_s: float = Field(
        7 * 86400.0,
        gt=0.0,
        le=366 * 86400.0,
        description="how long a frame may wait on the disk, in seconds that the device is on",
    )
    when_full: Literal["drop_oldest", "thin_out"] = Field(
        "drop_oldest",
        description="which waiting frames go when the spool is full, lowest priority first: the "
        "oldest, or every second one",
    )
    spool_key: Path | None = Field(
        None,
        description="file with a key (32 bytes, or 64 hexadecimal digits) that encrypts waiting "
        "frames on the disk; default: they are not encrypted",
    )
    give_up_s: float | None = Field(
        None,
        ge=0.0,
        le=86400.0,
        description="how long a frame is kept and sent again before it ends with an error, "
        "seconds; 0: as long as it takes (default: 0 in `run`, 180 in the other commands and with "
        "edge_fallback)",
    )
    retries: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="times that a frame is sent again; default: as often as fits into give_up_s",
    )
    backoff_s: float = Field(
        0.2, gt=0.0, le=60.0, description="upper end of the first pause between attempts, seconds"
    )
    backoff_max_s: float = Field(
        10.0, gt=0.0, le=3600.0, description="upper end of any pause between attempts, seconds"
    )
    connect_timeout_s: float = Field(
        10.0,
        gt=0.0,
        le=600.0,
        description="longest wait for Negotiate, and for the next piece of an encoder, seconds",
    )
    answer_timeout_s: float = Field(
        60.0,
        gt=0.0,
        le=3600.0,
        description="longest wait for an answer before its frame is sent again, seconds",
    )
    guard: Annotated[Literal["off", "measure", "edge_only", "picture"], ANY_CASE] = Field(
        "measure",
        description="what follows when a frame's answer would probably differ from the picture's: "
        "measure only reports it; edge_only sends more bits, then more tokens, then lets "
        "the small model answer; picture sends the picture itself before that",
    )
    guard_limit: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="probability of a different answer that the guard accepts; default: the "
        "bundle's own",
    )
    allow_crop: bool = Field(
        False,
        description="let the service have a crop of a picture where it is unsure of the frame's "
        "answer; masks are painted over first",
    )
    crop_bytes: int = Field(
        16 << 10, ge=64, le=MOST_CROP_BYTES, description="longest file of a crop, in bytes"
    )
    crop_share: float = Field(
        0.75,
        gt=0.0,
        le=1.0,
        description="largest share of the picture's width, and of its height, in a crop",
    )
    crop_memory_mib: int = Field(
        64,
        ge=1,
        le=1 << 20,
        description="memory of the pictures held for crops, in mebibytes; the oldest go first",
    )
    edge_only_too: bool = Field(
        False, description="answer every question with the small model itself as well"
    )
    edge_fallback: bool = Field(
        False,
        description="if the service gives no answer, answer with the small model (marked as "
        "a fallback, with its cause)",
    )
    cascade: bool = Field(
        False,
        description="answer with the small model where it is confident, and send only the other "
        "questions up (for a model with a confidence: projector calibrate-edge)",
    )
    cascade_limit: float = Field(
        0.9,
        ge=0.0,
        le=1.0,
        description="least probability of a right answer at which the small model's answer counts",
    )
    progress: bool | None = Field(
        None, description="progress bar on standard error; default: on a terminal only"
    )
    log_bytes: int = Field(
        8 << 20,
        ge=0,
        le=1 << 40,
        description="bytes on the disk for the newest log lines, in logs in the state directory "
        "(`run`); 0: none",
    )
    log_level: LogLevel = Field(
        "info", description="least severe event that is logged (JSON lines on standard error)"
    )

    remote: RemoteRules = Field(
        RemoteRules(),
        description="what the service may do with this device: section [remote] of the file",
    )

    def without_secrets(self) -> dict[str, Any]:
        """Every setting as plain JSON, addresses without user and password."""
        values = self.model_dump(mode="json")
        values["source"] = [shown(address) for address in self.source]
        return values

    @property
    def priority_number(self) -> int:
        """The priority's number on the wire."""
        return PRIORITIES.index(self.priority)

    @field_validator("questions", "source", "mask", "trigger", "server", mode="before")
    @classmethod
    def _split_lines(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [line for line in value.splitlines() if line.strip()]

    @field_validator("questions")
    @classmethod
    def _no_blank_question(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not question.strip() for question in value):
            raise ValueError("a question is blank")
        return value

    @field_validator("highest_point")
    @classmethod
    def _no_picture(cls, value: str | None) -> str | None:
        if value == "picture":
            raise ValueError("auto does not climb to pictures; --point picture sends them always")
        return value

    @field_validator("token_budget", "token_threshold")
    @classmethod
    def _one_budget(cls, value: float | None, info: ValidationInfo) -> float | None:
        # Fields are validated in their order: the limit is declared before both.
        if value is not None and info.data.get("distortion_limit") is not None:
            raise ValueError(
                "not with --distortion-limit, which is about operating points as measured"
            )
        return value

    @field_validator("linger_ms")
    @classmethod
    def _linger_within_objective(cls, value: int, info: ValidationInfo) -> int:
        objective_ms = info.data.get("latency_objective_ms")
        if objective_ms is not None and value >= objective_ms:
            raise ValueError(
                f"frames that wait {value} ms miss the latency objective of {objective_ms:g} ms"
            )
        return value

    @field_validator("device_name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise ValueError(NAME_RULE)
        return value

    @field_validator("server")
    @classmethod
    def _host_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(configuration.checked(addresses.target, one) for one in value if one)
        if len(set(found)) < len(found):
            raise ValueError("a server is named twice")
        return found


def load(
    flags: Mapping[str, Any],
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Put the settings together from flags, environment, a TOML file and the defaults.

    Args:
        flags: values given on the command line, by setting name; absent names were not given.
        config: TOML file with setting names as its keys; the variable NEURAL_BRIDGE_EDGE_CONFIG
            names it if no flag does.
        environ: the environment; the process's own by default.

    Raises:
        ConfigError: the file cannot be read or parsed, a key is unknown, or a value is unusable.
    """
    return configuration.load(Settings, flags, config, environ, listing="edge-agent run --help")
