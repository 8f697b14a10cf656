"""The pages and scripts, written once for all tests that look at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from share.__main__ import write


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write everything, as an installation does; the date is that of a release."""
    folder = tmp_path_factory.mktemp("share")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1795262400")
        write(folder)
    return folder
