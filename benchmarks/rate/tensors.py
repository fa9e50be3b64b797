"""Coders of raw caches on the same tensors: ours, LMCache's CacheGen, and TurboQuant's quantizer.

No question is answered here. These coders send the whole cache (keys without rotation) and are
judged by the error that they leave in the attention's output. Ours is what a bundle would do if its
target were its own source: states scaled per layer and K|V, the orthogonal transform that
decorrelates them on train pictures (Karhunen and Loeve), one step for all, and the entropy tables
of `protos.quantize`, learnt on train pictures.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.command import ROOT
from benchmarks.rate.turboquant import TurboQuant
from benchmarks.timing import least_seconds
from projector.models.rope import rotate
from projector.models.vlm import VLM
from protos import quantize
from protos.entropy.tables import EntropyTables
from protos.errors import BridgeError, UnsupportedModelError
from protos.quantize import Quantizer, UniformQuantizer
from protos.state import KVState
from reference.demo.testset import TestSet
from reference.yard import render, sample_scenes

Floats = npt.NDArray[np.float32]

RIVALS_PYTHON = ROOT / "build" / "rivals" / "bin" / "python"
SCRIPT = Path(__file__).with_name("cachegen.py")
CHUNK_PICTURES = 7  # 252 tokens of 36: LMCache codes at most 256 at a time
STEPS = tuple(np.geomspace(0.05, 1.2, 12).round(3).tolist())
TRAIN_PICTURES = 512
ROUNDS = 60
QUERIES = 6  # the last queries of each question
_BITS = (4, 3)
_SILENT = 0.002  # latents that are non-zero in a smaller share of tokens are left out
_TIMEOUT_S = 1800


@dataclass(frozen=True, eq=False)
class Caches:
    """Caches of some pictures, and the queries that a question puts to each.

    Attributes:
        states: every picture's state.
        queries: rotated, `[layers, pictures, heads, Q, head_dim]`.
        rope: how the model rotates keys.
        shape: layers, kv_heads, head_dim.
    """

    states: Sequence[KVState]
    queries: torch.Tensor
    rope: Any
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, vlm: VLM, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Caches:
        """Prefill the pictures and record the queries of one question about each.

        Raises:
            UnsupportedModelError: the decoder has no `q_proj` to record.
        """
        layers = [m for name, m in vlm.decoder.named_modules() if name.endswith("q_proj")]
        if len(layers) != vlm.layout.layers:
            raise UnsupportedModelError(f"{vlm.layout.model_id} has no q_proj in every layer")
        states: list[KVState] = []
        queries = []
        for picture, question in zip(pictures, questions, strict=True):
            made = vlm.prefill([picture])
            states += vlm.states(made)
            noted: list[torch.Tensor] = []
            hooks = [
                m.register_forward_hook(lambda _m, _i, out, noted=noted: noted.append(out))
                for m in layers
            ]
            ids = vlm.question_ids(question)[-QUERIES:]
            vlm.answer(made.layers(), [ids], 1)
            for hook in hooks:
                hook.remove()
            found = torch.stack(noted)[:, 0].unflatten(-1, (-1, vlm.layout.head_dim))
            start = len(vlm.prefix_ids) + vlm.image_tokens
            at = np.arange(start, start + len(ids), dtype=np.int64)
            queries.append(rotate(found.transpose(1, 2), vlm.layout.rope, at))
        shape = (vlm.layout.layers, vlm.layout.kv_heads, vlm.layout.head_dim)
        least = min(part.shape[2] for part in queries)  # some questions are shorter
        last = torch.stack([part[:, :, -least:] for part in queries], dim=1)
        return cls(states, last, vlm.layout.rope, shape)

    def flat(self) -> Floats:
        """`[pictures, tokens, state_dim]`."""
        return np.stack([state.flat() for state in self.states])

    def dense(self, flat: Floats) -> Floats:
        """Flat states as `[pictures, layers, 2, tokens, kv_heads, head_dim]`."""
        layers, heads, dim = self.shape
        grouped = flat.reshape(*flat.shape[:2], 2, layers, heads, dim)
        return np.ascontiguousarray(grouped.transpose(0, 3, 2, 1, 4, 5))

    def attended(self, dense: Floats) -> torch.Tensor:
        """Attention's output over the picture's tokens, `[layers, pictures, heads, Q, dim]`."""
        both = torch.from_numpy(dense).permute(1, 2, 0, 4, 3, 5)
        keys = rotate(both[:, 0].contiguous(), self.rope, self.states[0].positions)
        group = self.queries.shape[2] // keys.shape[2]
        keys = keys.repeat_interleave(group, dim=2)
        values = both[:, 1].repeat_interleave(group, dim=2)
        scores = self.queries @ keys.transpose(-1, -2) / self.shape[2] ** 0.5
        attended: torch.Tensor = scores.softmax(dim=-1) @ values
        return attended

    def error(self, dense: Floats) -> float:
        """Relative L2 error of the attention's output, over all layers and queries."""
        true = self.attended(self.dense(self.flat()))
        return float((self.attended(dense) - true).norm() / true.norm())


