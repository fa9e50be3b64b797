"""Shared by the commands that manage the database: flags, transactions, choice of the tenant."""

from __future__ import annotations

import argparse
import os
import pwd
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.output import agreed, told
from protos.errors import ConfigError
from protos.process import console

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from cloud_server.settings import Settings
    from cloud_server.state.store import Store, Transaction

_FLAGS = ("directory", "database")
_FOR_GOOD = ("remove", "retire-root")
"""Commands that cannot be undone."""
_EXIT_CODES = console.ends("cloud-server")


def add_group(commands: Any, name: str, text: str) -> Any:
    """Add a command with subcommands; returns the object to add them to."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"'cloud-server {name} COMMAND --help' has examples.\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest=f"{name}_command"
    )


def add_verb(
    commands: Any,
    name: str,
    text: str,
    run: Any,
    examples: Sequence[str],
    *,
    tenant: bool = False,
) -> argparse.ArgumentParser:
    """Add a command that opens the database.

    Args:
        commands: the object to add it to.
        name: its name.
        text: one line for the list of commands, without a full stop.
        run: takes the parsed arguments, returns the exit code.
        examples: whole command lines.
        tenant: whether it takes `--tenant`.
    """
    from cloud_server.settings import PREFIX, Settings
    from protos.process import settings as configuration

    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(text[0].upper() + text[1:] + ".", 80),
        epilog="examples:\n" + "".join(f"  {line}\n" for line in examples) + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if tenant:
        parser.add_argument(
            "--tenant",
            metavar="NAME",
            help="the tenant (default: the only one, beside the service's own)",
        )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    if name in _FOR_GOOD:
        parser.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"TOML file of settings [{PREFIX}CONFIG]",
    )
    configuration.add_setting_flags(parser, Settings, only=_FLAGS)
    parser.set_defaults(command=run)
    return parser


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings; these commands use only directory and database."""
    from cloud_server.settings import Settings, load
    from protos.process import settings as configuration

    flags = configuration.given_flags(given, Settings)
    return load({name: flags[name] for name in _FLAGS if name in flags}, given.config)


@contextmanager
def opened(given: argparse.Namespace) -> Iterator[Store]:
    """Open the database that the settings name.

    Raises:
        ConfigError, StateError: it cannot be used.
    """
    from cloud_server.state.location import open_store

    settings = settings_of(given)
    store = open_store(settings.database, settings.directory)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def reading(given: argparse.Namespace) -> Iterator[Session]:
    """A session for reading."""
    with opened(given) as store, store.read() as session:
        yield session


@contextmanager
def writing(given: argparse.Namespace) -> Iterator[Transaction]:
    """A transaction in this user's name."""
    with opened(given) as store, store.write(actor()) as tx:
        yield tx


def changed(
    given: argparse.Namespace,
    kind: str,
    act: Callable[[Transaction, str, str], Any],
    more: str = "",
) -> int:
    """Disable, enable or remove the device or key that is named, and say so.

    Args:
        given: the parsed arguments.
        kind: of thing, for the message.
        act: takes a transaction, the tenant and the name; its name is the verb.
        more: ends the message.
    """
    if act.__name__ in _FOR_GOOD:
        agreed(given.yes, f"remove {kind} '{given.name}' for good")
    with writing(given) as tx:
        tenant = tenant_of(given, tx.session)
        now = act(tx, tenant, given.name)
    told(
        given.json,
        {"removed": given.name, "tenant": tenant} if now is None else vars(now),
        f"{act.__name__}d {kind} '{given.name}' of tenant '{tenant}'{more}",
    )
    return 0


def actor() -> str:
    """The actor for the audit log: `cli:USER`."""
    number = os.getuid()
    try:
        return f"cli:{pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"cli:{number}"


def tenant_of(given: argparse.Namespace, session: Session) -> str:
    """The tenant that `--tenant` names, or the only one.

    Raises:
        ConfigError: no tenant is named, and there is none or more than one.
    """
    from cloud_server.identity.caller import SERVICE_TENANT
    from cloud_server.state import tenants

    if given.tenant is not None:
        return str(given.tenant)
    names = [one.name for one in tenants.every(session) if one.name != SERVICE_TENANT]
    if not names:
        raise ConfigError("there is no tenant yet: cloud-server tenants add NAME")
    if len(names) > 1:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ConfigError(f"there are {len(names)} tenants: give --tenant, one of {shown}")
    return names[0]
