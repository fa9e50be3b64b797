"""Rotary embeddings, against closed forms and the models' own code."""

from __future__ import annotations

import numpy as np
import pytest

from protos.errors import FrameMalformedError
from protos.layout import LayeredRope, RopeSpec
from protos.rotation import rotate, unrotate
from tests.protos.layouts import HALF, LAYERED, LOCAL, PAIRS, PARTIAL, random_state


@pytest.mark.parametrize("rope", [HALF, PAIRS, PARTIAL], ids=["half", "interleaved", "partial"])
def test_rotation_is_complex_multiplication_of_each_pair(rope: RopeSpec) -> None:
    x = np.random.default_rng(1).standard_normal((2, 5, 10))
    positions = np.array([0, 1, 5, 100, 1999])
    n = rope.rotary_dim
    pairs = [(2 * i, 2 * i + 1) if rope.interleaved else (i, i + n // 2) for i in range(n // 2)]
    expected = x.copy()
    for (a, b), frequency in zip(pairs, rope.inv_freq, strict=True):
        turn = rope.attention_factor * np.exp(1j * positions * frequency)
        turned = (x[..., a] + 1j * x[..., b]) * turn
        expected[..., a], expected[..., b] = turned.real, turned.imag
    np.testing.assert_allclose(rotate(x, rope, positions), expected, atol=2e-4)
    np.testing.assert_array_equal(rotate(x, rope, positions)[..., n:], x[..., n:].astype("f4"))


@pytest.mark.parametrize("rope", [HALF, PAIRS, PARTIAL], ids=["half", "interleaved", "partial"])
def test_unrotate_undoes_rotate(rope: RopeSpec) -> None:
    x = np.random.default_rng(2).standard_normal((3, 2, 6, 9)).astype(np.float32)
    positions = np.array([3, 0, 41, 7, 900, 4095])
    again = unrotate(rotate(x, rope, positions), rope, positions)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, x, atol=1e-5)


def test_rotation_agrees_with_the_models_own_code() -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=4096
    )
    module = llama.LlamaRotaryEmbedding(config)
    rope = RopeSpec(1e4, 16, False, "default", 1.0, tuple(module.inv_freq.tolist()))
    keys = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 17, 300, 2047, 4095]])
    cos, sin = module(keys, positions)
    expected = llama.apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    ours = rotate(keys.numpy(), rope, positions[0].numpy())
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(rope.cos_sin(positions[0].numpy())[0], cos[0].numpy(), atol=2e-7)


def test_rotating_at_the_wrong_number_of_positions_is_refused() -> None:
    with pytest.raises(FrameMalformedError, match="3 positions"):
        rotate(np.zeros((2, 4, 8)), HALF, np.arange(3))
    with pytest.raises(FrameMalformedError):
        unrotate(np.zeros((2, 4, 6)), HALF, np.arange(4))


def test_layers_that_rotate_differently_are_each_rotated_by_their_own() -> None:
    keys = random_state().keys
    positions = np.arange(10) + 3
    rotation = LAYERED.rotation
    assert isinstance(rotation, LayeredRope)
    turned = rotate(keys, rotation, positions)
    for layer, rope in enumerate((HALF, LOCAL, HALF)):
        np.testing.assert_array_equal(turned[layer], rotate(keys[layer], rope, positions))
    np.testing.assert_allclose(unrotate(turned, rotation, positions), keys, atol=1e-5)
    for wrong in (keys[:2], keys[:, None], keys[:, :, :4]):
        with pytest.raises(FrameMalformedError, match="cannot rotate"):
            rotate(wrong, rotation, positions)
