"""What a check of a database finds: everything that was planted, by its name, and nothing in a sound one."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import rules, schema
from dlr_buffer.storage.checking import Checked, Finding, check, open_read_only
from dlr_buffer.storage.lock import QueueLock
from dlr_buffer.storage.repairing import repair
from tests.integration.storage.databases import RELEASED, beside, change, dump, flip, released_database
from tests.integration.storage.harness import DELIVERED, ENROUTE, crash_copy, opened, rows
from tests.loops import on_loop

NOW = 1_800_000_500_000


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """A queue with every state and status, two accounts, histories, dead letters, chains of receipts."""
    return released_database(RELEASED / f"{schema.HEAD}.sql", tmp_path / "queue.db")


def codes(checked: Checked) -> set[str]:
    """The names of what was found."""
    return {finding.code for finding in checked.findings}


def request_id(path: Path, where: str) -> int:
    """Find a receipt."""
    found: int = rows(path, f"SELECT min(request_id) FROM receipts WHERE {where}")[0][0]
    return found


def test_a_sound_queue_has_no_findings(rich: Path) -> None:
    """Nothing is found in a queue that went through everything, and the numbers are told."""
    checked = check(rich)
    assert checked.findings == ()
    assert (checked.version, checked.messages, checked.receipts) == (
        schema.HEAD,
        rows(rich, "SELECT count(*) FROM messages")[0][0],
        rows(rich, "SELECT count(*) FROM receipts")[0][0],
    )


MENDED: list[tuple[str, str]] = [
    ("counter", "UPDATE message_counts SET rows = rows + 1 WHERE state = 6"),
    ("counter", "UPDATE receipt_counts SET rows = 0"),
    ("counter", "DELETE FROM receipt_counts WHERE status = 6"),
    ("counter", "DELETE FROM message_counts"),
    (
        "broken-links",
        "UPDATE receipts SET previous_id = NULL WHERE previous_id IN (SELECT request_id FROM receipts)",
    ),
    (
        "broken-links",
        "UPDATE receipts SET previous_id = (SELECT min(request_id) FROM receipts) WHERE state = 5 AND status = 3",
    ),
    (
        "broken-links",
        "UPDATE receipts SET previous_id = (SELECT min(previous_id) FROM receipts) WHERE previous_id IS NOT NULL",
    ),
    (
        "broken-newest",
        "UPDATE messages SET receipt_id = receipt_id - 1 WHERE receipt_id > 0 AND message_id = 'chain'",
    ),
    ("broken-newest", "UPDATE messages SET receipt_id = 1 WHERE message_id = 'bereft'"),
    ("broken-newest", "UPDATE messages SET receipt_id = -receipt_id WHERE message_id = 'held'"),
    (
        "never-expire",
        "UPDATE queue_state SET swept_to = (SELECT max(expires_at) + 1 FROM messages WHERE state < 6)",
    ),
    ("never-purged", "DELETE FROM bereft"),
    ("wrongly-bereft", "INSERT INTO bereft VALUES (4711, 1)"),
    ("wrongly-bereft", "INSERT INTO bereft SELECT id, 1 FROM messages WHERE message_id = '007'"),
    ("wrongly-bereft", "INSERT INTO bereft SELECT id, 1 FROM messages WHERE message_id = 'chain'"),
    ("orphaned-history", "INSERT INTO history (request_id, at, event, detail) VALUES (12, 1, 'held', 'x')"),
    ("numbers", "UPDATE queue_state SET next_request_id = (SELECT max(request_id) FROM receipts)"),
    ("numbers", "UPDATE queue_state SET next_message = 1"),
    ("queue-state", "DELETE FROM queue_state"),
    *(
        ("schema-missing", f"DROP INDEX {name}")
        for name in sorted(
            str(index.name) for table in schema.metadata.tables.values() for index in table.indexes
        )
    ),
]


@pytest.mark.parametrize(("code", "statement"), MENDED)
def test_what_can_be_derived_is_found_and_mended(rich: Path, code: str, statement: str) -> None:
    """The planted fault is found, said to be mendable, and mended; then nothing is wrong and nothing was lost."""
    queries = (
        "SELECT id, message_id, state, expires_at FROM messages",
        "SELECT request_id, status FROM receipts",
    )
    before = [rows(rich, query) for query in queries]
    change(rich, statement)
    found = check(rich)
    named = {finding for finding in found.findings if finding.code == code}
    assert named
    assert all(each.mendable and "--repair" in each.remedy for each in named)
    assert all(each.mendable for each in found.findings)
    assert repair(rich, found.findings, now_ms=NOW)
    assert check(rich).findings == ()
    assert [rows(rich, query) for query in queries] == before

    async def use() -> None:
        async with opened(rich) as queue:
            await queue.report_one("007", DELIVERED)
            assert await queue.report_one("new", ENROUTE) > highest

    highest = rows(rich, "SELECT max(request_id) FROM receipts")[0][0]
    asyncio.run(use())


LOST: list[tuple[str, str]] = [
    ("receipts-without-message", "DELETE FROM messages WHERE message_id = 'chain'"),
    (
        "receipts-in-two-accounts",
        "UPDATE receipts SET account_id = 2 WHERE request_id = (SELECT min(request_id) FROM receipts)",
    ),
    ("messages-without-account", "UPDATE messages SET account_id = 9 WHERE message_id = '007'"),
    ("receipts-without-account", "DELETE FROM accounts WHERE name = 'other'"),
    ("message_counts-without-account", "DELETE FROM accounts WHERE name = 'other'"),
    ("receipt_counts-without-account", "INSERT INTO receipt_counts VALUES (9, 2, 0)"),
    (
        "two-final-states",
        "UPDATE receipts SET state = 9 WHERE state = 6 AND status = 4",
    ),
    (
        "two-final-states",
        "UPDATE receipts SET state = 6, status = 4 WHERE state < 6 AND status = 5",
    ),
    ("constraint", "UPDATE messages SET state = 1 WHERE message_id = '007'"),
    ("constraint", "UPDATE receipts SET settled_at = 5 WHERE status = 3"),
    ("constraint", "UPDATE receipts SET previous_id = request_id + 5 WHERE status = 6"),
    ("constraint", "UPDATE messages SET expires_at = 'soon' WHERE message_id = '007'"),
    ("constraint", "UPDATE history SET event = x'00ff'"),
    ("schema-missing", "DROP TABLE bereft"),
    ("schema-foreign", "CREATE TABLE mine (x)"),
    (
        "schema-foreign",
        "CREATE TRIGGER mine AFTER INSERT ON messages BEGIN DELETE FROM receipts; END",
    ),
    ("schema-differs", "ALTER TABLE accounts ADD COLUMN note TEXT"),
    ("schema-version", "UPDATE alembic_version SET version_num = '0000'"),
    ("schema-version", "DELETE FROM alembic_version"),
]


@pytest.mark.parametrize(("code", "statement"), LOST)
def test_what_cannot_be_derived_is_found_and_left(rich: Path, code: str, statement: str) -> None:
    """The planted fault is found with something to do, is not said to be mendable, and a repair leaves it."""
    change(rich, statement)
    found = check(rich)
    named = [finding for finding in found.findings if finding.code == code]
    assert named
    assert all(each.remedy and not each.mendable for each in named)
    before = {line for line in dump(rich) if line.startswith('INSERT INTO "messages"')}
    repair(rich, found.findings, now_ms=NOW)
    assert code in codes(check(rich))
    assert {line for line in dump(rich) if line.startswith('INSERT INTO "messages"')} == before


def test_every_row_rule_is_tried() -> None:
    """No rule is without a planted fault above."""
    assert {rule.code for rule in rules.ROW_RULES} <= {code for code, _ in MENDED + LOST}


def root_of(path: Path, name: str) -> int:
    """Where the first page of a table or index begins in the file."""
    return (int(rows(path, "SELECT rootpage FROM sqlite_master WHERE name = ?", name)[0][0]) - 1) * 4096


@pytest.mark.parametrize("name", ["messages", "receipts", "history", "messages_name", "receipts_due"])
def test_a_damaged_page_is_found(rich: Path, name: str) -> None:
    """Bytes turned over in the head of a page are found, whatever the page holds; a repair does not touch the file."""
    flip(rich, root_of(rich, name), 12)
    found = check(rich)
    assert "damaged" in codes(found)
    assert found.findings[0].code == "damaged"
    assert "restore it from a backup" in found.findings[0].remedy
    content = rich.read_bytes()
    assert repair(rich, found.findings, now_ms=NOW) == []
    assert rich.read_bytes() == content


@pytest.mark.parametrize("name", ["messages_expiry", "receipts_dead"])
def test_an_index_that_disagrees_is_found_and_built_again(rich: Path, name: str) -> None:
    """An entry of an index that was changed behind SQLite's back is found (not by a quick check), and mended."""
    at = root_of(rich, name)
    content = bytearray(rich.read_bytes())
    # The newest entry lies first in the page's content area: turn its last byte, the row's number, over.
    first_cell = int.from_bytes(content[at + 8 : at + 10], "big")
    length = content[at + first_cell]
    content[at + first_cell + length] ^= 0x01
    rich.write_bytes(content)
    assert check(rich, quick=True).findings == ()
    found = check(rich)
    assert codes(found) == {"index"}
    assert repair(rich, found.findings, now_ms=NOW) == ["built every index again"]
    assert check(rich).findings == ()


