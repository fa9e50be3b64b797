"""Tiny models and a bundle between two of them, built once per run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.describe import BundleInfo
from projector.bundle.feedback import Feedback
from projector.bundle.write import write_bundle
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from projector.maps import Family, Map, ServedMap
from projector.maps.factors import Factors, FactorsMap
from projector.maps.mix import Mix, MixMap
from projector.maps.ridge import Ridge
from projector.models.vlm import VLM
from projector.serving import tensorrt_build
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training.corpus import collect
from projector.training.dataset import Dataset, write_questions
from projector.training.fit import moments_of
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import Validator
from protos.entropy.tables import EntropyTables
from protos.layout import KVLayout
from protos.points import PICTURE, RAW_KV_FP8, OperatingPoint
from tests.fakes.tensorrt import FakeTensorRT
from tests.fakes.tiny_models import (
    picture,
    tiny_gemma3_vlm,
    tiny_idefics3,
    tiny_internvl,
    tiny_llava,
    tiny_ovis2,
    tiny_smolvlm,
)
from tests.fakes.toolkit import WORDS, toolkit

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "idefics3": tiny_idefics3,
    "llava-llama": lambda folder: tiny_llava(folder, text="llama"),
    "llava-qwen2": lambda folder: tiny_llava(folder, text="qwen2"),
    # Gemma 2 caps its attention logits, which SDPA cannot: transformers runs it eagerly
    "llava-eager": lambda folder: tiny_llava(folder, text="gemma2", sliding_window=512),
    "smolvlm": tiny_smolvlm,
    "internvl": tiny_internvl,
    "ovis2": tiny_ovis2,  # reads the tokens around a picture as visual embeddings
    "gemma3": tiny_gemma3_vlm,  # a picture's tokens see each other both ways; layers differ
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")
RANK = 8
POINTS = (
    OperatingPoint(0, "coarse", quantizer="uniform", tokens=8, rank=RANK, steps="coarse"),
    OperatingPoint(1, "fine", quantizer="fp8_e4m3", rank=RANK, steps="fine"),
    OperatingPoint(2, "int8", quantizer="int8", rank=RANK, steps="fine"),
    OperatingPoint(3, "exact", quantizer="none", rank=RANK),
    RAW_KV_FP8,
    PICTURE,
)


@pytest.fixture(scope="session")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLM]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    return {name: VLM.load(build(folder)) for name, build in BUILDERS.items()}


@pytest.fixture(params=list(BUILDERS))
def vlm(request: pytest.FixtureRequest, vlms: dict[str, VLM]) -> VLM:
    return vlms[request.param]


@pytest.fixture(scope="session")
def source(vlms: dict[str, VLM]) -> KVLayout:
    return vlms["idefics3"].layout


@pytest.fixture(scope="session")
def target(vlms: dict[str, VLM]) -> KVLayout:
    return vlms["llava-llama"].layout


@functools.cache
def _tables() -> EntropyTables:
    sample = np.random.default_rng(1).standard_normal((500, RANK))
    return EntropyTables.fit(np.rint(sample * 4).astype(np.int64))


def make_encoder(source: KVLayout, **over: Any) -> Encoder:
    rng = np.random.default_rng(0)
    d, r = source.state_dim, RANK

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    fields: dict[str, Any] = {
        "source_fingerprint": source.fingerprint,
        "points": POINTS,
        "x_mean": normal(d),
        "x_scale": np.abs(normal(d)) + np.float32(0.5),
        "projection": normal(d, r) / np.float32(d**0.5),
        "centre": normal(source.tokens, r),
        "latent_mean": normal(r),
        "latent_inv_cov": np.eye(r, dtype=np.float32),
        "raw_scale": np.full(d, 0.05, dtype=np.float32),
        "steps": {
            "fine": np.full(r, 0.02, dtype=np.float32),
            "coarse": np.full(r, 0.5, dtype=np.float32),
        },
        "entropy": {"coarse": _tables()},
    }
    fields["reconstruction"] = np.linalg.pinv(fields["projection"])
    return Encoder(**{**fields, **over})


@pytest.fixture(scope="session")
def encoder(source: KVLayout) -> Encoder:
    return make_encoder(source)


def make_map(source: KVLayout, target: KVLayout, mix_width: int = 32, inner: int = RANK) -> Map:
    """A map of random weights, `RANK` numbers a token, as the reference bundles' are."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    plain: Family = Factors(r=inner, travels=RANK)
    if mix_width:
        config = asdict(plain)
        plain = Mix(inner="factors", config=config, width=mix_width, order="target")
    torch.manual_seed(0)
    made = plain.make(source, target)
    made.start_rounding(torch.zeros(source.tokens, source.state_dim))
    with torch.no_grad():
        made.y_mean.copy_(normal(target.state_dim))
        made.y_scale.copy_(normal(target.state_dim).abs())
        assert made.rounding is not None
        made.rounding.empty.copy_(normal(RANK))
        factors = made.inner if isinstance(made, MixMap) else made
        assert isinstance(factors, FactorsMap)
        factors.inward.copy_(normal(source.state_dim, RANK))
        factors.onward.copy_(normal(inner, target.state_dim))
        if isinstance(made, MixMap):
            torch.nn.init.normal_(made.outward.weight, std=0.1, generator=generator)
    return made.eval()


