"""The commands that manage tenants, devices, keys and quotas, and read the audit log."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud_server import cli
from cloud_server.commands.audit import since
from cloud_server.commands.output import table
from cloud_server.identity.authority import Authority
from cloud_server.settings import Settings
from cloud_server.state import bundles, certificates
from cloud_server.state.connect import checked_url, named
from cloud_server.state.directory import Directory
from cloud_server.state.location import open_store
from cloud_server.state.quota import UNBOUNDED, Quota
from cloud_server.state.store import Store
from protos.errors import ConfigError, ConflictError, MissingError, StateError
from protos.identity import OneTimeCode, root_fingerprint

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `cloud-server init` makes, as far as these commands need it."""
    (tmp_path / "authority").mkdir()
    Authority.create(tmp_path / "authority", time.time())
    open_store("", tmp_path, create=True).close()
    return tmp_path


@pytest.fixture
def command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command line; returns its exit code and what it printed."""
    monkeypatch.setenv("NEURAL_BRIDGE_CLOUD_DIRECTORY", str(folder))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def good(done: tuple[int, str, str]) -> str:
    code, out, err = done
    assert code == 0, err
    return out


def in_json(done: tuple[int, str, str]) -> Any:
    return json.loads(good(done))


def directory(folder: Path, each: Quota = UNBOUNDED, whole: Quota = UNBOUNDED) -> Directory:
    store = open_store("", folder)
    with store.read() as session:
        loaded = Directory.load(session, each, whole)
    store.close()
    return loaded


def test_a_device_is_added_and_its_code_is_shown_once(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    out = good(command("devices", "add", "gate-3"))
    code = re.search(r"^  (NB1-\S+)$", out, re.M)
    assert code is not None and f"--code {code[1]}" in out
    authority = Authority.open(folder / "authority")
    assert OneTimeCode.parse(code[1]).root == root_fingerprint(authority.root_der)
    shown = good(command("devices", "show", "gate-3"))
    assert "not enrolled" in shown and code[1] not in shown
    other = in_json(command("devices", "code", "gate-3", "--json"))
    assert other["code"] != code[1] and other["expires_s"] > time.time() + 3500
    raw = b"".join(path.read_bytes() for path in folder.glob("state.db*"))
    assert OneTimeCode.parse(code[1]).secret.encode() not in raw


def test_a_device_needs_no_authority_where_it_gets_no_code(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    for path in (folder / "authority").iterdir():
        path.unlink()
    assert command("devices", "add", "gate-3")[0] != 0
    assert in_json(command("devices", "list", "--json")) == [], "nothing half done"
    assert in_json(command("devices", "add", "gate-3", "--no-code", "--json"))["name"] == "gate-3"


def test_the_tenant_need_not_be_named_where_there_is_one(command: Command) -> None:
    code, _, err = command("devices", "add", "gate-3")
    assert code == ConfigError.exit_code and "tenants add" in err
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    good(command("tenants", "add", "other"))
    code, _, err = command("devices", "add", "gate-4")
    assert code == ConfigError.exit_code and "acme, other" in err
    good(command("devices", "add", "gate-4", "--tenant", "other"))
    listed = in_json(command("devices", "list", "--json"))
    assert [(one["tenant"], one["name"]) for one in listed] == [
        ("acme", "gate-3"),
        ("other", "gate-4"),
    ]
    assert len(in_json(command("devices", "list", "--tenant", "other", "--json"))) == 1


def test_a_key_is_shown_once_and_lists_what_it_may(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    out = good(command("keys", "add", "dash", "--device", "gate-3", "--days", "2"))
    token = re.search(r"^  (nbk_\S+)$", out, re.M)
    assert token is not None
    assert token[1] not in good(command("keys", "list")) + good(command("keys", "show", "dash"))
    found = directory(folder).key(hashlib.sha256(token[1].encode()).hexdigest())
    assert found is not None and found.scopes == {"ask", "read"} and found.devices == {"gate-3"}
    assert abs(found.not_after_s - time.time() - 2 * 86400) < 60
    made = in_json(
        command("keys", "add", "anna", "--tenant", "service", "--kind", "operator", "--json")
    )
    assert made["scopes"] == ["manage", "read"] and made["not_after_s"] is None
    good(command("keys", "disable", "dash"))
    assert directory(folder).key(hashlib.sha256(token[1].encode()).hexdigest()) is None
    good(command("keys", "enable", "dash"))
    assert directory(folder).key(hashlib.sha256(token[1].encode()).hexdigest()) is not None
    good(command("keys", "remove", "dash"))
    assert command("keys", "show", "dash")[0] == MissingError.exit_code


def test_quotas_are_set_shown_and_unset(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    good(command("devices", "add", "gate-4"))
    usual = Settings()
    assert in_json(command("quotas", "show", "--json")) == [
        {"tenant": "acme", "device": None, "set": {}, "counts": vars(usual.tenant_quota)},
        {"tenant": "acme", "device": "*", "set": {}, "counts": vars(usual.device_quota)},
    ]
    good(command("quotas", "set", "--each-device", "--requests-per-s", "2.5", "--scenes", "9"))
    good(command("quotas", "set", "--device", "gate-3", "--weight", "2"))
    good(command("quotas", "set", "--bytes-per-s", "1e6"))
    shown = in_json(command("quotas", "show", "--json"))
    assert [(one["device"], one["set"]) for one in shown] == [
        (None, {"bytes_per_s": 1000000}),
        ("*", {"requests_per_s": 2.5, "scenes": 9}),
        ("gate-3", {"weight": 2}),
    ]
    each, whole = usual.device_quota, usual.tenant_quota
    now = directory(folder, each, whole)
    assert now.quota("acme", "gate-3") == replace(each, requests_per_s=2.5, scenes=9, weight=2)
    for device, counts in (("gate-3", shown[2]["counts"]), (None, shown[0]["counts"])):
        assert vars(now.quota("acme", device)) == counts, "what is shown is what counts"
    (other,) = in_json(command("quotas", "show", "--device", "gate-4", "--json"))
    assert vars(now.quota("acme", "gate-4")) == other["counts"]
    good(command("quotas", "set", "--each-device", "--unset", "requests-per-s"))
    after = directory(folder, each, whole).quota("acme", "gate-3")
    assert after == replace(each, scenes=9, weight=2)
    out = good(command("quotas", "show"))
    assert "each device" in out and " 9*" in out and "* was set" in out


def test_the_audit_log_names_the_user_of_the_system(command: Command) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    good(command("devices", "disable", "gate-3"))
    good(command("tenants", "disable", "acme"))
    found = in_json(command("audit", "--json"))
    me = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert {one["actor"] for one in found} == {me}
    assert [one["action"] for one in found] == [
        "tenant.disable",
        "device.disable",
        "code.issue",
        "device.add",
        "tenant.add",
    ]
    assert all(abs(one["at_s"] - time.time()) < 60 for one in found)
    assert len(in_json(command("audit", "--action", "device.", "--json"))) == 2
    assert len(in_json(command("audit", "--limit", "1", "--json"))) == 1
    assert in_json(command("audit", "--since", "2100-01-01", "--json")) == []
    good(command("quotas", "set", "--tenant", "acme", "--requests-per-s", "5"))
    shown = good(command("audit", "--since", "1h"))
    assert re.search(r" expires=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", shown)
    assert " requests_per_s=5" in shown


@pytest.mark.quick(6)
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("tenants", "add", "acme"), ConflictError),
        (("tenants", "add", "Acme"), ConfigError),
        (("tenants", "remove", "acme"), ConflictError),
        (("tenants", "remove", "service"), ConflictError),
        (("tenants", "show", "none"), MissingError),
        (("devices", "add", "gate-3"), ConflictError),
        (("devices", "show", "none"), MissingError),
        (("devices", "revoke", "none"), MissingError),
        (("devices", "revoke", "gate-3", "--serial", ""), MissingError),
        (("devices", "show", "gate-3", "--tenant", "none"), MissingError),
        (("keys", "add", "a", "--scope", "fly"), ConfigError),
        (("keys", "add", "a", "--days", "-1"), ConfigError),
        (("keys", "add", "a", "--days", "soon"), ConfigError),
        (("keys", "add", "a", "--device", "none"), MissingError),
        (("keys", "add", "a", "--kind", "king"), ConfigError),
        (("quotas", "set"), ConfigError),
        (("quotas", "show", "--device", "none"), MissingError),
        (("quotas", "set", "--scenes", "many"), ConfigError),
        (("quotas", "set", "--scenes", "nan"), ConfigError),
        (("quotas", "set", "--scenes", "1e400"), ConfigError),
        (("quotas", "set", "--unset", "speed"), ConfigError),
        (("quotas", "set", "--device", "none", "--scenes", "1"), MissingError),
        (("audit", "--limit", "0"), ConfigError),
        (("bundles", "activate", "x@1", "--wait", "nan"), ConfigError),
        (("bundles", "activate", "x@1", "--wait", "-1"), ConfigError),
        (("audit", "--since", "yesterday"), ConfigError),
        (("audit", "--before", "x"), ConfigError),
        (("devices",), ConfigError),
        (("devices", "lsit"), ConfigError),
        (("devices", "list", "--database", "mysql://x"), ConfigError),
        (("devices", "list", "--database", "no url"), ConfigError),
        (("devices", "list", "--database", "sqlite:////none/state.db"), StateError),
        (("devices", "list", "--directory", "/none"), StateError),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_with_the_errors_exit_code(
    command: Command, arguments: tuple[str, ...], error: type[ConfigError]
) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    code, out, err = command(*arguments)
    assert (code, out) == (error.exit_code, ""), err
    assert err.startswith(f"cloud-server: {error.name}: ") and len(err.splitlines()) == 1


def test_a_tenant_shuts_out_all_of_its_own(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    key = in_json(command("keys", "add", "app", "--json"))["key"]
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert directory(folder).key(digest) is not None
    good(command("tenants", "disable", "acme"))
    assert directory(folder).key(digest) is None
    assert "disabled" in good(command("tenants", "list"))
    good(command("tenants", "enable", "acme"))
    assert directory(folder).key(digest) is not None
    good(command("tenants", "remove", "acme", "--force"))
    assert [one["name"] for one in in_json(command("tenants", "list", "--json"))] == ["service"]


def test_every_command_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("add", "list", "show", "disable", "enable", "remove")
    every = [(group, verb) for group in ("tenants", "devices", "keys") for verb in verbs]
    for words in (
        *every,
        ("devices", "code"),
        ("devices", "revoke"),
        ("quotas", "show"),
        ("quotas", "set"),
        ("audit",),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--help"])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert f"cloud-server {' '.join(words)}" in out and "--json" in out
        assert "see cloud-server --help" in out and "--directory" in out
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "76  state" in capsys.readouterr().out


def test_a_password_in_the_databases_url_is_never_shown(command: Command) -> None:
    url = "postgresql://anna:tr0ub4dor@127.0.0.1:9/none"
    code, out, err = command("tenants", "list", "--database", url)
    assert code == StateError.exit_code and "PostgreSQL" in err
    assert "tr0ub4dor" not in out + err
    others = ("postgresql://h/d?user=a&password=tr0ub4dor", "postgresql://a:x@tr0ub4dor@h/d")
    for one in (url, *others):
        assert "tr0ub4dor" not in Settings(database=one).model_dump_json()
        assert "tr0ub4dor" not in named(checked_url(one))


def test_help_needs_neither_database_nor_network_libraries() -> None:
    script = (
        "import sys\nfrom cloud_server import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'sqlalchemy', 'alembic', 'grpc', 'cryptography', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", 1_000_000 - 1800),
        ("2d", 1_000_000 - 172_800),
        ("1970-01-02", 86_400),
        ("1970-01-02T00:00:10", 86_410),
        ("1970-01-02T00:00+01:00", 82_800),
    ],
)
def test_a_time_is_a_span_or_a_date(text: str, expected: float) -> None:
    assert since(text, 1_000_000) == expected


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_fits_the_terminal_and_is_whole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("gate-3", "x" * 60), ("a", None), ("evil\x1b[2J", True)]
    for out in (_Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", out)
        table(("name", "what"), rows, "nothing")
        lines = out.getvalue().splitlines()
        assert len(lines) == 4 and "\x1b" not in out.getvalue()
        if out.isatty():
            assert max(map(len, lines)) == 40 and lines[1].endswith("…")
        else:
            assert lines[1].endswith("x" * 60)


def test_a_devices_certificates_and_last_renewal_are_shown(command: Command, folder: Path) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    now_s = time.time()
    for serial, given_s, ends_s in (
        ("aa", now_s - 300, now_s - 100),
        ("bb", now_s - 200, now_s + 9e5),
        ("cc", now_s - 100, now_s + 9e5),
    ):
        store = Store.open(
            f"sqlite:///{folder}/state.db", folder / "revocations", clock=lambda at_s=given_s: at_s
        )
        with store.write("renew") as tx:
            certificates.record(tx, "acme", "gate-3", serial, "ab" * 32, ends_s)
        if serial == "bb":
            with store.write("test") as tx:
                certificates.revoke(tx, "acme", "bb")
        store.close()
    out = good(command("devices", "show", "gate-3"))
    table_of = [line.split() for line in out.splitlines() if line[:2] in ("aa", "bb", "cc")]
    assert [(line[0], line[5]) for line in table_of] == [
        ("cc", "valid"),
        ("bb", "revoked"),
        ("aa", "ended"),
    ]
    renewed = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_s - 100))
    assert re.search(rf"^last renewal +{renewed}$", out, re.M)
    assert re.search(r"^state +enrolled$", out, re.M)
    shown = in_json(command("devices", "show", "gate-3", "--json"))
    assert [one["serial"] for one in shown["certificates"]] == ["cc", "bb", "aa"]
    assert abs(shown["last_renewal_s"] - (now_s - 100)) < 1
    assert in_json(command("devices", "list", "--json"))[0]["state"] == "enrolled"
    other = ("devices", "revoke", "gate-3", "--serial")
    assert command(*other, "bb")[0] == MissingError.exit_code, "it is not valid any more"
    assert "cc" in good(command(*other, "C"))
    assert in_json(command("devices", "list", "--json"))[0]["state"] == "revoked"
    assert in_json(command("audit", "--json"))[0]["action"] == "certificate.revoke"
    assert "aa" in good(command("devices", "revoke", "gate-3")), "it could still be renewed"
    assert "no valid certificate" in good(command("devices", "revoke", "gate-3"))
    good(command("devices", "disable", "gate-3"))
    assert "valid" not in good(command("devices", "show", "gate-3"))


def test_a_devices_certificates_are_revoked_and_it_stays_enabled(
    command: Command, folder: Path
) -> None:
    good(command("tenants", "add", "acme"))
    good(command("devices", "add", "gate-3"))
    store = open_store("", folder)
    with store.write("test") as tx:
        for serial in ("ab1", "ab2", "ab3"):
            certificates.record(tx, "acme", "gate-3", serial, "ab" * 32, time.time() + 9e5)
    store.close()
    code, _, err = command("devices", "revoke", "gate-3", "--serial", "ab")
    assert code == ConflictError.exit_code and "more digits" in err
    (one,) = in_json(command("devices", "revoke", "gate-3", "--serial", "ab2", "--json"))
    assert one["serial"] == "ab2" and abs(one["revoked_s"] - time.time()) < 60
    assert "revoked 2" in good(command("devices", "revoke", "gate-3"))
    shown = in_json(command("devices", "show", "gate-3", "--json"))
    assert not shown["disabled"] and all(one["revoked_s"] for one in shown["certificates"])
    assert "ab3" in (folder / "revocations").read_text(), "a restore does not bring it back"


@pytest.mark.slow
def test_what_lists_print_fits_80_columns(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(command("tenants", "add", "acme-north"))
    with_key = ("--device", "warehouse-east-9", "--device", "gate-3", "--days", "9")
    for name in ("warehouse-east-9", "gate-3"):
        good(command("devices", "add", name))
        good(command("quotas", "set", "--device", name, "--weight", "2.5", "--byte-burst", "1e7"))
    good(command("keys", "add", "dashboard-north", *with_key))
    store = open_store("", folder)
    with store.write("cli:operator") as tx:
        for version, note in ((7, ""), (8, "refused: " + "no answer is as recorded, " * 9)):
            row = bundles.add(
                tx,
                digest=str(version) * 64,
                bundle_id="edge-a-cloud",
                version=version,
                source="ab" * 32,
                path="/srv/bridge/bundles",
            )
            row.note = note
    store.close()
    lists = [(kind, "list") for kind in ("tenants", "devices", "keys", "bundles")]
    lists += [("quotas", "show"), ("audit",), ("devices", "show", "gate-3")]
    for words in lists:
        out = good(command(*words))
        assert max(map(len, out.splitlines())) <= 80, out
        assert len(in_json(command(*words, "--json"))) > 0
    assert "no answer is as recorded" in good(command("bundles", "list"))
    assert "weight=2.5" in good(command("audit")) and "warehouse-east-9" in good(
        command("keys", "list")
    )
    long = "x" * 63
    good(command("tenants", "add", long))
    good(command("devices", "add", long, "--tenant", long))
    good(command("keys", "add", long, "--tenant", long, "--device", long))
    monkeypatch.setenv("COLUMNS", "80")
    for words in (*lists[:4], ("quotas", "show", "--tenant", long, "--device", long), ("audit",)):
        out = _Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            assert cli.main(list(words)) == 0
        assert max(map(len, out.getvalue().splitlines())) <= 80, out.getvalue()


def test_a_wrong_name_gets_the_nearest_ones(command: Command, folder: Path) -> None:
    for words in (
        ("tenants", "add", "acme"),
        ("devices", "add", "gate-3"),
        ("keys", "add", "dash"),
    ):
        good(command(*words))
    store = open_store("", folder)
    with store.write("test") as tx:
        about = {"bundle_id": "edge-a", "version": 7, "source": "ab" * 32, "path": "/none"}
        bundles.add(tx, digest="7" * 64, **about)  # type: ignore[arg-type]
    store.close()
    for words, near in (
        (("tenants", "show", "amce"), "acme"),
        (("devices", "list", "--tenant", "acm"), "acme"),
        (("devices", "show", "gaet-3"), "gate-3"),
        (("keys", "remove", "dahs"), "dash"),
        (("bundles", "retire", "edge-a@8"), "edge-a@7"),
    ):
        code, _, err = command(*words)
        assert code == MissingError.exit_code and f"did you mean {near}?" in err
    for name in ("", "x" * 300, "größe", "gate/3", "\N{GRINNING FACE}", "a\nb"):
        code, _, err = command("devices", "show", name)
        assert code == MissingError.exit_code and len(err.splitlines()) == 1 and len(err) < 200


def test_on_a_terminal_a_removal_is_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(command("tenants", "add", "acme"))
    for name in ("gate-1", "gate-2", "gate-3", "gate-4"):
        good(command("devices", "add", name))

    def typed(answer: str, *words: str) -> int:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", _Terminal(answer))
            patched.setattr(sys, "stdout", _Terminal())
            return cli.main(words)

    assert typed("\n", "devices", "remove", "gate-1") == ConfigError.exit_code
    assert typed("", "tenants", "remove", "acme", "--force") == ConfigError.exit_code
    assert typed("y\n", "devices", "remove", "gate-2") == 0
    assert typed("", "devices", "remove", "gate-3", "--yes") == 0
    good(command("devices", "remove", "gate-4"))
    assert [one["name"] for one in in_json(command("devices", "list", "--json"))] == ["gate-1"]
