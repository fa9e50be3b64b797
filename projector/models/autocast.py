"""Autocast dtype of the frozen models: bfloat16 where the processor has it, else float32.

bfloat16 doubles the speed of training on a processor that has it; one that has not computes it a
hundred times as slowly as float32.
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
    """Chooses the faster float32 kernels for the processor, for a whole process.

    oneDNN's where it has AVX-512 (MKL's take up to three times as long there on AMD's processors),
    MKL's where not (a fifth faster on Zen 3). Not on a processor with matrix units: there the
    setting means bfloat16.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    units = any(there for name, there in capabilities().items() if "amx" in name)
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and not units:
        torch.set_float32_matmul_precision("medium")


@contextmanager
def trained_attention(kind: str = "cpu") -> Iterator[None]:
    """Attention that is to be differentiated, by the kernel that is fastest at it.

    On a CPU that is plain matrix products: the fused kernel's backward pass takes two to seven
    times as long for some dozens of tokens.

    Args:
        kind: of device.
    """
    with sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext():
        yield


def said(dtype: torch.dtype) -> str:
    """A type as reports name it."""
    return str(dtype).removeprefix("torch.")
