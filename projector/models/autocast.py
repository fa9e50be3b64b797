"""Autocast dtype of the frozen models: bfloat16 where the processor has it, else float32.

bfloat16 doubles the speed of training on a processor that supports it. On others it is a hundred
times slower than float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@cache
def product_type(kind: str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it natively (AVX-512 BF16, AMX, SM80), else float32.

    Args:
        kind: device type, as `torch.device.type`.
    """
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.6 lacks it
        told: dict[str, Any] = capabilities()
        native = any(there for name, there in told.items() if "bf16" in name)
    return torch.bfloat16 if native else torch.float32


def products(kind: str = "cpu", dtype: torch.dtype | None = None) -> torch.autocast:
    """Autocast context: matrix products in `product_type`, or in `dtype` if given."""
    dtype = dtype or product_type(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=dtype is torch.bfloat16)


def quick_kernels() -> None:
    """Choose the faster float32 kernels for this processor, for the whole process.

    With AVX-512: oneDNN (MKL takes up to three times as long there on AMD processors). Without:
    MKL (a fifth faster on Zen 3). Processors with matrix units are left alone: there the setting
    means bfloat16.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    units = any(there for name, there in capabilities().items() if "amx" in name)
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and not units:
        torch.set_float32_matmul_precision("medium")


@contextmanager
def trained_attention(kind: str = "cpu") -> Iterator[None]:
    """Use the attention kernel with the fastest backward pass.

    On a CPU that is plain matrix products: for a few dozen tokens, the backward pass of the fused
    kernel takes two to seven times as long.

    Args:
        kind: device type, as `torch.device.type`.
    """
    with sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext():
        yield


def said(dtype: torch.dtype) -> str:
    """A dtype's name in reports."""
    return str(dtype).removeprefix("torch.")
