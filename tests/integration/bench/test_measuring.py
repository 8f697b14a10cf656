"""Where a benchmark works, and that nothing of it stays."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

import pytest

from dlr_buffer.bench import measuring
from dlr_buffer.bench.measuring import BenchFailed, workplace


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free some space"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full: free some space"),
        (OSError(errno.EIO, "Input/output error"), "it broke off: .*Input/output error"),
    ],
)
def test_a_disk_that_fails(tmp_path: Path, error: Exception, words: str) -> None:
    """What the disk answers is told, and the folder is removed."""

    def work() -> None:
        with workplace(tmp_path) as place:
            (place / "queue.db").write_text("x")
            raise error

    with pytest.raises(BenchFailed, match=words):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    """`dlr-buffer bench | head -1` is no failure of the disk."""
    with pytest.raises(BrokenPipeError), workplace(tmp_path):
        raise BrokenPipeError
    assert list(tmp_path.iterdir()) == []


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with less than a gibibyte free is left alone."""
    monkeypatch.setattr(measuring, "_NEEDED_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(BenchFailed, match="1 GiB is needed"), workplace(tmp_path):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_no_such_folder(tmp_path: Path) -> None:
    """A folder that is not there is named, with what to do."""
    words = "nowhere: No such file or directory; name another folder"
    with pytest.raises(BenchFailed, match=words), workplace(tmp_path / "nowhere"):
        raise AssertionError
