"""Alembic's environment: runs the migrations on a connection it is given, one transaction for each."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=True, render_as_batch=False)
context.run_migrations()
