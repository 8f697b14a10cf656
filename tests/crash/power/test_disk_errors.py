"""The disk fails (EIO): nothing is acknowledged, nothing tried again, the daemon ends and the next start finds it.

A sync that failed is told once by Linux, and what it should have written is not on the disk, although it can be read.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from dlr_buffer.client import ApiError
from tests.crash.power.answers import Broken, check_promises, check_whole
from tests.crash.power.bench import Bench, Replay
from tests.crash.power.recording import Action, File, Kind, Operation, Record
from tests.crash.power.test_power_cut import check_answers, cut_everywhere
from tests.extent import LONG

TOUCHES = frozenset({Kind.WRITE, Kind.TRUNCATE, Kind.UNLINK, Kind.SYNC_BEGIN})
TRUSTING = """
import dlr_buffer.storage.recovery as recovery
recovery._write_anew = lambda log: None
"""
ALONE = """
import dlr_buffer.daemon
dlr_buffer.daemon.EXPIRY_EVERY_S = 3600
"""
ATTEMPTS = 50
QUEUE = frozenset({File.DATABASE, File.WAL, File.JOURNAL})
POINTS = [
    (file, operation)
    for operation in (Operation.SYNC, Operation.WRITE, Operation.READ)
    for file in (File.WAL, File.DATABASE)
]


def touched_after_fault(records: list[Record]) -> list[Record]:
    """What the daemon that met the first fault did to the queue's files after it."""
    at = next(place for place, record in enumerate(records) if record.kind is Kind.FAULT)
    return [
        record
        for record in records[at + 1 :]
        if record.pid == records[at].pid and record.file in QUEUE and record.kind in TOUCHES
    ]


def assert_said(bench: Bench, *, reading: bool = False) -> None:
    """The daemon's last words name the file and what is wrong with it.

    SQLite may call a page that it could not read malformed; then the daemon says what else it may be.
    """
    (said,) = [line for line in bench.log_text().splitlines() if " CRITICAL " in line]
    assert "the database failed, nothing more is acknowledged" in said
    assert str(bench.site.database) in said
    assert re.search(
        "disk I/O error|Input/output error" + ("|or the disk could not be read" if reading else ""), said
    )


@pytest.mark.parametrize(("file", "operation"), POINTS if LONG else [*POINTS[:3], POINTS[-1]])
def test_an_io_error_ends_the_daemon_and_loses_nothing(
    bench: Bench, tmp_path: Path, file: File, operation: Operation
) -> None:
    """An I/O error once: no answer, no second try, exit 1; no start while it lasts; then all answered is there.

    And after a sync that failed that holds through a power cut at any later moment.
    """
    daemon = bench.start()
    bench.load(clients=1, rounds=1)
    bench.recorder.fault(file, operation, Action.FAIL_ONCE, after=2)
    assert bench.load_until_dead(daemon) == 1
    assert_said(bench, reading=operation is Operation.READ)
    records = list(bench.recorder.records())
    if operation is not Operation.READ:  # a reader's error ends the writer a moment later
        assert touched_after_fault(records) == []

    bench.recorder.fault(file, operation, Action.FAIL_ALWAYS)
    assert bench.wait_end(bench.launch()) == 1
    assert "cannot be read or written reliably" in bench.log_text().splitlines()[-1]

    bench.recorder.mend()
    after = bench.start()
    assert f"the last run (process {daemon.pid}) did not close the queue" in bench.log_text()
    bench.load(clients=1, rounds=1)
    assert after.terminate() == 0
    records = list(bench.recorder.records())
    replay = check_answers(records, tmp_path / "answers")
    check_promises(bench.site.database, replay.promises)
    check_whole(bench.site.database)
    if operation is Operation.SYNC:
        cut_everywhere(records, tmp_path / "image", since=Kind.FAULT)


def test_a_log_that_cannot_be_cut_off(bench: Bench) -> None:
    """Emptying the log fails at the end and at the starts after it: it is said, no start goes on, nothing is lost."""
    daemon = bench.start()
    bench.load(clients=1, rounds=1)
    bench.recorder.fault(File.WAL, Operation.TRUNCATE, Action.FAIL_ALWAYS)
    assert daemon.terminate() == 1
    assert_said(bench)
    assert bench.recorder.faults() == 1
    assert bench.wait_end(bench.launch()) == 1
    assert "cannot be read or written reliably" in bench.log_text().splitlines()[-1]
    bench.recorder.mend()
    after = bench.start()
    assert f"the last run (process {daemon.pid}) did not close the queue" in bench.log_text()
    assert after.terminate() == 0
    replay = Replay(bench.scratch / "image")
    for _ in replay.follow(bench.recorder.records()):
        pass
    check_promises(bench.site.database, replay.promises)
    check_whole(bench.site.database)


def test_an_io_error_of_a_reader_ends_the_daemon_too(bench: Bench) -> None:
    """An error that only a list met is no secret between it and its client: the daemon says it and ends."""
    daemon = bench.start()
    bench.load(clients=1, rounds=2)
    bench.wait_until_sent()
    with pytest.raises(ApiError, match=r"I/O error|or the disk could not be read") as caught:
        _list_until_refused(bench)
    assert caught.value.status == 503
    assert bench.wait_end(daemon) == 1
    assert_said(bench, reading=True)


def _list_until_refused(bench: Bench) -> None:
    """List messages with a failing read in the way: one list may find in its reader's cache all that it needs."""
    with bench.site.client() as app:
        for number in range(ATTEMPTS):
            app.register(f"one-more-{number}")
            for file in (File.WAL, File.DATABASE):  # a checkpoint may have moved it
                bench.recorder.fault(file, Operation.READ, Action.FAIL_ONCE)
            bench.site.ask("GET", "/v1/messages")
            bench.recorder.mend()


def test_no_start_without_durable_names(bench: Bench) -> None:
    """A folder that can't be synced could lose the queue's names: the start is refused with the folder's name."""
    bench.recorder.fault(File.FOLDER, Operation.SYNC, Action.FAIL_ALWAYS)
    assert bench.wait_end(bench.launch()) == 1
    assert f"{bench.site.folder} cannot be read or written reliably" in bench.log_text().splitlines()[-1]
    bench.recorder.mend()
    assert bench.start().terminate() == 0


@pytest.mark.parametrize("plant", ["", TRUSTING], ids=["written anew", "trusted"])
def test_a_log_that_only_looks_well_is_not_relied_on(bench: Bench, tmp_path: Path, plant: str) -> None:
    """What a failed sync lost can be read: a start that brings it in as it looks is torn by a cut, ours is not."""
    bench.plant(ALONE)
    daemon = bench.start()
    bench.load(clients=1, rounds=1)
    bench.wait_until_sent()
    # An orderly end empties the log: so that what the next run changes is not in the log's certain part as well.
    assert daemon.terminate() == 0
    daemon = bench.start()
    # The first sync of an empty log is its header's, the second that of the commit.
    bench.recorder.fault(File.WAL, Operation.SYNC, Action.FAIL_ONCE, after=2)
    with bench.site.client() as app, pytest.raises(ApiError):
        app.register_many(f"lost-{number}" for number in range(300))
    assert bench.wait_end(daemon) == 1
    bench.plant(plant)
    assert bench.start().terminate() == 0
    expected = pytest.raises(Broken) if plant else nullcontext()
    with expected:
        cut_everywhere(list(bench.recorder.records()), tmp_path / "image", since=Kind.FAULT, share=0.5)
