"""Migrations in order, one file each."""
