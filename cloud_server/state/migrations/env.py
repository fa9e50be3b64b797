"""Alembic's entry point: runs the migrations on the connection of `cloud_server/state/migrate.py`.

To write the next one, change `cloud_server/state/tables.py`, then write a file in `versions` by
hand; `tests/cloud_server/state/test_migrate.py` compares the two.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
