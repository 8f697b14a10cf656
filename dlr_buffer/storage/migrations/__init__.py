"""Alembic migrations; `env` runs them, `versions` holds one module for each."""
