"""Memory that compiled kernels take, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from projector.models.autocast import product_type

_GROWTH = """
from cloud_server.engine.kernels import bound_kernels
from protos.process.memory import keep_heap_compact, resident_bytes
keep_heap_compact()
bound_kernels()
import torch
from projector.models.rounded import RoundedLinear
torch.set_num_threads(1)
layer, rows = RoundedLinear(torch.randn(960, 576), None), torch.randn(500, 576)
with torch.inference_mode():
    layer(rows)
    before = resident_bytes()
    for count in range(2, 500):
        layer(rows[:count])
print(resident_bytes() - before)
"""


@pytest.mark.skipif(product_type() is not torch.bfloat16, reason="no bfloat16 products here")
def test_products_with_many_numbers_of_rows_take_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the bound they take over 300 MB."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 150_000_000, f"{int(done.stdout) / 1e6:.0f} MB"
