"""What the client in JavaScript computes from bridge.proto's words is what this code computes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from examples.node.export_state import write_state
from projector.codec.encoder import Encoder
from protos.digest import verify
from protos.errors import BridgeError
from protos.header import Header, pack_header
from protos.layout import KVLayout, RopeSpec
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import RAW_KV_FP8, OperatingPoint
from protos.requests import parse_ask_request, parse_infer_request
from protos.rotation import unrotate
from protos.state import KVState
from tests.examples.conftest import Script
from tests.protos.test_worked_example import FIGURES, KEPT, MAX_NEW_TOKENS, POINT, read

ROOT = Path(__file__).resolve().parents[2]


def test_the_client_reproduces_the_worked_example_of_the_proto(script: Script) -> None:
    shown = read()
    numbers = {
        "states": [[float(v) for v in row.split()] for row in _rows(shown["their states x"])],
        "coded": [[float(v) for v in row.split()] for row in _rows(shown["(z - centre) / step"])],
        "figures": [getattr(FIGURES, name) for name in vars(FIGURES)],
        "kept": [t in KEPT for t in range(6)],
    }
    made = script(
        """import { fingerprint, sessionConstants, packFrame, sealFrame, sealAsk, derivedId }
             from "./contract.mjs";
           import { toFp8 } from "./encode.mjs";
           const hex = (bytes) => Buffer.from(bytes).toString("hex");
           function all({ shown, coded, figures, kept, point, limit }) {
             const bytes = (name) => Buffer.from(shown[name], "hex");
             const source = fingerprint(JSON.parse(shown.layout));
             const key = sessionConstants(bytes("session_id"), source, shown.bundle_digest);
             const body = Buffer.from(coded.flat().map(Math.fround).map(toFp8));
             const frame = packFrame(point, 300, 1000, figures, kept, body);
             const id = bytes("request_id"), none = Buffer.alloc(0);
             return {
               fingerprint: source,
               session_constants: hex(key),
               "payload, fp8_e4m3": hex(frame.payload),
               header: hex(frame.header),
               "Frame.digest": hex(sealFrame(key, id, frame, shown.question, limit).frame.digest),
               "AskRequest.digest": hex(sealAsk(key, none, id, 300, shown.question, 0).digest),
               "derived request_id": hex(derivedId(key, 300)),
               "bare Frame.digest": hex(sealFrame(key, none, frame, "", 0).frame.digest),
             };
           }""",
        "all(given)",
        {"shown": shown, **numbers, "point": POINT.index, "limit": MAX_NEW_TOKENS},
    )
    assert made == {name: shown[name] for name in made}


def _rows(text: str) -> list[str]:
    return text.strip("[]").split("; ")


def test_the_client_writes_numbers_as_fingerprints_want_them(script: Script) -> None:
    rng = np.random.default_rng(0)
    floats = [float(x) for x in 10.0 ** rng.uniform(-25, 25, 2000)]
    floats += [float(np.float32(x)) for x in 10.0 ** rng.uniform(-8, 8, 500)]
    floats += [0.0, 1.0, 10000.0, 1e15, 1e16, 123456789012345680.0, 1e-4, 9.9e-5, 1e-5, 0.5]
    written = script(
        'import { canonicalFloat } from "./contract.mjs";', "given.map(canonicalFloat)", floats
    )
    assert written == [repr(x) for x in floats]


def test_the_client_computes_the_fingerprint_of_any_layout(script: Script) -> None:
    plain = RopeSpec(1e6, 4, True, "yarn", 1.25, (1.0, 1e-5))
    layouts = [
        KVLayout("ä „model“ 😀\x7f", 2, 1, 8, plain, "bfloat16", (2, 3), "t", "w"),
        KVLayout(
            "m", 2, 1, 8, plain, "float16", (1, 9), "t", "w",
            more_ropes=(replace(plain, theta=500.0),), layer_ropes=(0, 1), windows=(0, 64),
            qk_norm=True,
        ),
    ]  # fmt: skip
    found = script(
        'import { fingerprint } from "./contract.mjs";',
        "given.map((text) => fingerprint(JSON.parse(text)))",
        [json.dumps(json.loads(layout.to_json()), ensure_ascii=False) for layout in layouts],
    )
    assert found == [layout.fingerprint for layout in layouts]


def test_the_client_rounds_to_fp8_as_the_standard_says(script: Script) -> None:
    rng = np.random.default_rng(0)
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    every = np.sort(every[np.isfinite(every)])
    numbers = np.concatenate(
        [
            every,
            (every[1:] + every[:-1]) / 2,
            rng.normal(0, 1, 2000),
            rng.normal(0, 300, 500),
            [1e9],
        ]
    ).astype(np.float32)
    found = script(
        'import { toFp8 } from "./encode.mjs";', "given.map(toFp8)", [float(x) for x in numbers]
    )
    expected = np.clip(numbers, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert found == expected.tolist()


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_client_undoes_a_rotation(script: Script, interleaved: bool) -> None:
    rng = np.random.default_rng(0)
    rope = RopeSpec(1e4, 6, interleaved, "yarn", 1.1, (1.0, 0.1, 0.001))
    keys = rng.standard_normal((40, 8)).astype(np.float32)
    at = rng.integers(0, 3000, 40)
    found = script(
        'import { unrotate } from "./encode.mjs";',
        "given.keys.map((k, i) => [...unrotate(Float32Array.from(k), given.rope, given.at[i])])",
        {"keys": keys.tolist(), "at": at.tolist(), "rope": vars(rope)},
    )
    np.testing.assert_allclose(found, unrotate(keys, rope, at), atol=2e-6)


def _encoded(
    script: Script, state: KVState, layout: KVLayout, encoder: Encoder, point: OperatingPoint,
    folder: Path,
) -> tuple[list[bool], bytes, list[float]]:  # fmt: skip
    write_state(state, layout, folder / "state")
    (folder / "encoder").write_bytes(encoder.to_bytes())
    kept, body, figures = script(
        """import { readFileSync } from "node:fs";
           import { encodeState, readEncoder, readState } from "./encode.mjs";
           function all({ state, encoder, point }) {
             const [cache, half] = [state, encoder].map((path) => readFileSync(path));
             const made = encodeState(readState(cache), readEncoder(half), point);
             return [made.kept, made.body.toString("hex"), made.figures];
           }""",
        "all(given)",
        {
            "state": str(folder / "state"),
            "encoder": str(folder / "encoder"),
            "point": json.loads(point.to_json()),
        },
    )
    return kept, bytes.fromhex(body), figures


@pytest.mark.quick(4)
@pytest.mark.parametrize("edge", ["edge-a", "edge-b", "edge-c"])
@pytest.mark.parametrize("what", ["fp8", "some tokens", "few latents", "raw"])
def test_the_client_encodes_a_cache_as_the_agent_does(
    script: Script, tmp_path: Path, edge: str, what: str
) -> None:
    """Both selectors in use, both kinds of points, a grid whose bitmap is in the header."""
    folder = ROOT / "reference/bundles" / f"{edge}-cloud"
    encoder = Encoder.from_bytes((folder / "edge.safetensors").read_bytes())
    layout = KVLayout.from_json(
        json.dumps(json.loads((folder / "bundle.json").read_text())["source_layout"])
    )
    fp8 = next(p for p in encoder.points if p.name == "fp8")
    point = {
        "fp8": fp8,
        "some tokens": replace(fp8, tokens=11),
        "few latents": replace(fp8, rank=7),
        "raw": RAW_KV_FP8,
    }[what]
    rng = np.random.default_rng(7)
    x = encoder.x_mean + encoder.x_scale * rng.standard_normal(
        (layout.tokens, layout.state_dim)
    ).astype(np.float32)
    attention = rng.random(layout.tokens)
    state = KVState.from_flat(x, layout, 5 + np.arange(layout.tokens), attention / attention.sum())
    kept, body, figures = _encoded(script, state, layout, encoder, point, tmp_path)
    truth = encoder.encode(state, point)
    assert kept == truth.kept.tolist()
    # Sums of float32 may be taken in another order: now and then a number falls on the other side.
    ours, theirs = (np.frombuffer(b, dtype=np.uint8).astype(int) for b in (truth.payload, body))
    assert len(ours) == len(theirs) and np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.005
    expected = struct.pack("4f", *vars(truth.distortion).values())
    np.testing.assert_allclose(figures, struct.unpack("4f", expected), rtol=1e-3, atol=1e-6)


def test_the_client_reads_a_cache_whose_layers_rotate_differently(
    script: Script, tmp_path: Path
) -> None:
    ropes = [RopeSpec(t, 4, True, "default", 1.0, (1.0, 1 / t)) for t in (1e4, 50.0)]
    layout = KVLayout(
        "m", 3, 2, 6, ropes[0], "float32", (3, 4), "t", "w",
        more_ropes=(ropes[1],), layer_ropes=(1, 0, 1),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((12, layout.state_dim)).astype(np.float32)
    state = KVState.from_flat(x, layout, np.arange(12) * 3)
    write_state(state, layout, tmp_path / "state")
    found = script(
        """import { readFileSync } from "node:fs";
           import { readState } from "./encode.mjs";
           const states = (path) => readState(readFileSync(path)).states.map((x) => [...x]);""",
        "states(given)",
        str(tmp_path / "state"),
    )
    np.testing.assert_allclose(found, x, atol=2e-6)


def test_what_the_clients_library_writes_is_accepted_and_no_flipped_bit_of_it(
    script: Script,
) -> None:
    """It writes default values out, unlike others: frame 0, no question, no id, no limit."""
    session, key = bytes(range(16)), bytes(32)
    header, payload = pack_header(Header(1, 0, np.arange(10) % 2 == 0), bytes(20))
    made = script(
        """import loader from "@grpc/proto-loader";
           import { sealAsk, sealFrame } from "./contract.mjs";
           function all({ session, key, header, payload }) {
             const bytes = (hex) => Buffer.from(hex, "hex");
             const path = "../../protos/neuralbridge/v1/bridge.proto";
             const options = { keepCase: true, defaults: true };
             const { Infer, Ask } = loader.loadSync(path, options)["neuralbridge.v1.Bridge"];
             const frame = { header: bytes(header), payload: bytes(payload) };
             const none = Buffer.alloc(0), id = Buffer.from("request-");
             const infer = sealFrame(bytes(key), none, frame, "", 0);
             const ask = sealAsk(bytes(key), bytes(session), id, 0, "what ?", 0);
             return [Infer.requestSerialize(infer).toString("hex"),
                     Ask.requestSerialize(ask).toString("hex")];
           }""",
        "all(given)",
        {
            "session": session.hex(),
            "key": key.hex(),
            "header": header.hex(),
            "payload": payload.hex(),
        },
    )

    def infer_request(raw: bytes) -> pb.InferRequest:
        return parse_infer_request(raw).request

    for hexed, parse in zip(made, (infer_request, parse_ask_request), strict=True):
        raw = bytes.fromhex(hexed)
        request = parse(raw)
        verify(request, key)
        assert request.SerializeToString(deterministic=True) != raw, "no default is written out"
        accepted = []
        for bit in range(8 * len(raw)):
            wrong = bytearray(raw)
            wrong[bit // 8] ^= 1 << bit % 8
            try:
                seen = parse(bytes(wrong))
                verify(seen, key)
            except BridgeError:
                continue
            if getattr(seen, "session_id", session) == session:  # else it is looked up in vain
                accepted.append(bit)
        assert not accepted
