"""Training pairs are split by picture."""

from __future__ import annotations

import numpy as np
import pytest

from projector.training.fit import split
from projector.validation.answers import Validator
from protos.errors import CorpusError


def test_splits_are_by_picture_and_leave_something_to_train_on(judge: Validator) -> None:
    training, held = split(judge.corpus, 0.25)
    assert (len(training), len(held)) == (48, 16)
    np.testing.assert_array_equal(held.x, judge.corpus.x[48:])
    with pytest.raises(CorpusError, match="none to train on"):
        split(judge.corpus, 1.0)
