"""The confidence beside a checkpoint: read back as written, refused if it is another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from projector.codec.confidence import FEATURES
from projector.codec.confidence_file import NAME, read_confidence, write_confidence
from projector.models.exported.manifest import CalibratedConfidence
from protos.errors import ModelError

LEARNT = CalibratedConfidence(
    weights=[0.25] * FEATURES, bias=-1.5, questions=320, accuracy=0.8, error=0.02
)


def test_what_was_learnt_is_read_for_the_same_checkpoint_only(tmp_path: Path) -> None:
    assert read_confidence(tmp_path, "a" * 64) is None
    write_confidence(tmp_path, "a" * 64, LEARNT)
    found = read_confidence(tmp_path, "a" * 64)
    assert found is not None and found.bias == -1.5
    np.testing.assert_array_equal(found.weights, LEARNT.weights)
    with pytest.raises(ModelError, match="another checkpoint.*calibrate-edge"):
        read_confidence(tmp_path, "b" * 64)


@pytest.mark.parametrize("text", ["", "{}", '{"fingerprint": "a", "confidence": 1}', "\x00\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ModelError, match=NAME):
        read_confidence(tmp_path, "a" * 64)
