"""What a session agrees on: points that both sides can do."""

from __future__ import annotations

import pytest
from msgspec import structs

from cloud_server.frontend.terms import terms_of
from protos.errors import UnknownQuantizerError
from protos.points import PICTURE_POINT, RAW_KV_FP8_POINT
from tests.cloud_server import stage


def test_only_points_that_the_edge_can_encode_are_agreed_on_and_the_picture_always() -> None:
    terms = terms_of(stage.offer(), stage.SOURCE, {"fp8_e4m3"})
    assert set(terms.points) == {stage.FP8, RAW_KV_FP8_POINT, PICTURE_POINT}
    assert terms.ladder == ["fp8"] and terms.default_point == "fp8"


def test_a_default_that_the_edge_cannot_encode_gives_way_to_the_ladders_first() -> None:
    offer = structs.replace(stage.offer(), default_point="int8")
    assert terms_of(offer, stage.SOURCE, {"fp8_e4m3", "uniform"}).default_point == "uniform"


def test_an_edge_that_can_encode_no_point_is_told_which_quantizers_would_do() -> None:
    with pytest.raises(UnknownQuantizerError, match="fp8_e4m3 is the simplest"):
        terms_of(stage.offer(), stage.SOURCE, {"unheard_of"})