def cloud_files(made: Map) -> CloudFiles:
    """A map in both of a bundle's forms."""
    return CloudFiles(weights=made.to_bytes(), graph=export(ServedMap(made)).graph)


@pytest.fixture(scope="session")
def made_map(source: KVLayout, target: KVLayout) -> Map:
    return make_map(source, target)


@pytest.fixture(scope="session")
def bundle_parts(
    source: KVLayout, target: KVLayout, encoder: Encoder, made_map: Map
) -> dict[str, Any]:
    return {
        "id": "tiny",
        "version": 3,
        "source": source,
        "target": target,
        "encoder": encoder,
        "cloud": cloud_files(made_map),
        "certificate": {"agreement": 0.5},
        "default_point": 1,
        "ladder": (0, 1, 254),
    }


def make_feedback(source: KVLayout, target: KVLayout) -> Feedback:
    """A way back of random numbers, in the points that send latents."""
    rng = np.random.default_rng(6)
    latent = tuple(point for point in POINTS if point.kind == "latent")
    encoder = make_encoder(target, points=latent)
    decoder = FeedbackDecoder.of(
        encoder,
        source,
        up=rng.standard_normal((RANK - 1, source.state_dim)).astype(np.float32),
        mean=rng.standard_normal(source.state_dim).astype(np.float32),
        scale=np.ones(source.state_dim, np.float32),
        regrid=None,
    )
    return Feedback(encoder, decoder)


@pytest.fixture(scope="session")
def two_way(bundle_parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of the same bundle with a way back."""
    return {
        **bundle_parts,
        "feedback": make_feedback(bundle_parts["source"], bundle_parts["target"]),
    }


@pytest.fixture(scope="session")
def bundle_info(bundle_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("bundle")
    info: BundleInfo = write_bundle(path, **bundle_parts)
    return path, info


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**_: Any) -> Any:
        raise AssertionError("the library was asked for what was to be refused before")

    monkeypatch.setattr(tensorrt_build, "load_library", load)


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    def set_up(library: str, capability: int, **options: Any) -> FakeTensorRT:
        fake = FakeTensorRT(library, **options)
        monkeypatch.setattr(tensorrt_build, "load_library", lambda **_: fake)
        monkeypatch.setattr(tensorrt_build, "gpu_capability", lambda: capability)
        return fake

    return set_up


# ---------------------------------------------------------------------- a pair for the commands

PICTURES = 64


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return tiny_idefics3(folder), tiny_llava(folder, text="llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows: list[dict[str, object]] = []
    for index in range(PICTURES):
        name = f"{index:03d}.png"
        picture(index).save(folder / name)
        for k in range(6):
            question = f"what is {WORDS[k % 4]} {k}"
            rows.append(
                {
                    "picture": name,
                    "question": question,
                    "answer": WORDS[(index + k) % 4],
                    "kind": "even" if k % 2 else "odd",
                }
            )
    write_questions(folder, rows)
    return folder


@pytest.fixture(scope="session")
def run(models: tuple[Path, Path]) -> Any:
    return toolkit(models)


@pytest.fixture(scope="session")
def corpus(run: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    assert run("corpus", data, folder) == 0
    return folder


@pytest.fixture(scope="session")
def made(run: Any, data: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    flags = ("--family", "mix", "--set", "width=16", "--set", 'config={"r": 8}')
    steps = ("--reconstruct-steps", "4", "--task-steps", "4", "--batch", "4")
    assert run("train", data, corpus, folder, *flags, *steps) == 0
    return folder


@pytest.fixture(scope="session")
def judge(models: tuple[Path, Path], data: Path, corpus: Path, tmp_path_factory: Any) -> Validator:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    pictures = Dataset(data)
    pairs = collect(source, target, pictures.picture, PICTURES, corpus, inputs=pictures.digest)
    plain = Ridge(spread=False)  # at the least error, so that rounding can only lose
    member = plain.build(source.layout, target.layout, moments_of(pairs, source, target))
    trainer = Trainer(
        member, pairs, target, pictures.questions, TrainSettings(), tmp_path_factory.mktemp("s")
    )
    return Validator(trainer, pairs, pictures)
