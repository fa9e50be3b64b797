"""A small model without a model: states made from a picture's pixels, and an encoder that fits."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge_agent.metrics import Metrics
from edge_agent.prefill import Sight
from edge_agent.uplink.crops import Crops
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.retry import RetryPolicy
from edge_agent.uplink.session import Session
from edge_agent.uplink.shadows import Shadows
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from projector.models.running import Running
from protos.entropy.tables import EntropyTables
from protos.errors import PictureError
from protos.layout import KVLayout, RopeSpec
from protos.limits import Limits
from protos.points import PICTURE, RAW_KV_FP8, OperatingPoint
from protos.process import logs
from protos.state import KVState

LAYOUT = KVLayout(
    model_id="fake",
    layers=2,
    kv_heads=1,
    head_dim=4,
    rope=RopeSpec(10000.0, 4, False, "default", 1.0, (1.0, 0.01)),
    cache_dtype="float32",
    grid=(3, 3),
    tokenizer_digest="0" * 64,
    weights_digest="1" * 64,
)
RANK = 4


def state_of(picture: Image.Image) -> KVState:
    """A state that depends on the picture only."""
    pixels = np.asarray(picture.convert("RGB").resize((8, 8)), dtype=np.float32)
    rng = np.random.default_rng(int(pixels.sum()))
    x = rng.standard_normal((LAYOUT.tokens, LAYOUT.state_dim), dtype=np.float32)
    attention = rng.random(LAYOUT.tokens, dtype=np.float32)
    return KVState.from_flat(x, LAYOUT, np.arange(LAYOUT.tokens), attention / attention.sum())


class FakeModel:
    """Counts how often it is used; refuses pictures of one pixel."""

    def __init__(self) -> None:
        self.layout = LAYOUT
        self.running = Running("cpu", "cpu")
        self.confidence = None
        self.seen = 0
        self._lock = threading.Lock()

    def see(self, picture: Image.Image) -> Sight:
        if picture.size == (1, 1):
            raise PictureError("one pixel is no picture")
        with self._lock:
            self.seen += 1
        return Sight(state_of(picture), lambda question, limit: f"edge {question}")

    def inject(self, decoder: FeedbackDecoder, latents: np.ndarray) -> Sight:
        state = decoder.state(latents, LAYOUT, np.arange(LAYOUT.tokens))
        return Sight(state, lambda question, limit: f"recalled {question}")


@functools.cache
def make_encoder(seed: int = 0) -> Encoder:
    """Random, and fitted once: its entropy tables take longer than most tests."""
    rng = np.random.default_rng(seed)
    d = LAYOUT.state_dim
    projection = np.linalg.qr(rng.standard_normal((d, RANK)))[0].astype(np.float32)
    symbols = np.rint(rng.standard_normal((2000, RANK)) * 2).astype(np.int64)
    return Encoder(
        source_fingerprint=LAYOUT.fingerprint,
        points=(
            OperatingPoint(0, "fp8", "latent", "fp8_e4m3", 0, RANK, "fp8"),
            OperatingPoint(1, "low", "latent", "uniform", 4, RANK, "low"),
            RAW_KV_FP8,
        ),
        x_mean=np.zeros(d, np.float32),
        x_scale=np.ones(d, np.float32),
        projection=projection,
        reconstruction=projection.T.copy(),
        centre=np.full((LAYOUT.tokens, RANK), 0.1, np.float32),
        latent_mean=np.zeros(RANK, np.float32),
        latent_inv_cov=np.eye(RANK, dtype=np.float32),
        raw_scale=np.full(d, 0.01, np.float32),
        steps={
            "fp8": np.full(RANK, 0.01, np.float32),
            "low": np.full(RANK, 0.5, np.float32),
        },
        entropy={"low": EntropyTables.fit(symbols)},
    )


class FakeSleep:
    """Back-off pauses end at once and are noted; the answer timer ends only when a test says so."""

    ANSWER_TIMEOUT_S = 99.0

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.expire = asyncio.Event()

    def clock(self) -> float:
        return sum(self.pauses)

    async def __call__(self, seconds: float) -> None:
        if seconds != self.ANSWER_TIMEOUT_S:
            self.pauses.append(seconds)
            await asyncio.sleep(0)
            return
        await self.expire.wait()
        self.expire = asyncio.Event()


def fake_uplink(
    dial: Any,
    state_dir: Path,
    sleep: FakeSleep | None = None,
    in_flight: int = 8,
    retries: int | None = 6,
    give_up_s: float = 60.0,
    log: logs.Logger | None = None,
    linger_s: float = 0.0,
    connect_timeout_s: float = 10.0,
    crops: Crops | None = None,
    shadows: Shadows | None = None,
) -> Uplink:
    """An uplink of the fake model; its clock knows no time but that of the pauses."""
    sleep = sleep or FakeSleep()
    return Uplink(
        LAYOUT,
        dial,
        EncoderStore(state_dir),
        Metrics(),
        log or logs.configure("error"),
        RetryPolicy(
            give_up_s=give_up_s,
            retries=retries,
            backoff_s=0.5,
            backoff_max_s=4.0,
            answer_timeout_s=FakeSleep.ANSWER_TIMEOUT_S,
            connect_timeout_s=connect_timeout_s,
        ),
        in_flight,
        clock=sleep.clock,
        sleep=sleep,
        linger_s=linger_s,
        crops=crops,
        shadows=shadows,
    )


def make_session(**changes: Any) -> Session:
    """A session that nobody negotiated, with the points of `make_encoder` and a picture point."""
    encoder = make_encoder()
    points = {point.name: point for point in (*encoder.points, PICTURE)}
    limits = changes.pop("limits", Limits())
    held: dict[str, Any] = {
        "session_id": bytes(16),
        "constants": bytes(32),
        "bundle_id": "b",
        "bundle_version": "1",
        "bundle_digest": "2" * 64,
        "encoder_digest": "3" * 64,
        "encoder": encoder,
        "limits": limits,
        "points": points,
        "default_point": "fp8",
        "ladder": ("low", "fp8"),
        "advised": "fp8",
        "max_in_flight": limits.max_in_flight,
        "max_message_bytes": limits.max_request_bytes,
    }
    return Session(**(held | changes))