@pytest.mark.parametrize("keep", [60, 4096, 30_000])
def test_a_cut_file_is_found(rich: Path, keep: int) -> None:
    """A file that was cut is found to be damaged."""
    rich.write_bytes(rich.read_bytes()[:keep] if keep % 4096 else rich.read_bytes()[: keep * 3])
    try:
        found = check(rich)
    except StoreUnavailable as error:
        assert "is cut" in str(error)  # noqa: PT017 - either way it is told
    else:
        assert "damaged" in codes(found)


def test_a_destroyed_header_is_found(rich: Path) -> None:
    """A file without SQLite's magic string is told to be damaged, with what to do."""
    flip(rich, 0, 16)
    (finding,) = check(rich).findings
    assert (finding.code, finding.mendable) == ("damaged", False)
    assert "not a database" in finding.detail


@pytest.mark.parametrize("content", [None, b""])
def test_nothing_is_no_queue(tmp_path: Path, content: bytes | None) -> None:
    """A missing or empty file is an error, not a clean bill of health; it is not made."""
    path = tmp_path / "queue.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="there is no queue"):
        check(path)
    assert beside(path) == (set() if content is None else {"queue.db"})


@on_loop
async def test_a_check_neither_disturbs_nor_waits(path: Path) -> None:
    """While a daemon commits, a check sees one moment of it and finds nothing; the file stays as it is."""
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(500)))
        seen: list[str] = []

        def progress(done: int, total: int, words: str) -> None:
            assert 0 <= done <= total
            if words not in seen:
                seen.append(words)
                asyncio.run_coroutine_threadsafe(queue.report_one(f"b{len(seen)}", DELIVERED), loop).result(
                    60
                )

        loop = asyncio.get_running_loop()
        size = queue.store.facts().size_bytes
        checked = await asyncio.to_thread(check, path, progress=progress)
        assert checked.findings == ()
        assert checked.receipts == 500
        assert len(seen) > 10
        assert queue.store.facts().size_bytes == size
        assert (await asyncio.to_thread(check, path)).receipts == 500 + len(seen)


