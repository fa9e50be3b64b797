"""What the tests of the service play with: fake edge models, random bundles, a server process."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from cloud_server.engine.jobs import Offer
from cloud_server.settings import PREFIX
from projector.bundle.canary import CanaryFrame, CanarySet
from projector.bundle.describe import FORMAT, canonical_json
from projector.bundle.files import FILES
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel, feature_count
from protos.calls import SESSION_METADATA_KEY
from protos.distortion import Distortion
from protos.entropy.tables import EntropyTables
from protos.header import Header, pack_header
from protos.layout import KVLayout, RopeSpec
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.points import PICTURE_POINT, RAW_KV_FP8, OperatingPoint, points_to_json
from protos.quantize import QUANTIZERS
from protos.requests import seal, seal_ask
from protos.state import KVState
from tests.fakes.pages import fetch

RANK = 6
DEVICE = {
    PREFIX + "PRECISION": "float32",
    **{name: value for name, value in os.environ.items() if name == PREFIX + "DEVICE"},
}
"""Engines under test compute as the model that answers are compared with, in float32.
NEURAL_BRIDGE_CLOUD_DEVICE=cuda puts all of them on a GPU."""
FP8, INT8, NONE, UNIFORM = 1, 2, 3, 4
QUESTION = "what is left of the red car ?"


def source_layout(name: str, grid: tuple[int, int] = (4, 4)) -> KVLayout:
    return KVLayout(
        model_id=name,
        layers=2,
        kv_heads=2,
        head_dim=4,
        rope=RopeSpec(10000.0, 4, False, "default", 1.0, (1.0, 0.01)),
        cache_dtype="float32",
        grid=grid,
        tokenizer_digest="0" * 64,
        weights_digest=name.encode().hex().ljust(64, "0"),
    )


SOURCE = source_layout("edge-a")
OTHER_SOURCE = source_layout("edge-b")
STRANGER = source_layout("edge-c")


def state(seed: int, layout: KVLayout = SOURCE) -> KVState:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((layout.tokens, layout.state_dim), dtype=np.float32)
    attention = rng.random(layout.tokens, dtype=np.float32)
    return KVState.from_flat(x, layout, np.arange(layout.tokens), attention / attention.sum())


def encoder(layout: KVLayout = SOURCE, seed: int = 0) -> Encoder:
    """Random, and fitted once: its entropy tables take longer than most tests."""
    return _encoder(layout, seed)


@functools.cache
def _encoder(layout: KVLayout, seed: int) -> Encoder:
    rng = np.random.default_rng(seed)
    d = layout.state_dim
    projection = rng.standard_normal((d, RANK)).astype(np.float32) / np.sqrt(d).astype(np.float32)
    steps = np.full(RANK, 0.02, dtype=np.float32)
    symbols = np.rint(rng.standard_normal((4096, RANK)) / 0.02).astype(np.int64)
    points = (
        OperatingPoint(FP8, "fp8", quantizer="fp8_e4m3", rank=RANK, steps="fp8"),
        OperatingPoint(INT8, "int8", quantizer="int8", rank=RANK, steps="int8"),
        OperatingPoint(NONE, "none", quantizer="none", rank=RANK),
        OperatingPoint(UNIFORM, "uniform", quantizer="uniform", tokens=6, rank=RANK, steps="uni"),
        RAW_KV_FP8,
    )
    return Encoder(
        source_fingerprint=layout.fingerprint,
        points=points,
        x_mean=np.zeros(d, dtype=np.float32),
        x_scale=np.ones(d, dtype=np.float32),
        projection=projection.astype(np.float32),
        reconstruction=np.linalg.pinv(projection).astype(np.float32),
        centre=np.full((layout.tokens, RANK), 0.1, dtype=np.float32),
        latent_mean=np.zeros(RANK, dtype=np.float32),
        latent_inv_cov=np.eye(RANK, dtype=np.float32),
        raw_scale=np.full(d, 0.02, dtype=np.float32),
        steps={"fp8": steps, "int8": steps * 2, "uni": steps},
        entropy={"uni": EntropyTables.fit(symbols)},
    )


def random_cloud(target: KVLayout, seed: int = 3) -> Any:
    """A cloud half with random maps: answers mean nothing, but depend on every latent."""
    import torch

    from projector.maps import ServedMap
    from projector.maps.factors import Factors
    from projector.serving.backends import CloudFiles
    from projector.serving.export import export

    torch.manual_seed(seed)
    made = Factors(r=RANK).make(SOURCE, target).eval()
    torch.nn.init.normal_(made.get_parameter("onward"), std=RANK**-0.5)
    return CloudFiles(weights=made.to_bytes(), graph=export(ServedMap(made)).graph)


def write_random_bundle(
    path: Path,
    target: KVLayout,
    layout: KVLayout,
    cloud: Any,
    version: int = 1,
    certificate: dict[str, Any] | None = None,
    service_risk: Any = None,
) -> Path:
    from projector.bundle.write import write_bundle

    write_bundle(
        path,
        id=f"random-{layout.model_id}",
        version=version,
        source=layout,
        target=target,
        encoder=encoder(layout),
        cloud=cloud,
        certificate=certificate or {"made": "at random"},
        default_point=FP8,
        ladder=[UNIFORM, FP8],
        service_risk=service_risk,
    )
    return path


@dataclass
class Client:
    """A minimal edge: negotiates and seals frames; does nothing on its own."""

    channel: grpc.Channel
    layout: KVLayout = SOURCE
    codecs: tuple[str, ...] = tuple(QUANTIZERS)
    known_digest: str = ""
    session: Any = None
    _ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 30)))
    _used: dict[bytes, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stub = bridge_pb2_grpc.BridgeStub(self.channel)
        self.encoder = encoder(self.layout)

    def negotiate(self) -> Any:
        self.session = self.stub.Negotiate(
            pb.NegotiateRequest(
                protocol_version=1,
                source_layout_json=self.layout.versions[-1].to_json(),
                source_settings_digest=self.layout.settings_digest,
                codecs=self.codecs,
                agent_version="test",
                bundle_digest=self.known_digest,
            ),
            timeout=20,
        )
        return self.session

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((SESSION_METADATA_KEY, self.session.session_id),)

    def request_id(self) -> bytes:
        return next(self._ids).to_bytes(8, "big")

    def number(self, wished: int) -> int:
        """A frame number of its own in this session: the wished one, or the next free."""
        used = self._used.setdefault(self.session.session_id, set())
        while wished in used:
            wished += 1000
        used.add(wished)
        return wished

    def frame(
        self,
        seed: int = 0,
        question: str = QUESTION,
        point: int = FP8,
        number: int | None = None,
        request_id: bytes | None = None,
        limit: int = 6,
        constants: bytes | None = None,
    ) -> pb.InferRequest:
        encoded = self.encoder.encode(state(seed, self.layout), self.encoder.point(point))
        if number is None:
            number = self.number(seed)
        header = Header(point, number, encoded.kept, 0, encoded.distortion)
        return self.sealed(header, encoded.payload, question, request_id, limit, constants)

    def picture(
        self, file: bytes, number: int | None = None, question: str = QUESTION, cause: str = ""
    ) -> pb.InferRequest:
        number = self.number(0) if number is None else number
        none = np.zeros(0, dtype=np.bool_)
        header = Header(PICTURE_POINT, number, none, 0, Distortion(), cause=cause)
        return self.sealed(header, file, question)

    def sealed(
        self,
        header: Header,
        body: bytes,
        question: str = QUESTION,
        request_id: bytes | None = None,
        limit: int = 6,
        constants: bytes | None = None,
    ) -> pb.InferRequest:
        packed, payload = pack_header(header, body)
        return seal(
            constants or self.session.session_constants,
            self.request_id() if request_id is None else request_id,
            packed,
            payload,
            question,
            limit,
        )

    def infer(self, *requests: pb.InferRequest | bytes) -> list[pb.InferEvent]:
        """One stream of requests, sent at once; every event that comes back."""
        raw = [r if isinstance(r, bytes) else r.SerializeToString() for r in requests]
        call = self.channel.stream_stream(
            "/neuralbridge.v1.Bridge/Infer", response_deserializer=pb.InferEvent.FromString
        )
        return list(call(iter(raw), metadata=self.metadata, timeout=120))

    def ask(self, number: int, question: str, limit: int = 6) -> list[pb.InferEvent]:
        """Another question about the scene of that number."""
        constants, session = self.session.session_constants, self.session.session_id
        request = seal_ask(constants, session, self.request_id(), number, question, limit)
        return list(self.stub.Ask(request, timeout=30))

    def answer(self, request: pb.InferRequest) -> pb.Answer:
        events = self.infer(request)
        assert events[-1].HasField("answer"), events
        return events[-1].answer


def by_id(events: list[pb.InferEvent], request_id: bytes) -> list[pb.InferEvent]:
    return [event for event in events if event.request_id == request_id]


def picture_file(seed: int = 0, kind: str = "PNG") -> bytes:
    import io

    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((48, 48), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Server:
    """A `cloud-server serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int
    log: list[str] = field(repr=False)
    ports: dict[str, int] = field(default_factory=dict)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the metrics port."""
        return fetch(self.metrics_port, path)

    def metric(self, name: str) -> float:
        """A metric's value, by its whole name and labels; 0 if it is not there."""
        found = re.findall(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.M)
        return float(found[0]) if found else 0.0

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.max_send_message_length", -1),
            ],
        )


@contextmanager
def running_server(
    model: Path, bundles: list[Path], *flags: str, timeout_s: float = 240.0
) -> Iterator[Server]:
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", str(model)]
    for bundle in bundles:
        command += ["--bundles", str(bundle)]
    command += ["--port", "0", "--metrics-port", "0", "--threads", "1", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | DEVICE | {"OMP_NUM_THREADS": "1"},
    )
    log: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    stderr = process.stderr
    reader = threading.Thread(target=lambda: log.extend(stderr), daemon=True)
    reader.start()
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, "the server ended before it was ready:\n" + "".join(log)
        ready = json.loads(line)
        ports = {name: port for name, port in ready.items() if name != "event"}
        yield Server(process, ready["port"], ready["metrics_port"], log, ports)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=5)
        process.stdout.close()


def describe(folder: Path, version: int = 1, **fake: Any) -> str:
    """Writes the description of a bundle that only the fake engine has; returns its digest.

    Args:
        folder: made if missing.
        version: its number.
        fake: what the fake engine finds in `fake.json`.
    """
    made = encoder()
    plain: dict[str, Any] = {
        "format": FORMAT,
        "id": "fake",
        "version": version,
        "source_layout": json.loads(SOURCE.to_json()),
        "target_layout": json.loads(SOURCE.to_json()),
        "rank": made.rank,
        "files": {name: {"bytes": 1, "sha256": "0" * 64} for name in FILES},
        "operating_points": json.loads(points_to_json(made.points)),
        "default_point": FP8,
        "ladder": [UNIFORM, FP8],
    }
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_bytes(canonical_json(plain))
    (folder / "fake.json").write_text(json.dumps(fake | {"version": version}))
    return str(plain["digest"])


def canary(*answers: str, seen: str = "0", question: str = "count 1") -> dict[str, Any]:
    """A canary set for the fake engine: a frame for each answer that its maker recorded."""
    made, frames = encoder(), []
    for number, answer in enumerate(answers):
        encoded = made.encode(state(number), made.point(FP8))
        header, payload = pack_header(Header(FP8, number, encoded.kept), encoded.payload)
        frames.append(CanaryFrame(header, payload, question, seen, answer))
    plain: dict[str, Any] = json.loads(CanarySet(4, tuple(frames)).to_bytes())
    return plain


@functools.cache
def offer(risky: bool = False) -> Offer:
    """Of a bundle that no engine has; `risky`: its guard finds every answer risky (0.88)."""
    made = encoder()
    none = np.zeros(feature_count(made.rank), np.float32)
    guard = RiskModel(none, none, 2.0, 0.1).to_bytes() if risky else b""
    return Offer(
        bundle_id="fake",
        bundle_version="1",
        bundle_digest="b" * 64,
        encoder_digest=made.digest,
        source_fingerprint=SOURCE.fingerprint,
        source_layout_json=SOURCE.to_json(),
        target_layout_json="{}",
        operating_points_json=points_to_json(made.points),
        default_point="fp8",
        ladder=["uniform", "fp8"],
        encoder=made.to_bytes(),
        service_risk=guard,
    )