@dataclass(frozen=True, eq=False)
class Transform:
    """Decorrelates the flat states of one model.

    Attributes:
        mean: `[d_s]`, mean of the flat states.
        forward: centred flat states to latents, `[d_s, r]`, by falling variance.
        back: latents to centred flat states.
    """

    mean: Floats
    forward: Floats
    back: Floats

    @classmethod
    def fit(cls, flat: Floats, blocks: int) -> Transform:
        """Fit to train states `[n, d_s]` of `blocks` blocks, each one layer's K or V."""
        mean = flat.mean(axis=0)
        moved = flat - mean
        scale = np.sqrt((moved.reshape(len(flat), blocks, -1) ** 2).mean(axis=(0, 2)))
        wide = np.repeat(scale, flat.shape[1] // blocks)
        _, turn = np.linalg.eigh(np.cov((moved / wide).T))
        turn = turn[:, ::-1].astype(np.float32)
        forward: Floats = (turn / wide[:, None]).astype(np.float32)
        return cls(mean, forward, np.ascontiguousarray((turn * wide[:, None]).T))

    def first(self, rank: int) -> Transform:
        """The transform with only its first `rank` latents."""
        parts = (self.forward[:, :rank], self.back[:rank])
        return Transform(self.mean, *map(np.ascontiguousarray, parts))


@dataclass(frozen=True)
class Coder:
    """One of our quantizers; it codes as many pictures' caches at a time as the rival."""

    name: str
    quantizer: Quantizer
    steps: Floats
    transform: Transform | None = None

    def there(self, x: Floats) -> bytes:
        """Code states `[n, d_s]` to a payload."""
        if self.transform is None:
            return self.quantizer.encode(x, self.steps)
        z = (x - self.transform.mean) @ self.transform.forward
        return self.quantizer.encode(z, self.steps)

    def back(self, payload: bytes, tokens: int) -> Floats:
        """Decode the states of `tokens` tokens."""
        z = self.quantizer.decode(payload, tokens, len(self.steps), self.steps)
        return z if self.transform is None else z @ self.transform.back + self.transform.mean


def coded(caches: Caches, coders: Sequence[Coder], rounds: int) -> list[dict[str, Any]]:
    """Bytes, error and times of each coder; the best round counts, as for the rival."""
    flat = caches.flat()
    parts = [
        flat[at : at + CHUNK_PICTURES].reshape(-1, flat.shape[-1])
        for at in range(0, len(flat), CHUNK_PICTURES)
    ]
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], object]] = []
    for coder in coders:
        payloads = [coder.there(x) for x in parts]
        both = list(zip(payloads, map(len, parts), strict=True))
        decoded = np.concatenate([coder.back(*each) for each in both]).reshape(flat.shape)
        calls += [partial(coder.there, x) for x in parts]
        calls += [partial(coder.back, *each) for each in both]
        rows.append(
            {
                "kind": "ours",
                "name": coder.name,
                "bytes": round(sum(map(len, payloads)) / len(flat), 1),
                "error": round(caches.error(caches.dense(decoded)), 5),
            }
        )
    seconds = least_seconds(rounds, calls, "our coders")
    spent = np.reshape(seconds, (len(coders), 2, len(parts))).sum(axis=-1)
    for row, (there, back) in zip(rows, spent / len(flat), strict=True):
        row |= {"encode_s": float(there), "decode_s": float(back)}
    return rows


def ours(caches: Caches, train: Floats, rounds: int) -> list[dict[str, Any]]:
    """Our quantizers per channel, and rounding with entropy tables at several steps."""
    flat = train.reshape(-1, train.shape[-1])
    high = np.abs(flat).max(axis=0)
    fixed = {"fp8_e4m3": high / 448, "int8": high / 127, "int4": high / 7}
    coders = [
        Coder(name, quantize.get(name), steps.astype(np.float32)) for name, steps in fixed.items()
    ]
    transform = Transform.fit(flat, 2 * caches.shape[0])
    latents = (flat - transform.mean) @ transform.forward
    for step in STEPS:
        levels = np.rint(latents / step).astype(np.int64)
        rank = max(1, int(((levels != 0).mean(axis=0) > _SILENT).sum()))
        quantizer = UniformQuantizer(EntropyTables.fit(levels[:, :rank], classes=1))
        steps = np.full(rank, step, dtype=np.float32)
        name = f"transform, rank {rank}, step {step:g}"
        coders.append(Coder(name, quantizer, steps, transform.first(rank)))
    return coded(caches, coders, rounds)


