"""An empty queue for each test, copied from one that was migrated once for the session."""

from __future__ import annotations

from tests.integration.storage.conftest import migrated, path

__all__ = ["migrated", "path"]
