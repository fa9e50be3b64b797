"""The picture point: the file that is written."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edge_agent.picture import PictureCodec


@pytest.mark.parametrize(("codec", "format"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_picture_point_writes_a_file_that_reads_back(codec: str, format: str) -> None:
    picture = Image.linear_gradient("L").resize((64, 32))
    blob = PictureCodec(codec, 90, 32).encode(picture)
    with Image.open(io.BytesIO(blob)) as read:
        assert (read.format, read.size) == (format, (32, 16))
    with Image.open(io.BytesIO(PictureCodec(codec, 90, 640).encode(picture))) as read:
        assert read.size == (64, 32)


def test_a_lower_quality_takes_fewer_bytes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    sizes = [len(PictureCodec("jpeg", quality).encode(noise)) for quality in (10, 50, 90)]
    assert sizes == sorted(sizes)
