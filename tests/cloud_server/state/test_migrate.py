"""Migrations: they make the tables of the code, once, and refuse newer databases."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from cloud_server.state import migrate, tenants
from cloud_server.state.connect import checked_url
from cloud_server.state.store import Store
from cloud_server.state.tables import Base
from protos.errors import StateError


def test_the_migrations_make_the_tables_that_the_code_describes(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(checked_url(url))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    assert differences == []


def test_the_newest_migration_is_the_one_that_the_code_names() -> None:
    script = ScriptDirectory.from_config(migrate.config())
    assert script.get_current_head() == migrate.HEAD


def test_a_new_database_has_the_tenant_of_the_operators(store: Store) -> None:
    with store.read() as session:
        assert [tenant.name for tenant in tenants.every(session)] == ["service"]


def test_a_database_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(checked_url(url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StateError, match="newer version"):
        Store.open(url)
    with engine.connect() as connection:
        assert migrate.revision_of(connection) == "9999"
    engine.dispose()


@pytest.mark.quick(1)
def test_processes_that_start_together_make_the_tables_once(url: str) -> None:
    script = (
        "import sys; from cloud_server.state.store import Store; sys.stdin.read(1); "
        "Store.open(sys.argv[1]).close()"
    )
    made = [
        subprocess.Popen(
            [sys.executable, "-c", script, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in made:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in made:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    store = Store.open(url, create=False)
    with store.read() as session:
        assert len(tenants.every(session)) == 1
    store.close()


def test_a_service_does_not_make_a_database_where_there_is_none(url: str) -> None:
    with pytest.raises(StateError, match="cloud-server init"):
        Store.open(url, create=False)
