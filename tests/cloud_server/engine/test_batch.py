"""The running batch."""

from __future__ import annotations

import torch

from cloud_server.engine.batch import RunningBatch
from projector.models.vlm import VLM
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import rows_of


def test_columns_that_no_row_sees_any_more_are_cut_out(files: Files) -> None:
    vlm = VLM.load(files.model)
    batch: RunningBatch[str] = RunningBatch(vlm)
    layout = vlm.layout
    shape = (layout.layers, 1, layout.kv_heads, layout.tokens, layout.head_dim)
    torch.manual_seed(0)
    context = rows_of(vlm.scene_cache(torch.randn(shape), torch.randn(shape)))
    batch.join(context, [vlm.question_ids("what " * 50)], ["long"], [1])
    batch.join(context, [vlm.question_ids("Q")], ["short"], [8])
    held = context[0][0][0].shape[2]
    batch.leave()
    assert [row.owner for row in batch.rows] == ["short"]
    assert batch.width == held + len(vlm.question_ids("Q"))
