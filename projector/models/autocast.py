"""Which type the frozen models' products are computed in where a little rounding does no harm.

Knows what a device multiplies natively. Knows no models. bfloat16 doubles the speed of training on
a processor that has it; one that has not computes it a hundred times as slowly as float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def product_type(kind: str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it natively (AVX-512 BF16, AMX, SM80), else float32.

    Args:
        kind: of device, as `torch.device.type`.
    """
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.6 has none
        told: dict[str, Any] = capabilities()
        native = any(there for name, there in told.items() if "bf16" in name)
    return torch.bfloat16 if native else torch.float32


def products(kind: str = "cpu", dtype: torch.dtype | None = None) -> torch.autocast:
    """A context in which products are of `product_type`, or of the type given."""
    dtype = dtype or product_type(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=dtype is torch.bfloat16)


def quick_kernels() -> None:
    """Chooses the faster float32 kernels for the processor; for a whole process, a bench's.

    oneDNN's where it has AVX-512 (MKL's are half as fast there on AMD's processors), MKL's where
    not (a fifth faster on Zen 3). On one with matrix units for it the first may mean bfloat16.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        torch.set_float32_matmul_precision("medium")


def said(dtype: torch.dtype) -> str:
    """A type as reports name it."""
    return str(dtype).removeprefix("torch.")
