"""Linear layers in bfloat16: how far they round, and that a row does not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from projector.models.autocast import product_type
from projector.models.rounded import RoundedLinear, round_linears

NATIVE = pytest.mark.skipif(
    product_type() is not torch.bfloat16, reason="no bfloat16 products here"
)


@pytest.mark.parametrize("bias", [True, False])
def test_a_rounded_layer_computes_the_product_of_rounded_numbers(bias: bool) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(96, 40, bias=bias), torch.randn(3, 5, 96)
    with torch.inference_mode():
        made = RoundedLinear(plain.weight, plain.bias)(x)
        weight, rows = (one.bfloat16().double() for one in (plain.weight, x))
        exact = rows @ weight.T + (plain.bias.bfloat16().double() if bias else 0.0)
    assert made.dtype is torch.float32
    assert float((made - exact).abs().max()) <= 2**-8 * float(exact.abs().max())


@NATIVE
@pytest.mark.parametrize(
    "wide, out", [(192, 256), (192, 384), (384, 192), (64, 4096), (2048, 8192), (33, 7)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_however_many_rows_there_are(
    wide: int, out: int, threads: int
) -> None:
    torch.manual_seed(1)
    layer = RoundedLinear(torch.randn(out, wide), torch.randn(out))
    rows, before = torch.randn(520, wide), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            whole = layer(rows)
            for count in (*range(1, 40, 3), 64, 100, 511):
                assert torch.equal(layer(rows[-count:]), whole[-count:]), f"{count} rows"
    finally:
        torch.set_num_threads(before)


def test_only_plain_linear_layers_are_replaced() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    model.append(Special(2, 2))
    round_linears(model)
    kinds = [type(one).__name__ for one in model.modules()]
    assert kinds.count("RoundedLinear") == 2 and "Special" in kinds and "LayerNorm" in kinds
