"""Several processes train one map: which GPU each takes."""

from __future__ import annotations

import pytest

from projector.training import distributed


def test_each_process_of_a_group_takes_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert distributed.device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [distributed.device(name) for name in ("cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
