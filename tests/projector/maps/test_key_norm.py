"""Keys of a target that normalises them have the length that its own have, wherever they go."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from projector.maps import LowRank, Map, ServedMap, load
from projector.maps.moments import Moments
from projector.models.decoder import key_norm_weights
from projector.models.lm import LM
from projector.training.ragged import present
from projector.training.texts import collect
from projector.validation.bounds import cloud_matrix
from protos.errors import FitError
from tests.fakes.tiny_models import tiny_gemma3, tiny_lm

TEXTS = [
    f"the {a} {b} below the {c}"
    for a in ("red", "blue")
    for b in ("car", "dog")
    for c in ("tree", "truck")
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, LM]:
    folder = tmp_path_factory.mktemp("models")
    return LM.load(tiny_lm(folder), text_tokens=40), LM.load(tiny_gemma3(folder), text_tokens=40)


@pytest.fixture(scope="module")
def states(
    pair: tuple[LM, LM], tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paired states of every token, `[n, d_s]` and `[n, d_r]`."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = collect(*pair, TEXTS.__getitem__, len(TEXTS), folder)
    x, y = corpus.x[:], corpus.y[:]
    return tuple(torch.from_numpy(part[present(part)].astype(np.float32)) for part in (x, y))


@pytest.fixture(scope="module")
def made(pair: tuple[LM, LM], states: tuple[torch.Tensor, torch.Tensor]) -> Map:
    source, target = (model.layout for model in pair)
    moments = Moments.of([tuple(part.numpy() for part in states)])
    member = LowRank(r=2, weight=1.0).build(source, target, moments)
    weights = key_norm_weights(pair[1].decoder, target)
    assert weights is not None
    member.take_key_norm(weights, moments)
    return member.eval()


def lengths(made: Map, flat: torch.Tensor) -> torch.Tensor:
    """`||k / w||` of every key, `[n, layers, heads]`."""
    target = made.target
    keys = flat.unflatten(-1, (2, target.layers, target.kv_heads, target.head_dim))[:, 0]
    return (keys * made.key_inverse[:, None]).norm(dim=-1)


def test_weights_are_what_the_models_own_norm_multiplies_by(
    pair: tuple[LM, LM], tmp_path: Path
) -> None:
    gemma, llama = pair[1], pair[0]
    weights = key_norm_weights(gemma.decoder, gemma.layout)
    assert weights is not None
    for layer, row in zip(gemma.decoder.layers, weights, strict=True):
        torch.testing.assert_close(row, 1 + layer.self_attn.k_norm.weight)
    assert key_norm_weights(llama.decoder, llama.layout) is None
    qwen = LM.load(tiny_lm(tmp_path, "qwen3", head_dim=16))
    weights = key_norm_weights(qwen.decoder, qwen.layout)
    assert weights is not None
    torch.testing.assert_close(weights[1], qwen.decoder.layers[1].self_attn.k_norm.weight)


def test_predicted_keys_are_as_long_as_the_targets_own(
    made: Map, states: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = states
    with torch.no_grad():
        plain = made.predict(x) * made.y_scale + made.y_mean
        got = made(x)
    own = lengths(made, y)
    assert float(own.std(0).max()) < 0.01 * float(own.mean())
    torch.testing.assert_close(
        lengths(made, got), own.mean(0).expand(len(x), -1, -1), rtol=0.01, atol=0
    )
    assert float(lengths(made, plain).mean()) < 0.97 * float(own.mean())  # what regression shrank
    half = made.target.state_dim // 2
    torch.testing.assert_close(got[:, half:], plain[:, half:])  # values are left as they are


def test_kept_maps_and_exported_graphs_do_the_same(
    made: Map, states: tuple[torch.Tensor, torch.Tensor]
) -> None:
    again = load(made.to_bytes(), made.source, made.target)
    x = states[0]
    with torch.no_grad():
        torch.testing.assert_close(again(x), made(x))
    served, tokens = ServedMap(made).eval(), made.source.tokens
    latents, kept = torch.randn(2, tokens, made.rank), torch.ones(2, tokens)
    cos, sin = (
        torch.from_numpy(table).float()
        for table in made.target.rotation.cos_sin(np.arange(1, 1 + tokens))
    )
    stream = io.BytesIO()
    torch.onnx.export(
        served,
        (latents, kept, cos, sin),
        stream,
        input_names=["latents", "kept", "cos", "sin"],
        output_names=["keys", "values"],
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = served(latents, kept, cos, sin)
    feed = {"latents": latents, "kept": kept, "cos": cos, "sin": sin}
    got = session.run(None, {name: value.numpy() for name, value in feed.items()})
    for ours, theirs in zip(want, got, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)


def test_a_map_that_gives_keys_a_length_has_no_operator_norm_and_no_bound(made: Map) -> None:
    assert made.operator_norm() is None
    with pytest.raises(FitError, match="normalises its keys"):
        cloud_matrix(made)
