"""``python -m dlr_buffer``: the same program as the ``dlr-buffer`` command; nothing else is here."""

from __future__ import annotations

import sys

from dlr_buffer.cli import main

if __name__ == "__main__":
    sys.exit(main())
