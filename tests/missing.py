"""Parts that a test needs and the machine may lack: then it is skipped, but not where everything has to be proven."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

COMPLETE = "DLR_BUFFER_TESTS_COMPLETE"
"""Set to 1, it makes a missing part a failure; `.ci/run` sets it."""


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test for want of something; where the proof has to be complete, fail with the same reason."""
    if os.environ.get(COMPLETE) == "1":
        pytest.fail(f"{reason} ({COMPLETE}=1: nothing may be left out)", pytrace=False)
    pytest.skip(reason)
