"""Linear layers that multiply bfloat16 numbers: inputs and weights are rounded, sums are float32.

oneDNN sums two rows or more in one order, however many there are (a test compares bits). A lone row
is computed twice. So an answer does not depend on which others share its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RoundedLinear(nn.Module):
    """A linear layer with weights in bfloat16; its result has the dtype of its input.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(torch.bfloat16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        rows = x.to(torch.bfloat16)
        if rows.numel() == rows.shape[-1]:  # a lone row is summed in another order
            alone = rows.reshape(1, -1).expand(2, -1)
            made = functional.linear(alone, self.weight, self.bias)[0]
            return made.view(*x.shape[:-1], -1).to(x.dtype)
        return functional.linear(rows, self.weight, self.bias).to(x.dtype)


def round_linears(module: nn.Module) -> None:
    """Replace each plain `nn.Linear` inside a module; subclasses of it stay as they are."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, RoundedLinear(child.weight, child.bias))
        else:
            round_linears(child)
