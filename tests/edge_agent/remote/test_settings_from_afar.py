"""What the service may set on a device, and the way back from settings that do not work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent import cli
from edge_agent.device import status_view
from edge_agent.remote.kept import FILE, MOST_STARTS, RemoteSettings
from edge_agent.remote.overlay import overlaid
from edge_agent.remote.rules import RemoteRules
from edge_agent.settings import Settings, load
from protos.errors import BridgeError, ConfigError, DiskFullError, NotAllowedHereError
from protos.process import files
from protos.remote import SETTABLE

NEVER = {
    "mask", "source", "server", "server_name", "ca", "insecure", "proxy", "device_name",
    "allow_crop", "crop_bytes", "crop_share",
    "state_dir", "slots", "update_keys", "spool", "spool_key", "guard", "guard_limit", "point",
    "picture_codec", "picture_quality", "picture_px", "remote", "output", "model", "metrics_host",
}  # fmt: skip
"""What cameras may show, whom the device trusts, where things lie."""


def own(**values: Any) -> Settings:
    return load(values, environ={})


def test_no_rule_lets_the_service_loosen_a_mask_a_consent_or_an_identity() -> None:
    assert not NEVER & set(SETTABLE)
    assert set(SETTABLE) <= set(Settings.model_fields), "every name is a setting"
    before = own(mask=["gate=0,0 1,0 1,1"], server=["a.example:1"])
    for name in set(Settings.model_fields) - set(SETTABLE):
        with pytest.raises(ValueError, match="can never be set"):
            RemoteRules(settings=(name,))
        made = overlaid(before, {name: "1"})
        assert made.settings == before and made.taken == ()
        assert isinstance(made.refused[name], NotAllowedHereError) and name in str(
            made.refused[name]
        )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"hold_every_s": 0.5}, NotAllowedHereError),
        ({"hold_every_s": "soon"}, ConfigError),
        ({"hold_every_s": [1]}, ConfigError),
        ({"log_level": "shout"}, ConfigError),
        ({"trigger": ["evry=3s"]}, ConfigError),
        ({"trigger": {"a": 1}}, ConfigError),
        ({"highest_point": "picture"}, ConfigError),
        ({"questions": ["what ?"]}, NotAllowedHereError),
        ({"no_such": 1}, NotAllowedHereError),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name_and_the_others_are_taken(
    values: dict[str, Any], error: type[BridgeError]
) -> None:
    made = overlaid(own(), {"linger_ms": "250", **values})
    assert made.taken == ("linger_ms",) and made.settings.linger_ms == 250
    (name,) = values
    assert type(made.refused[name]) is error and name in made.refused[name].message


def test_settings_that_do_not_go_together_are_refused_together() -> None:
    made = overlaid(own(), {"latency_objective_ms": 100, "linger_ms": 500, "log_level": "debug"})
    assert "linger_ms" in made.refused and made.settings.log_level == "debug"


def test_the_devices_keeper_draws_the_bounds(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(
        '[remote]\nsettings = ["questions", "log_level=info|warning", "hold_every_s=10..20"]\n'
        "restart = false\n"
    )
    chosen = load({}, file, environ={})
    made = overlaid(chosen, {"questions": "a ?", "log_level": "debug", "hold_every_s": 15})
    assert made.taken == ("questions", "hold_every_s") and set(made.refused) == {"log_level"}
    with pytest.raises(NotAllowedHereError, match="restart = false"):
        chosen.remote.require("restart")
    file.write_text('[remote]\nsettings = ["mask"]\n')
    with pytest.raises(ConfigError, match="can never be set"):
        load({}, file, environ={})
    file.write_text("[remote]\nallow = true\n")
    with pytest.raises(ConfigError, match="remote.allow = True"):
        load({}, file, environ={})


def kept(folder: Path, **values: Any) -> RemoteSettings:
    return RemoteSettings(folder, lambda: own(**values))


def test_settings_survive_a_restart_and_lie_over_the_devices_own(tmp_path: Path) -> None:
    kept(tmp_path).take(3, {"log_level": "debug", "mask": "x"})
    again = kept(tmp_path, log_level="error")
    assert again.read().log_level == "debug" and again.revision == 3
    assert [one.name for one in again.standing().refused] == ["mask"]


def test_settings_on_trial_are_taken_back_after_starts_that_did_not_come_far(
    tmp_path: Path,
) -> None:
    kept(tmp_path).take(1, {"log_level": "debug"})
    kept(tmp_path).attempt(2, {"linger_ms": 9}, "ab" * 16)
    for _ in range(MOST_STARTS):  # each of them is killed
        one = kept(tmp_path)
        one.start()
        assert one.read().linger_ms == 9
    one = kept(tmp_path)
    one.start()
    assert (one.read().linger_ms, one.read().log_level) == (0, "debug")
    assert one.failed is not None and one.failed.order == "ab" * 16
    told = one.standing()
    assert (told.revision, told.tried) == (1, 2) and "3 times" in told.refused[0].message


def test_settings_on_trial_are_in_force_once_the_agent_runs(tmp_path: Path) -> None:
    kept(tmp_path).attempt(2, {"linger_ms": 9}, "ab" * 16)
    one = kept(tmp_path)
    one.start()
    assert one.confirm() is not None and one.confirm() is None
    for _ in range(MOST_STARTS + 2):
        one = kept(tmp_path)
        one.start()
        assert one.read().linger_ms == 9 and one.revision == 2


def test_the_status_shows_revision_trial_and_what_was_taken_back(tmp_path: Path) -> None:
    one = kept(tmp_path)
    assert one.stand() is None
    one.take(3, {"log_level": "debug", "mask": "x"})
    one.read()
    assert status_view.service_settings(one.stand() or {}) == (
        "revision 3 of the service; in use: log_level; refused: mask: this device does not let the "
        "service change it"
    )
    one.attempt(4, {"linger_ms": 9}, "ab" * 16)
    one = kept(tmp_path)
    one.start()
    one.read()
    shown = status_view.service_settings(one.stand() or {})
    assert shown == (
        "revision 3 of the service; revision 4 on trial, start 1 of 3; in use: linger_ms"
    )
    one.back("the model does not fit")
    one = kept(tmp_path)
    one.read()
    assert json.loads(json.dumps(one.stand()))["taken_back"] == {
        "revision": 4, "cause": "the model does not fit",
    }  # fmt: skip
    shown = status_view.service_settings(one.stand() or {})
    assert shown.endswith("; revision 4 TAKEN BACK: the model does not fit")
    one.take(5, {"log_level": "debug"})
    one.read()
    assert one.stand() == {
        "revision": 5, "taken": ["log_level"], "refused": {}, "on_trial": None, "taken_back": None,
    }  # fmt: skip


def test_a_start_that_cannot_be_counted_is_none_with_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path).attempt(2, {"linger_ms": 9}, "ab" * 16)
    one = kept(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    one.start()
    assert one.read().linger_ms == 0
    with pytest.raises(DiskFullError):
        one.take(3, {})


KEPT = {"revision": 1, "values": {}, "trial": None, "failed": None}
DAMAGED = [
    {"revision": -1},
    {"revision": 1 << 60},
    {"values": [["linger_ms", 9]]},
    {"trial": {"revision": 2, "values": ["linger_ms"], "order": "ab"}},
    {"trial": {"revision": 2, "values": {}, "order": "ab", "starts": "many"}},
    {"failed": {"revision": 2, "order": "ab", "cause": 5}},
]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"revision": 1}', "null", '{"trial": 5}']
    + [json.dumps(KEPT | one) for one in DAMAGED],
)
def test_a_damaged_file_is_no_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    one = kept(tmp_path)
    one.start()
    assert one.read() == own() and one.revision == 0


def test_a_setting_of_any_name_is_told_within_the_bounds_of_the_protocol(tmp_path: Path) -> None:
    one = kept(tmp_path)
    one.take(2, {"\ud800": 1, "字" * 90: 2, "linger_ms": 9})
    one.read()
    told = one.standing()
    names = [each.name for each in told.refused]
    assert names == ["?", "字" * 21]


def test_a_run_that_ends_with_an_error_takes_settings_on_trial_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the agent starts again by itself where nobody else starts it."""
    kept(tmp_path).attempt(2, {"linger_ms": 9}, "ab" * 16)
    seen: list[int] = []

    def run(chosen: Settings, *_: Any) -> int:
        seen.append(chosen.linger_ms)
        raise ConfigError("no such selector")

    def again() -> None:
        raise SystemExit(77)

    monkeypatch.setattr(cli, "_run_once", run)
    monkeypatch.setattr(cli, "exec_again", again)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--state-dir", str(tmp_path)])
    assert ended.value.code == 77 and seen == [9]
    told = json.loads((tmp_path / FILE).read_text())
    assert told["trial"] is None and "no such selector" in told["failed"]["cause"]
    assert cli.main(["run", "--state-dir", str(tmp_path)]) == ConfigError.exit_code, "its own fault"


