"""How far the tests go: what `make test` leaves to `make test-long`, so that it stays a matter of minutes."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = "DLR_BUFFER_TESTS_LONG" in os.environ
"""More of the same: more lives of a queue, more points to kill at, the package built twice."""
