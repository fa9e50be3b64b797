"""Migrations of the service's database, for Alembic."""
