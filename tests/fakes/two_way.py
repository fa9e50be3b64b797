"""A bundle that goes both ways, fitted in closed form to the caches of two tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from projector.bundle.write import write_bundle
from projector.calibration.calibrate import FP8_POINT, encoder_of, feedback_of
from projector.maps import ServedMap
from projector.maps.bidirectional import Bidirectional, BidirectionalMap
from projector.maps.moments import Moments
from projector.models.vlm import VLM
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training.corpus import Corpus, flat_states
from projector.training.fit import chunks
from tests.fakes.tiny_models import picture

PICTURES = 48


def write(folder: Path, edge: VLM, cloud: VLM, rank: int = 0, two_way: bool = True) -> Path:
    """Fit to pictures 1000 and up; the way back weighs its tokens unevenly."""
    pictures = [picture(1000 + i) for i in range(PICTURES)]
    (x, attention), (y, _) = (flat_states(vlm, pictures, True) for vlm in (edge, cloud))
    corpus = Corpus(x, y, attention)
    moments = Moments.of(chunks(corpus, edge.layout, cloud.layout), target_gram=True)
    made = Bidirectional().build(edge.layout, cloud.layout, moments).eval()
    assert isinstance(made, BidirectionalMap)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        made.attend.copy_(torch.randn(made.attend.shape, generator=generator) * 0.02)
    write_bundle(
        folder,
        id="two-way" if two_way else "one-way",
        version=1,
        source=edge.layout,
        target=cloud.layout,
        encoder=encoder_of(made, np.asarray(corpus.x)),
        cloud=CloudFiles(weights=made.to_bytes(), graph=export(ServedMap(made)).graph),
        certificate={"made": "for a test"},
        default_point=FP8_POINT,
        feedback=feedback_of(made, corpus.y, rank) if two_way else None,
    )
    return folder
