"""Power cuts: no answer leaves before its commit is synced, and whatever a cut leaves of the rest harms nothing.

One run of the daemon is recorded, from its first start to an orderly end with a kill between, and cut everywhere.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.power.answers import Broken, Fate
from tests.crash.power.bench import Bench, Replay
from tests.crash.power.recording import Action, File, Kind, Operation, Record

SIGKILLED = -9
LAX = """
import dlr_buffer.storage.store as store
durable = store.require_durable
def lax(connection):
    durable(connection)
    connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
store.require_durable = lax
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, recorder_library: Path) -> Iterator[list[Record]]:
    """A first start, load, a kill amid a checkpoint, a start from what that left, load, retention, an orderly end."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        bench = Bench(Path(name), tmp_path_factory.mktemp("recorded"), recorder_library)
        try:
            daemon = bench.start()
            bench.load()
            bench.recorder.fault(File.DATABASE, Operation.WRITE, Action.DIE, after=5)
            assert bench.load_until_dead(daemon) == SIGKILLED
            daemon = bench.start()
            bench.load(rounds=6)
            bench.wait_until_purged()
            assert daemon.terminate() == 0
            yield list(bench.recorder.records())
        finally:
            bench.close()


def check_answers(records: list[Record], folder: Path) -> Replay:
    """Look at each answer when its bytes leave."""
    replay = Replay(folder)
    for _, promised in replay.follow(records):
        replay.check_answer(promised)
    return replay


def cut_everywhere(
    records: list[Record],
    folder: Path,
    *,
    parts: int = 2,
    since: Kind = Kind.START,
    share: float = 0.02,
) -> Replay:
    """Cut the power at every sync point, and at a share of the writes; only after the first record of a kind."""
    replay, chance, begun = Replay(folder), random.Random(7), False
    for record, _ in replay.follow(records):
        begun = begun or record.kind is since
        if not begun:
            continue
        if record.kind is Kind.SYNC or (record.kind is Kind.WRITE and chance.random() < share):
            replay.cut(chance, parts=parts)
    replay.cut(chance, parts=parts)
    return replay


def test_no_answer_leaves_before_its_sync(recorded: list[Record], tmp_path: Path) -> None:
    """When the bytes of a 2xx leave the socket, what it promises is in the synced bytes of the files alone."""
    replay = check_answers(recorded, tmp_path / "image")
    assert replay.answers > 150
    assert len(replay.promises) > 2000
    assert {promise.fate for promise in replay.promises} == set(Fate)


@pytest.mark.timeout(400)  # some hundred images are opened
def test_whatever_a_power_cut_leaves_is_whole(recorded: list[Record], tmp_path: Path) -> None:
    """Cut at every sync point, with all, none or any torn part of what was not synced: nothing answered is missing."""
    replay = cut_everywhere(recorded, tmp_path / "image")
    syncs = sum(record.kind is Kind.SYNC for record in recorded)
    # How many there are depends on how many requests share a commit; each has to be cut at, whole and torn.
    assert replay.images > 2 * syncs > 100
    # Each time the least that is left was opened as the daemon opens its queue, with the lock file as it was.
    assert replay.opened > syncs
    headers = [
        record
        for record in recorded
        if record.kind is Kind.WRITE and record.file is File.WAL and record.offset == 0
    ]
    assert len(headers) > 5, "the log was never brought in and begun anew"


@pytest.mark.parametrize("file", [File.WAL, File.DATABASE, File.FOLDER])
def test_the_replay_finds_a_missing_sync(recorded: list[Record], tmp_path: Path, file: File) -> None:
    """The same records without the syncs of one file are found out: the proof can fail."""
    without = [record for record in recorded if (record.kind, record.file) != (Kind.SYNC, file)]
    with pytest.raises(Broken):
        cut_everywhere(without, tmp_path / "image")


def test_a_daemon_that_does_not_sync_is_found_out(bench: Bench, tmp_path: Path) -> None:
    """With ``synchronous = NORMAL`` planted into the daemon, an answer is seen to leave too early."""
    bench.plant(LAX)
    daemon = bench.start()
    bench.load(clients=1, rounds=2)
    assert daemon.terminate() == 0
    with pytest.raises(Broken, match=r"answers were given|answered are missing"):
        check_answers(list(bench.recorder.records()), tmp_path / "image")


def test_a_killed_first_start_leaves_no_gap(bench: Bench, tmp_path: Path) -> None:
    """Killed when the new log is first synced, its folder not yet: the next start makes the names durable itself."""
    bench.recorder.fault(File.WAL, Operation.SYNC, Action.DIE)
    first = bench.launch()
    assert bench.wait_end(first) == 1
    assert "killed by SIGKILL" in bench.log_text()
    daemon = bench.start()
    bench.load(clients=1, rounds=2)
    assert daemon.terminate() == 0
    records = list(bench.recorder.records())
    check_answers(records, tmp_path / "answers")
    cut_everywhere(records, tmp_path / "image", parts=1)
