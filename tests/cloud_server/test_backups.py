"""`cloud-server backup` and `restore`, as an operator types them."""

from __future__ import annotations

import json
import os
import pty
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_server import cli
from cloud_server.identity.authority import Authority
from cloud_server.state import devices
from cloud_server.state.location import open_store
from protos.errors import BackupError, ConfigError, ConflictError, DiskFullError, StateError
from tests.cloud_server.state import postgresql

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs a command line with the passphrase in a file; returns its exit code and its words."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(one) for one in arguments]
        if words[0] in ("backup", "restore") and "--passphrase-file" not in words:
            words += ["--passphrase-file", str(secret)]
        code = cli.main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def folder(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A service's directory with a tenant and two devices."""
    made = tmp_path / "service"
    assert command("init", made)[0] == 0
    monkeypatch.setenv("NEURAL_BRIDGE_CLOUD_DIRECTORY", str(made))
    for arguments in (
        ("tenants", "add", "acme"),
        ("devices", "add", "gate-3"),
        ("devices", "add", "gate-4"),
        ("keys", "add", "app"),
    ):
        assert command(*arguments)[0] == 0
    yield made


def states(command: Command, *flags: str) -> dict[str, str]:
    code, out, err = command("devices", "list", "--json", *flags)
    assert code == 0, err
    return {one["name"]: one["state"] for one in json.loads(out)}


def test_a_new_machine_is_made_from_the_two_files(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state, keys = tmp_path / "state.nb", tmp_path / "authority.nb"
    code, out, err = command("backup", state, "--with-authority", keys)
    assert code == 0 and "read it back" in out, err
    assert state.stat().st_mode & 0o777 == keys.stat().st_mode & 0o777 == 0o600
    root = Authority.open(folder / "authority").root_der
    expected = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "state.db" not in path.name
    }
    shutil.rmtree(folder)
    code, out, err = command("restore", state, "--authority", keys)
    assert code == 0 and "2 tenants, 2 devices, 1 keys" in out, err
    assert Authority.open(folder / "authority").root_der == root
    found = {name: (folder / name).read_bytes() for name in expected}
    assert found == expected
    for path in folder.rglob("*.pem"):
        private = b"PRIVATE KEY" in path.read_bytes()
        assert not private or path.stat().st_mode & 0o77 == 0
    assert states(command) == {"gate-3": "not enrolled", "gate-4": "not enrolled"}


def test_no_private_key_is_in_the_backup_of_the_state(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state.nb"
    assert command("backup", state)[0] == 0
    shutil.rmtree(folder)
    assert command("restore", state)[0] == 0
    restored = {path.name for path in folder.rglob("*") if path.is_file()}
    assert restored == {"roots.pem", "settings.toml", "state.db"}
    assert (folder / "settings.toml").stat().st_mode & 0o77 == 0, "it may hold a password"
    assert not any(b"PRIVATE" in path.read_bytes() for path in folder.rglob("*.pem"))


@pytest.mark.slow
def test_a_database_is_not_replaced_unless_that_is_asked_for(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state.nb"
    assert command("backup", state)[0] == 0
    assert command("devices", "disable", "gate-3")[0] == 0
    assert command("devices", "add", "gate-5")[0] == 0
    assert command("restore", state)[0] == ConflictError.exit_code
    assert set(states(command)) == {"gate-3", "gate-4", "gate-5"}
    code, out, _ = command("restore", state, "--force")
    assert code == 0 and "gone: device acme/gate-5" in out
    assert states(command) == {"gate-3": "disabled", "gate-4": "not enrolled"}


@pytest.mark.slow
@pytest.mark.parametrize("journal", [True, False], ids=["with journal", "without journal"])
def test_a_damaged_database_is_put_aside_and_its_journal_is_used(
    command: Command, folder: Path, tmp_path: Path, journal: bool
) -> None:
    state = tmp_path / "state.nb"
    assert command("backup", state)[0] == 0
    assert command("devices", "disable", "gate-3")[0] == 0
    (folder / "state.db").write_bytes(os.urandom(8192))
    if not journal:
        (folder / "revocations").unlink()
    assert command("devices", "list")[0] == StateError.exit_code
    assert command("restore", state)[0] == StateError.exit_code
    code, out, err = command("restore", state, "--force", "--json")
    assert code == 0, err
    aside = Path(json.loads(out)["put_aside"])
    assert aside.stat().st_size == 8192 and aside.parent == folder
    expected = "disabled" if journal else "not enrolled"
    assert states(command) == {"gate-3": expected, "gate-4": "not enrolled"}


@pytest.mark.slow
def test_another_authoritys_backup_is_refused(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state, other = tmp_path / "state.nb", tmp_path / "other"
    assert command("backup", state)[0] == 0
    assert command("init", other)[0] == 0
    code, _, err = command("restore", state, "--directory", other)
    assert code == ConflictError.exit_code and "another authority" in err


@pytest.mark.slow
def test_files_that_are_there_stay_as_they_are(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state, keys = tmp_path / "state.nb", tmp_path / "authority.nb"
    assert command("backup", state, "--with-authority", keys)[0] == 0
    (folder / "settings.toml").write_text("port = 7\n")
    code, out, _ = command("restore", state, "--authority", keys, "--force")
    assert code == 0 and "left as it was: settings.toml" in out
    assert (folder / "settings.toml").read_text() == "port = 7\n"


@pytest.mark.slow
def test_a_backup_goes_from_sqlite_to_postgresql_and_back(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        url = server.create()
        assert command("devices", "disable", "gate-3")[0] == 0
        assert command("backup", tmp_path / "a.nb")[0] == 0
        code, _, err = command("restore", tmp_path / "a.nb", "--database", url)
        assert code == 0, err
        expected = states(command)
        assert states(command, "--database", url) == expected
        assert command("devices", "add", "gate-9", "--database", url)[0] == 0
        assert command("backup", tmp_path / "b.nb", "--database", url)[0] == 0
    assert command("restore", tmp_path / "b.nb", "--force")[0] == 0
    assert states(command) == {**expected, "gate-9": "not enrolled"}


@pytest.mark.slow
def test_mistakes_are_one_line_with_the_errors_exit_code(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state, keys = tmp_path / "state.nb", tmp_path / "authority.nb"
    assert command("backup", state, "--with-authority", keys)[0] == 0
    damaged, wrong, short = tmp_path / "damaged.nb", tmp_path / "wrong", tmp_path / "short"
    damaged.write_bytes(state.read_bytes()[:-5])
    wrong.write_text("another passphrase")
    short.write_text("seven77")
    (tmp_path / "empty").write_text("\n")
    tries: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (ConflictError, ("backup", state)),
        (ConfigError, ("backup", tmp_path / "x", "--with-authority", tmp_path / "x")),
        (ConfigError, ("backup", tmp_path / "none" / "x")),
        (ConfigError, ("backup", tmp_path / "x", "--passphrase-file", short)),
        (ConfigError, ("backup", tmp_path / "x", "--passphrase-file", tmp_path / "none")),
        (ConfigError, ("backup", tmp_path / "x", "--passphrase-file", tmp_path / "empty")),
        (ConfigError, ("restore", tmp_path / "none")),
        (BackupError, ("restore", damaged, "--force")),
        (BackupError, ("restore", folder / "state.db", "--force")),
        (BackupError, ("restore", keys, "--force")),
        (BackupError, ("restore", state, "--authority", state, "--force")),
        (BackupError, ("restore", state, "--force", "--passphrase-file", wrong)),
    ]
    before = states(command)
    for error, arguments in tries:
        code, out, err = command(*arguments)
        assert (code, out) == (error.exit_code, ""), (arguments, err)  # type: ignore[attr-defined]
        assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert states(command) == before and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_services_user(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    state, keys = tmp_path / "state.nb", tmp_path / "authority.nb"
    assert command("backup", state, "--with-authority", keys)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    where = ("--directory", str(other))
    assert command("restore", state, "--authority", keys, *where)[0] == 0
    assert command("devices", "disable", "gate-3", *where)[0] == 0
    found = {path.name: path.stat().st_uid for path in other.rglob("*")}
    assert set(found.values()) == {65534}, found
    assert {"state.db", "revocations", "settings.toml", "intermediate.pem"} <= set(found)


@pytest.mark.slow
def test_a_backup_without_room_leaves_nothing_behind(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "full"
    out.mkdir()
    store = open_store("", folder)
    with store.write("test") as tx:
        for number in range(400):
            devices.add(tx, "acme", f"d{number}")
    store.close()
    script = "import sys; from cloud_server import cli; sys.exit(cli.main(sys.argv[1:]))"
    arguments = ["backup", str(out / "x"), "--passphrase-file", str(tmp_path / "passphrase")]

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    before = {path.name: path.read_bytes() for path in folder.glob("state.db")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=bounded,
    )
    assert done.returncode == DiskFullError.exit_code, done.stderr
    assert list(out.iterdir()) == []
    assert {path.name: path.read_bytes() for path in folder.glob("state.db")} == before


@pytest.mark.slow
def test_the_passphrase_is_asked_for_on_a_terminal_twice(folder: Path, tmp_path: Path) -> None:
    script = "import sys; from cloud_server import cli; sys.exit(cli.main(sys.argv[1:]))"

    def typed(*words: str, arguments: list[str]) -> tuple[int, str]:
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", script, *arguments])
        said = b""
        for prompt, word in zip((b"passphrase: ", b"once more: "), words, strict=False):
            while prompt not in said:
                said += os.read(terminal, 4096)
            os.write(terminal, word.encode() + b"\n")
        try:
            while part := os.read(terminal, 4096):
                said += part
        except OSError:  # its end
            pass
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()

    target = tmp_path / "typed.nb"
    code, said = typed("one passphrase", "other passphrase", arguments=["backup", str(target)])
    assert code == ConfigError.exit_code and "differ" in said and not target.exists()
    code, said = typed("one passphrase", "one passphrase", arguments=["backup", str(target)])
    assert code == 0 and "one passphrase" not in said, said
    code, said = typed("one passphrase", arguments=["restore", str(target), "--force"])
    assert code == 0, said
