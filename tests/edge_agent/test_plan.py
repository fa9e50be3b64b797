"""The plan: which operating point the next frame travels at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.plan import Plan, choose_point
from edge_agent.uplink.point_controller import PointController
from protos.errors import ConfigError
from protos.points import Measured
from tests.fakes.fake_edge import make_session


def test_a_named_point_stands_and_auto_follows_the_plan_then_the_servers_advice() -> None:
    session = make_session(advised="low")
    assert choose_point(Plan("picture"), session).name == "picture"
    assert choose_point(Plan(), session).name == "low"
    assert choose_point(Plan(highest_point="fp8"), session).name == "fp8"


def test_the_controller_chooses_at_auto_and_only_there() -> None:
    session = make_session()
    session.points["fp8"] = replace(session.points["fp8"], measured=Measured(36, 100, 0.9, 0.5, 0))
    session.points["low"] = replace(session.points["low"], measured=Measured(20, 90, 0.9, 0.1, 0))
    controller = PointController(distortion=0.2)
    assert choose_point(Plan(), session, controller).name == "low"
    assert choose_point(Plan("fp8"), session, controller).name == "fp8"


def test_a_point_that_the_server_lacks_is_named_with_the_nearest_it_has() -> None:
    with pytest.raises(ConfigError, match=r"raw_kv_fp8\); did you mean 'picture'"):
        choose_point(Plan("pictur"), make_session())
