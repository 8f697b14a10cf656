"""The daemon as it is, but that retention looks every two seconds: ``python -m benchmarks.harness.hurried run``.

In life it looks every ten minutes, which is longer than a benchmark lasts.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

from dlr_buffer import daemon
from dlr_buffer.cli import main

RETENTION_EVERY_S = 2

if __name__ == "__main__":
    with patch.object(daemon, "RETENTION_EVERY_S", RETENTION_EVERY_S):
        sys.exit(main())