@on_loop
async def test_a_repair_is_refused_while_a_daemon_runs(path: Path) -> None:
    """The queue's lock keeps a repair off a running daemon's database."""
    async with opened(path) as queue:
        await queue.report_one("m", DELIVERED)
        with pytest.raises(StoreUnavailable, match="stop it first"):
            repair(path, (Finding("counter", "", "", mendable=True),), now_ms=NOW)
    assert check(path).findings == ()
    QueueLock(path).release()


class Stop(BaseException):
    """What Ctrl-C is."""


@pytest.mark.parametrize("at", range(0, 24, 6))
def test_a_check_can_be_broken_off(rich: Path, at: int) -> None:
    """What the progress raises ends the check at once and comes out of it."""
    calls = []

    def progress(done: int, total: int, words: str) -> None:
        calls.append(words)
        if done == at:
            raise Stop

    with pytest.raises(Stop):
        check(rich, progress=progress)


def test_a_check_can_be_broken_off_within_a_query(rich: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a query that takes long ends when the progress raises, instead of when it is done."""
    monkeypatch.setattr("dlr_buffer.storage.checking._PROGRESS_EVERY", 10)
    steps = []

    def progress(done: int, total: int, words: str) -> None:
        if done in steps and words == "pages":
            raise Stop
        steps.append(done)

    with pytest.raises(Stop):
        check(rich, progress=progress)


@on_loop
async def test_a_check_that_closes_last_leaves_the_log(path: Path, tmp_path: Path) -> None:
    """As the only connection to a killed daemon's queue it still neither checkpoints nor removes the log."""
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(100)))
        copy = crash_copy(path, tmp_path / "copy.db")
    log = copy.with_name("copy.db-wal")
    before = copy.read_bytes(), log.read_bytes()
    assert check(copy).receipts == 100
    assert (copy.read_bytes(), log.read_bytes()) == before
    with (
        closing(open_read_only(copy)) as database,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        database.execute("DELETE FROM messages")
