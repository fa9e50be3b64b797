"""The plan: which operating point the next frame travels at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.plan import Plan, choose_point, unknown_point
from edge_agent.uplink.point_controller import PointController
from protos.errors import ConfigError
from protos.points import Measured
from tests.fakes.fake_edge import make_session
from tests.fakes.fake_run import Run, capture


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
    points = make_session().points
    said = str(unknown_point("pictur", None, points))
    assert "point 'pictur'" in said and "raw_kv_fp8); did you mean 'picture'" in said
    assert "highest_point 'lo'" in str(unknown_point("auto", "lo", points))
    assert unknown_point("auto", None, points) is None is unknown_point("low", "fp8", points)


def test_without_the_settings_point_the_bundles_default_is_used() -> None:
    session = make_session(advised="low")
    assert choose_point(Plan("x99"), session).name == "low"
    assert choose_point(Plan(highest_point="x99"), session, PointController()).name == "low"
    assert choose_point(Plan("x99", highest_point="fp8"), session).name == "fp8"


@pytest.mark.parametrize("plan", [Plan("x99"), Plan(highest_point="x99")])
def test_a_device_on_a_pole_answers_though_the_bundle_lacks_its_point(
    tmp_path: Path, plan: Plan
) -> None:
    run = Run([capture("a"), capture("b")], tmp_path, questions=("x",), plan=plan)
    with pytest.raises(ConfigError, match="point 'x99' is not one of the server's"):
        run()
    run = Run([capture("a"), capture("b")], tmp_path, questions=("x",), plan=plan)
    run.source.endless = True  # type: ignore[attr-defined]
    assert run().answered == 2 and run.value("point_fallback") == 1
    assert run.logged.getvalue().count('"event": "point_fallback"') == 1, "said once"
