"""Every setting of the service: its name, type, default, meaning and where its value came from.

Flags beat the environment (`NEURAL_BRIDGE_CLOUD_*`), which beats the TOML file, which beats the
defaults (`protos/process/settings.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from cloud_server.bundle_settings import BundleSettings
from cloud_server.exposure import Exposure
from cloud_server.page_settings import PageSettings
from cloud_server.served import require_bundle, require_model
from cloud_server.shadow_settings import ShadowSettings
from cloud_server.state.quota import Quota
from cloud_server.telemetry_settings import TelemetrySettings
from projector.bundle.keys import TrustedKeys
from protos.crop import MOST_CROP_BYTES
from protos.errors import ConfigError
from protos.limits import Limits
from protos.process import settings as configuration
from protos.process.settings import Dtype, LogLevel

PREFIX = "NEURAL_BRIDGE_CLOUD_"
SETTINGS_FILE = "settings.toml"
"""The settings file in the directory that `cloud-server init` makes."""


class Settings(BundleSettings, PageSettings, ShadowSettings, Exposure, TelemetrySettings):
    """The service's settings; units end the names, and `description` is what `--help` prints."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    model: Path | None = Field(None, description="directory of the large model's checkpoint")
    engine: str = Field("transformers", description="what runs the large model: transformers")
    engines: int = Field(
        1,
        ge=1,
        le=64,
        description="number of engine processes; with --device cuda they run on cuda:0, cuda:1 and "
        "so on; on a CPU they share the threads",
    )
    quarantine_dir: Path | None = Field(
        None,
        description="owner-only directory for the bytes of requests that ended an engine twice; by "
        "default they are not written",
    )
    engine_memory_bytes: int = Field(
        0,
        ge=0,
        description="resident memory above which an engine is replaced, in bytes; 0 means 1.5 "
        "times its memory at rest plus its bounds on scenes and answers",
    )
    device: str = Field("cpu", description="torch device of the large model (cpu, cuda, cuda:0)")
    dtype: Dtype = Field("float32", description="number format the large model runs in")
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the engine process; 0: as many as the CPU quota, the affinity "
        "mask and the cores allow",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of matrix products in the map and in a float32 large model: "
        "bfloat16 is faster on processors that multiply it, and rounds a little; auto: bfloat16 on "
        "a CPU that does, else float32",
    )
    backend: str = Field(
        "auto",
        description="what runs the projector: onnxruntime, torch, bfloat16 (torch, products in "
        "bfloat16), tensorrt, or auto: bfloat16 with that precision, else onnxruntime",
    )
    backend_device: str = Field(
        "cpu", min_length=1, description="device of the projector, as its backend names devices"
    )
    plan_cache: Path | None = Field(
        None,
        description="owner-only folder of compiled TensorRT plans (default: DIRECTORY/plans)",
    )
    engine_socket_dir: Path | None = Field(
        None,
        description="owner-only directory of the socket between front end and engine; by default a "
        "temporary one",
    )
    batch_size: int = Field(
        32, ge=1, le=4096, description="questions that are answered in one running batch"
    )
    queue_requests: int = Field(
        256, ge=1, le=1_000_000, description="requests held at once; more are refused (overloaded)"
    )
    queue_memory_bytes: int = Field(
        256 << 20, ge=1 << 20, description="memory of the requests held, in bytes"
    )
    outbox_memory_bytes: int = Field(
        64 << 20,
        ge=1 << 16,
        description="bound on the events that one tenant's clients have not read yet, in bytes; "
        "above it the call with most of them is ended",
    )
    reader_s: float = Field(
        60.0,
        gt=0.0,
        le=3600.0,
        description="longest time that a client may leave events unread before its call is ended, "
        "seconds",
    )
    queue_s: float = Field(
        10.0,
        gt=0.0,
        le=3600.0,
        description="longest wait of a request for its turn, seconds; a request that would wait "
        "longer is refused at once, with a time to retry",
    )
    active_s: float = Field(
        5.0,
        ge=0.0,
        le=3600.0,
        description="how long a device counts as active after a request, seconds; while others are "
        "active, no device has more requests in the engine than its share; 0 turns shares off",
    )
    device_requests_per_s: float = Field(
        200.0, ge=0.0, le=1e6, description="requests of one device a second; 0 for no bound"
    )
    device_bytes_per_s: float = Field(
        float(8 << 20),
        ge=0.0,
        le=1e12,
        description="bytes that one device may send a second; 0 for no bound",
    )
    device_concurrent: int = Field(
        128,
        ge=0,
        le=1_000_000,
        description="requests of one device under way at once; 0 for no bound",
    )
    tenant_requests_per_s: float = Field(
        0.0, ge=0.0, le=1e6, description="requests of one tenant a second; 0 for no bound"
    )
    tenant_bytes_per_s: float = Field(
        0.0, ge=0.0, le=1e12, description="bytes that one tenant may send a second; 0 for no bound"
    )
    tenant_concurrent: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="requests of one tenant under way at once; 0 for no bound",
    )
    session_requests: int = Field(
        64, ge=1, le=1_000_000, description="requests of one session held at once"
    )
    engine_requests: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="requests sent to each engine at once, one of each session in turn; 0 takes "
        "twice the batch",
    )
    resend_window_s: float = Field(
        30.0,
        gt=0.0,
        le=3600.0,
        description="how long a request whose connection broke waits, last in the queue, to be "
        "sent again, seconds",
    )
    scene_memory_bytes: int = Field(
        256 << 20, ge=1 << 10, description="scenes kept in the engine for later questions, in bytes"
    )
    latent_memory_bytes: int = Field(
        64 << 20, ge=1 << 10, description="decoded frames kept for delta frames to change, in bytes"
    )
    held_scene_bytes: int = Field(
        128 << 20,
        ge=1 << 10,
        description="memory of the frames kept for rebuilding scenes in any engine, in bytes; when "
        "full, the largest tenant loses its oldest ones",
    )
    device_scenes: int = Field(64, ge=1, le=1_000_000, description="scenes kept for one device")
    answer_memory: int = Field(
        4096, ge=1, le=10_000_000, description="answers kept for repeated request ids, a count"
    )
    answer_memory_bytes: int = Field(
        16 << 20, ge=1 << 10, description="memory of the answers kept, in bytes"
    )
    sessions: int = Field(
        65536,
        ge=1,
        le=10_000_000,
        description="sessions kept that brought a good frame; above that the address that has most "
        "loses its longest unused one",
    )
    fresh_sessions: int = Field(
        8192,
        ge=1,
        le=10_000_000,
        description="new sessions kept, which brought no good frame yet; above that the address "
        "that has most loses its longest unused one",
    )
    negotiations_per_s: float = Field(
        50.0,
        ge=0.0,
        le=1e6,
        description="sessions that one device may open a second, and four times as many streams; "
        "where callers are not known, one address (IPv6: one /64); 0 for no bound, as behind a "
        "proxy that hides addresses",
    )
    negotiation_burst: int = Field(
        500, ge=1, le=10_000_000, description="sessions that one device or address may open at once"
    )
    max_payload_bytes: int = Field(
        1 << 20, ge=16, le=256 << 20, description="longest payload of a frame, in bytes"
    )
    max_header_bytes: int = Field(
        64, ge=20, le=4096, description="longest header of a frame, in bytes"
    )
    max_question_bytes: int = Field(
        512, ge=1, le=1 << 20, description="longest question, in bytes of UTF-8"
    )
    max_tokens: int = Field(4096, ge=1, le=65535, description="image tokens of a frame's grid")
    max_picture_bytes: int = Field(
        4 << 20, ge=16, le=256 << 20, description="longest picture file, in bytes"
    )
    max_picture_px: int = Field(
        4096, ge=1, le=16384, description="largest width and height of a picture, in pixels"
    )
    picture_px_per_s: float = Field(
        4e6,
        ge=0.0,
        le=1e12,
        description="pixels of pictures decoded for one session a second; 0 for no bound",
    )
    picture_burst_px: float = Field(
        float(1 << 24), gt=0.0, le=1e12, description="pixels decoded for one session at once"
    )
    crop_gain: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the risk that a crop takes away, as `python -m benchmarks.crops` "
        "measured it for this pair of models; --crop-limit needs it",
    )
    crop_limit: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="above this risk of a different answer a device that allows it is asked for a "
        "crop of its picture; default: never",
    )
    crop_share: float = Field(
        0.67,
        gt=0.0,
        le=1.0,
        description="largest share of the picture's width and height in a crop",
    )
    crop_attention: float = Field(
        0.6,
        gt=0.0,
        le=1.0,
        description="share of the question's attention that a crop has to hold: the smallest such "
        "part is asked for, none if none is small enough",
    )
    crop_bytes: int = Field(
        16 << 10, ge=64, le=MOST_CROP_BYTES, description="longest file of a crop, in bytes"
    )
    crop_wait_s: float = Field(
        5.0, gt=0.0, le=600.0, description="how long an answer waits for its crop, seconds"
    )
    max_in_flight: int = Field(
        16, ge=1, le=65535, description="requests of one stream that may wait for their answer"
    )
    max_new_tokens: int = Field(32, ge=1, le=65535, description="longest answer, in tokens")
    max_connections: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="gRPC connections at once (an agent has two); more are closed as they come; 0 "
        "takes as many as the limit of open files allows",
    )
    metrics_connections: int = Field(
        64,
        ge=1,
        le=65535,
        description="connections of the metrics port at once; more are closed as they come",
    )
    max_calls: int = Field(
        128, ge=1, le=65535, description="calls that may be open at once on one connection"
    )
    caller_calls: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="calls and HTTP requests that one device or key may have open at once; 0 for "
        "no bound",
    )
    device_calls: int = Field(
        16,
        ge=0,
        le=1_000_000,
        description="calls that one device may have open at once, at most --caller-calls; each may "
        "bring a message of up to --max-picture-bytes and 16 MiB before it is refused; 0 for no "
        "bound of its own",
    )
    handshake_timeout_s: float = Field(
        10.0,
        gt=0.0,
        le=600.0,
        description="a connection that does not start HTTP/2 in this time is closed, seconds",
    )
    keepalive_s: float = Field(
        60.0,
        gt=0.0,
        le=7200.0,
        description="silence after which a connection is asked whether it is still there, seconds",
    )
    keepalive_timeout_s: float = Field(
        20.0,
        gt=0.0,
        le=600.0,
        description="a connection that does not answer that in this time is closed, seconds",
    )
    idle_connection_s: float = Field(
        300.0,
        gt=0.0,
        le=86400.0,
        description="a connection without any call is closed after this time, seconds",
    )
    log_burst: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="log lines of one kind of refusal per interval; more are logged as a count",
    )
    log_interval_s: float = Field(
        10.0, gt=0.0, le=3600.0, description="interval of --log-burst, seconds"
    )
    heartbeat_s: float = Field(
        1.0,
        gt=0.0,
        le=60.0,
        description="pause between heartbeats of front end and engine, seconds",
    )
    heartbeat_timeout_s: float = Field(
        5.0,
        gt=0.0,
        le=600.0,
        description="time without a heartbeat after which an engine counts as gone, seconds",
    )
    engine_stall_s: float = Field(
        30.0, gt=0.0, le=3600.0, description="longest single step of a busy engine, seconds"
    )
    spare: bool = Field(
        True,
        description="keep a process with the model loaded, from which an engine that died is "
        "replaced at once; the two share the memory of the weights (on a GPU it holds only the "
        "imported libraries)",
    )
    engine_start_s: float = Field(
        600.0, gt=0.0, le=7200.0, description="longest time an engine may take to load, seconds"
    )
    restart_backoff_s: float = Field(
        0.2, gt=0.0, le=60.0, description="upper end of the first pause before a restart, seconds"
    )
    restart_backoff_max_s: float = Field(
        30.0, gt=0.0, le=3600.0, description="upper end of any pause before a restart, seconds"
    )
    drain_s: float = Field(
        20.0, ge=0.0, le=3600.0, description="time for requests under way at SIGTERM, seconds"
    )
    log_level: LogLevel = Field(
        "info", description="least severe event that is logged (JSON lines on standard error)"
    )

    @property
    def other_connections(self) -> int:
        """Connections at once of the ports beside gRPC's."""
        http = 0 if self.http_port is None else self.api_connections
        return self.metrics_connections + http

    @property
    def calls_of_device(self) -> int:
        """Calls that one device may have open at once; 0 for no bound."""
        return min(filter(None, (self.device_calls, self.caller_calls)), default=0)

    @property
    def device_quota(self) -> Quota:
        """Default quota of a device."""
        return Quota(
            requests_per_s=self.device_requests_per_s,
            bytes_per_s=self.device_bytes_per_s,
            byte_burst=max(2 * self.device_bytes_per_s, self.limits.max_request_bytes),
            concurrent=self.device_concurrent,
            scenes=self.device_scenes,
        )

    @property
    def tenant_quota(self) -> Quota:
        """Default quota of a tenant's devices together."""
        return Quota(
            requests_per_s=self.tenant_requests_per_s,
            bytes_per_s=self.tenant_bytes_per_s,
            concurrent=self.tenant_concurrent,
        )

    @property
    def limits(self) -> Limits:
        """The bounds that `Negotiate` announces and the front end enforces."""
        return Limits(
            max_payload_bytes=self.max_payload_bytes,
            max_header_bytes=self.max_header_bytes,
            max_question_bytes=self.max_question_bytes,
            max_tokens=self.max_tokens,
            max_picture_bytes=self.max_picture_bytes,
            max_picture_px=self.max_picture_px,
            max_in_flight=self.max_in_flight,
            max_new_tokens=self.max_new_tokens,
        )

    @property
    def plans(self) -> Path | None:
        """Folder of compiled plans; None to keep none."""
        if self.plan_cache is not None or self.directory is None:
            return self.plan_cache
        return self.directory / "plans"

    @property
    def model_path(self) -> Path:
        """The model's directory.

        Raises:
            ConfigError: none is set.
        """
        if self.model is None:
            raise ConfigError(
                f"no model: give --model, {PREFIX}MODEL or 'model' in the configuration file"
            )
        return self.model

    def check_paths(self) -> None:
        """Check what the settings point to, without loading it.

        Raises:
            ConfigError: no model or no bundle is set, crops have no gain, or see `check_exposure`.
            ModelError: the model's directory holds no checkpoint.
            BundleMissingError: a bundle's directory holds no bundle.
        """
        self.check_exposure()
        if self.crop_limit is not None and not self.crop_gain:
            raise ConfigError(
                "--crop-limit needs --crop-gain: python -m benchmarks.crops measures how much of "
                "the risk a crop takes away (of the reference models: nothing)"
            )
        require_model(self.model_path)
        if not self.bundles and self.directory is None:
            raise ConfigError(
                f"no bundle: give --bundles, {PREFIX}BUNDLES or 'bundles' in the configuration file"
            )
        if self.trusted_keys is not None:
            TrustedKeys.load(self.trusted_keys)
        for bundle in self.bundles:
            require_bundle(bundle)


def load(
    flags: Mapping[str, Any],
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Put the settings together from flags, environment, a TOML file and the defaults.

    Args:
        flags: values given on the command line, by setting name; absent names were not given.
        config: TOML file with setting names as its keys; the variable NEURAL_BRIDGE_CLOUD_CONFIG
            names it if no flag does, and else DIRECTORY/settings.toml is taken if it is there.
        environ: the environment; the process's own by default.

    Raises:
        ConfigError: the file cannot be read or parsed, a key is unknown, or a value is unusable.
    """
    config = config_file(flags, config, environ)
    return configuration.load(Settings, flags, config, environ, listing="cloud-server serve --help")


def config_file(
    flags: Mapping[str, Any],
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path | None:
    """The settings file that `load` reads with the same arguments; None without one."""
    variables = os.environ if environ is None else environ
    named = config or variables.get(f"{PREFIX}CONFIG")
    if named:
        return Path(named)
    directory = flags.get("directory") or variables.get(f"{PREFIX}DIRECTORY")
    found = Path(directory) / SETTINGS_FILE if directory else None
    return found if found is not None and found.is_file() else None


def from_json(text: str) -> Settings:
    """Settings that another process of this service wrote with `Settings.model_dump_json`."""
    return Settings.model_validate_json(text)