def test_settings_in_force_that_end_a_run_are_left_out_of_the_next_and_taken_back_if_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path).take(4, {"linger_ms": 9})
    seen: list[int] = []

    def run(chosen: Settings, *_: Any) -> int:
        seen.append(chosen.linger_ms)
        if chosen.linger_ms:
            raise ConfigError("point 'x99' is not one of the server's")
        return 0

    def again() -> None:
        raise SystemExit(77)

    monkeypatch.setattr(cli, "_run_once", run)
    monkeypatch.setattr(cli, "exec_again", again)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    argv = ["run", "--state-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 77 and cli.main(argv) == 0 and seen == [9, 0]
    one = kept(tmp_path)
    one.read()
    for _ in range(2):  # also once the service has heard it
        told = one.standing()
        assert (told.revision, told.tried) == (0, 4) and "x99" in told.refused[0].message
        shown = one.stand()
        assert shown is not None and "x99" in shown["taken_back"]["cause"]
        one.confirm()
    assert one.read().linger_ms == 0 and kept(tmp_path).read().linger_ms == 0
    one.take(5, {"linger_ms": 3})
    assert one.read().linger_ms == 3 and not one.standing().refused


def test_settings_are_not_to_blame_for_a_run_that_ends_without_them_too(tmp_path: Path) -> None:
    one = kept(tmp_path)
    assert not one.doubt("no model"), "there are none"
    one.take(4, {"linger_ms": 9})
    assert one.doubt("no model") and kept(tmp_path).read().linger_ms == 0
    assert not kept(tmp_path).doubt("no model")
    assert kept(tmp_path).read().linger_ms == 9 and kept(tmp_path).failed is None
