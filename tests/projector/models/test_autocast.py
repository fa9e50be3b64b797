"""Products are in bfloat16 only where that is native: elsewhere it is far slower than float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from projector.models.autocast import product_type, products, said
from tests.projector.conftest import GPU

LEFT, RIGHT = torch.full((3, 2), 1.001), torch.full((2, 4), 1.001)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    product_type.cache_clear()
    yield
    product_type.cache_clear()


@pytest.mark.parametrize(
    ("told", "want"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"neon": True, "arm_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": 1, "l1d_cache_size": 32768}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_the_type_is_the_one_that_the_processor_multiplies(
    told: dict[str, Any], want: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert product_type() is want
    with products():
        assert (LEFT @ RIGHT).dtype is want
    assert said(want) in ("float32", "bfloat16")


def test_a_torch_that_cannot_tell_is_taken_at_its_safest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_type() is torch.float32


def test_a_type_that_is_asked_for_is_taken() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with products(dtype=dtype):
            assert (LEFT @ RIGHT).dtype is dtype
    assert (LEFT @ RIGHT).dtype is torch.float32


@GPU
def test_a_gpu_multiplies_in_what_it_has() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert product_type("cuda") is (torch.bfloat16 if native else torch.float32)
