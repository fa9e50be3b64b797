"""Triggers: which pictures are taken, at which times."""

from __future__ import annotations

import pytest

from edge_agent.cameras.triggers import Trigger, Triggers, rules_of
from protos.calls import PRIORITIES
from protos.errors import ConfigError


def taken(rules: list[str], motion: dict[float, float], until: float = 60.0, fps: int = 5) -> list:
    """Kind and time of each picture that is taken of `fps` a second."""
    triggers = Triggers([Trigger.parse(rule) for rule in rules])
    times = [number / fps for number in range(int(until * fps))]
    found = [(at, triggers.judge(at, motion.get(at, 0.0))) for at in times]
    return [(rule.kind, at) for at, rule in found if rule is not None]


def test_without_triggers_every_picture_is_taken() -> None:
    assert len(taken([], {}, until=2.0)) == 10


def test_every_so_often_keeps_to_its_clock() -> None:
    assert taken(["every=10s"], {}) == [("every", at) for at in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)]
    assert taken(["every=500ms"], {}, until=2.0) == [("every", t) for t in (0.0, 0.6, 1.0, 1.6)]


def test_a_long_gap_costs_no_burst() -> None:
    triggers = Triggers([Trigger.parse("every=10s")])
    kinds = [triggers.judge(at, 0.0) is not None for at in (0.0, 35.0, 35.2, 39.9, 40.0)]
    assert kinds == [True, True, False, False, True]


def test_motion_is_taken_no_more_often_than_min_and_no_less_than_max() -> None:
    busy = {number / 5: 0.5 for number in range(50, 100)}
    found = taken(["motion,min=2s,max=20s"], busy)
    assert [at for kind, at in found if kind == "motion"] == [10.0, 12.0, 14.0, 16.0, 18.0]
    assert [at for kind, at in found if kind == "max"] == [18.0 + 20.0, 58.0]


def test_motion_below_its_share_is_not_taken() -> None:
    assert taken(["motion=0.2"], {3.0: 0.19}) == []
    assert taken(["motion=0.2"], {3.0: 0.2}) == [("motion", 3.0)]


def test_rules_add_up_and_the_small_model_is_asked_only_where_no_other_rule_takes_the_picture() -> (
    None
):
    found = taken(["local=is there a fire ?=yes,min=1s", "every=2s"], {}, until=4.0)
    assert found == [("every", 0.0), ("local", 1.0), ("every", 2.0), ("local", 3.0)]


def test_a_rule_may_have_a_priority_and_a_late_picture_keeps_it() -> None:
    rule = Trigger.parse("motion,max=5s,priority=Alarm")
    triggers = Triggers([rule])
    judged = [triggers.judge(at, motion) for at, motion in ((0.0, 0.5), (5.0, 0.0))]
    assert [(each.kind, each.priority) for each in judged if each] == [
        ("motion", PRIORITIES.index("alarm")),
        ("max", PRIORITIES.index("alarm")),
    ]


def test_a_request_takes_the_next_picture_and_no_more() -> None:
    triggers = Triggers([Trigger.parse("request")])
    assert triggers.judge(0.0, 1.0) is None
    triggers.request()
    triggers.request()
    assert [getattr(triggers.judge(at, 0.0), "kind", None) for at in (1.0, 2.0)] == [
        "request",
        None,
    ]


def test_the_question_may_hold_any_sign_and_the_answer_any_case() -> None:
    rule = Trigger.parse('local="is a = b, or 2=3 ?=Yes",min=2s')
    assert (rule.question, rule.answer, rule.min_s) == ("is a = b, or 2=3 ?", "Yes", 2.0)
    assert rule.answered_by(" yes.\n") and not rule.answered_by("yes and no")
    assert Trigger.parse('local="fire ?"="yes"') == Trigger.parse("local=fire ?=yes")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("evry=10s", "did you mean every"),
        ("moton", "did you mean motion"),
        ("", "one of every"),
        ("every", "no time"),
        ("every=0s", "no time"),
        ("every=10 parsecs", "no time"),
        ("every=-1s", "no time"),
        ("every=nan", "no time"),
        ("every=10s,min=2s", "every has no min"),
        ("every=10s,priority=high", "priority is one of"),
        ("motion=2", "share of the picture"),
        ("motion=lots", "share of the picture"),
        ("motion,min=5s,max=1s", "shorter"),
        ("motion,min=5s,min=1s", "twice"),
        ("request=now", "no value"),
        ("local=yes", "question and answer"),
        ("local=fire ?=yes,max=5s", "every="),
    ],
)
def test_what_is_no_trigger_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Trigger.parse(text)


def test_a_camera_with_triggers_of_its_own_has_only_those() -> None:
    texts = ["every=10s", "gate: every=1m", "gate:local=what: red or blue ?=red", "request"]
    rules = rules_of(texts, ["gate", "yard"])
    assert [(rule.kind, rule.every_s) for rule in rules["gate"]] == [
        ("every", 60.0),
        ("local", 0.0),
    ]
    assert rules["gate"][1].question == "what: red or blue ?"
    assert [rule.kind for rule in rules["yard"]] == ["every", "request"]
    assert rules_of(["gate: every=1m"], ["gate", "yard"])["yard"] == []


def test_a_trigger_of_an_unknown_camera_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no camera is named 'gaet'.*gate"):
        rules_of(["gaet: every=1m"], ["gate", "yard"])
    with pytest.raises(ConfigError, match="there is no trigger 'evry'"):
        rules_of(["gate: evry=1m"], ["gate"])
