"""A request as a real edge sends it, and the two calls that accept it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protos import quantize
from protos.digest import session_constants, verify
from protos.distortion import Distortion
from protos.entropy.tables import EntropyTables
from protos.header import Header, pack_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import parse_infer_request, seal

SESSION = bytes(range(16))
REQUEST = b"request-"
CONSTANTS = session_constants(SESSION, "f" * 64, "b" * 64)


def mask(tokens: int, every: int = 3) -> npt.NDArray[np.bool_]:
    return np.arange(tokens) % every == 0


def real_request(
    question: str = "What is left of the red crate?", request_id: bytes = REQUEST
) -> bytes:
    """40 grid tokens, 14 kept, 16 latents each, entropy coded: what an edge really sends."""
    rng = np.random.default_rng(0)
    sample = np.rint(rng.standard_normal((2000, 16))).astype(np.int64)
    coder = quantize.UniformQuantizer(EntropyTables.fit(sample))
    kept = mask(40)
    body = coder.encode(rng.standard_normal((int(kept.sum()), 16)), np.ones(16))
    distortion = Distortion(0.25, 0.1, 0.3, 1.1)
    header, payload = pack_header(Header(3, 1000, kept, 40, distortion), body)
    request = seal(CONSTANTS, request_id, header, payload, question, 8)
    return request.SerializeToString(deterministic=True)


REAL = real_request()
BARE = real_request(request_id=b"")


def accept(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> pb.InferRequest:
    request = parse_infer_request(raw, limits).request
    verify(request, CONSTANTS)
    return request