def turboquant(caches: Caches) -> list[dict[str, Any]]:
    """TurboQuant-style quantizers of each head's vector."""
    dense = caches.dense(caches.flat())
    rows = []
    for bits in _BITS:
        made = TurboQuant(bits, dense.shape[-1])
        size = made.bytes_of(dense[0].size // made.dim)
        error = round(caches.error(made.apply(dense)), 5)
        rows.append(
            {"kind": "rival", "name": f"turboquant {bits} bits", "bytes": size, "error": error}
        )
    return rows


def cachegen(caches: Caches, rounds: int) -> dict[str, Any]:
    """LMCache's CacheGen on the same tensors, in its own environment.

    `bytes` do not count the tables of every channel that it sends with each chunk (they could be
    agreed on once, as ours are), and count its maxima as two bytes. `bytes_as_sent` counts all.

    Raises:
        BridgeError: there is no such environment, or its coder failed.
    """
    if not RIVALS_PYTHON.exists():
        raise BridgeError("no environment for LMCache: `make rivals` sets it up")
    dense = caches.dense(caches.flat())
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npy", Path(folder) / "out.npz"
        np.save(given, dense)
        command = [str(RIVALS_PYTHON), str(SCRIPT), str(given), str(out)]
        done = subprocess.run(
            [*command, str(CHUNK_PICTURES), str(rounds)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise BridgeError(f"LMCache's coder failed: {' '.join(last)}")
        with np.load(out) as found:
            decoded, figures = found["decoded"], found["figures"] / len(dense)
    sent, stream, encode_s, decode_s = figures.tolist()
    return {
        "kind": "rival",
        "name": "cachegen",
        "bytes": round(stream, 1),
        "bytes_as_sent": round(sent, 1),
        "error": round(caches.error(decoded), 5),
        "encode_s": encode_s,
        "decode_s": decode_s,
    }


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Ours against CacheGen: our smallest at no higher error; None if nothing can be compared."""
    theirs = next((r for r in rows if r["name"] == "cachegen"), None)
    if theirs is None:
        return None
    fit = [r for r in rows if r["kind"] == "ours" and r["error"] <= theirs["error"]]
    best = min(fit, key=lambda r: float(r["bytes"]), default=None)
    if best is None:
        return None
    return {
        "ours": best["name"],
        "bytes_ratio": round(theirs["bytes"] / best["bytes"], 2),
        "bytes_ratio_as_sent": round(theirs["bytes_as_sent"] / best["bytes"], 2),
        "encode_speed_ratio": round(theirs["encode_s"] / best["encode_s"], 2),
        "decode_speed_ratio": round(theirs["decode_s"] / best["decode_s"], 2),
        "error_ours": best["error"],
        "error_theirs": theirs["error"],
    }


def headline(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The comparison with CacheGen that saves the fewest bytes, over all models, or None."""
    made = [{"model": name, **each["cachegen"]} for name, each in found.items() if each["cachegen"]]
    return min(made, key=lambda each: float(each["bytes_ratio"]), default=None)


def measure(vlm: VLM, args: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """All coders on one model's caches.

    Returns:
        `raw_bytes` (float16), `rows` (bytes and CPU seconds per picture) and `cachegen`.
    """
    pictures = args.cache_pictures
    test = TestSet.load("test", pictures, 1)
    questions = {q.picture: q.text for q in test.asked}
    asked = [questions.get(i, test.asked[0].text) for i in range(pictures)]
    caches = Caches.of(vlm, test.pictures, asked)
    train: list[Floats] = []
    for at in range(0, TRAIN_PICTURES, 64):
        block = render(sample_scenes("train", at, 64))
        made = vlm.prefill([Image.fromarray(p) for p in block], attention=False)
        train += [state.flat() for state in vlm.states(made)]
    rows = ours(caches, np.stack(train), ROUNDS) + turboquant(caches)
    try:
        rows.append(cachegen(caches, ROUNDS))
    except BridgeError as error:
        say(f"cachegen: skipped, {error}")
    return {"raw_bytes": 2 * caches.flat()[0].size, "rows": rows, "cachegen": compare(rows)}
