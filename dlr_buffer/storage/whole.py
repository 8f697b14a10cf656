"""A queue is opened whole or not at all: what has vanished, was emptied or has lost a part is refused.

An empty database looks like a new one to SQLite, and a missing row like a thing to be added. Here they are told
apart from a first start, cheaply, each time a queue is opened. Looking through every row is the business of
`checking`; whether the log is whole, of `wal`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, inspect, literal, select, union_all

from dlr_buffer.clock import SystemBootClock
from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.lock import LastRun, lock_path
from dlr_buffer.storage.wal import lost_commits

RESTORE: Final = "restore it from a backup"
_LARGEST_PAGE: Final = 65_536
"""Written as 1, since it does not fit into the header's two bytes."""


def require_there(path: Path, last: LastRun) -> None:
    """Refuse a database that is missing or empty where a queue was, and one whose log lost something.

    To be called before SQLite opens it: SQLite removes the log of an empty database. Raises StoreUnavailable.
    """
    try:
        size = path.stat().st_size if path.exists() else None
        log = path.with_name(path.name + "-wal")
        logged = log.stat().st_size if log.exists() else 0
        lost = lost_commits(path, last, SystemBootClock().boot_id()) if size else None
        torn = size % _page_size(path) if size and not logged else 0
    except OSError as error:
        raise StoreUnavailable(
            f"cannot look at {error.filename}: {error.strerror}; let the daemon's user read and write it",
            fatal=True,
        ) from error
    if lost is not None:
        raise StoreUnavailable(lost, fatal=True)
    if torn:
        # SQLite would take what is missing of the last page for zeros.
        raise StoreUnavailable(f"{path} is cut: its last page is not whole; {RESTORE}", fatal=True)
    if not size and (last.kept_a_queue or logged):
        what = "does not exist any more" if size is None else "is empty"
        remains = [lock_path(path).name] if last.kept_a_queue else []
        remains += [log.name] if logged else []
        raise StoreUnavailable(vanished(path, what, remains), fatal=True)


def _page_size(path: Path) -> int:
    """Return the page size that the header tells; 1 if it is no database, which SQLite says itself."""
    with path.open("rb") as file:
        header = file.read(18)
    size = int.from_bytes(header[16:18], "big") if header.startswith(b"SQLite format 3\0") else 1
    return _LARGEST_PAGE if size == 1 and header.startswith(b"SQLite") else max(size, 1)


def vanished(path: Path, what: str, remains: list[str]) -> str:
    """Word that a queue was at ``path`` and is not any more, as ``remains`` beside it show, and what to do."""
    return (
        f"{path} {what}, but a queue was kept there, as {' and '.join(remains)} beside it shows; {RESTORE}, or, to"
        f" begin a new one, move {' and '.join(remains)} away and set [database] first_request_id above every"
        " request_id that was used"
    )


def require_whole(connection: Connection, path: Path) -> None:
    """Refuse a queue of this program's schema in which something is missing that a first start has made.

    Raises StoreUnavailable.
    """
    found = inspect(connection)
    there = set(found.get_table_names())
    missing = [f"the table {name}" for name in schema.metadata.tables if name not in there]
    for table in schema.metadata.tables.values():
        if table.name in there:
            indexes = {each["name"] for each in found.get_indexes(table.name)}
            missing += [f"the index {each.name}" for each in table.indexes if each.name not in indexes]
    if not missing:
        missing = _missing_rows(connection)
    if missing:
        listed = ", ".join(missing[:5]) + (" and more" if missing[5:] else "")
        raise StoreUnavailable(
            f"{path} is damaged, it has lost {listed}; `dlr-buffer check-db` tells everything that is wrong and what"
            f" can be mended; else {RESTORE}",
            fatal=True,
        )


def _missing_rows(connection: Connection) -> list[str]:
    accounts = {row.id: row.name for row in connection.execute(select(schema.accounts))}
    missing = []
    if connection.execute(select(func.count()).select_from(schema.queue_state)).scalar() != 1:
        tables = (schema.accounts, schema.messages, schema.receipts, schema.message_counts, schema.history)
        any_row = union_all(*(select(literal(1)).where(select(each).exists()) for each in tables))
        if connection.execute(any_row).first() is not None:
            missing.append("the row of queue_state, which numbers receipts")
    for table, code, codes in (
        (schema.message_counts, schema.message_counts.c.state, schema.STATE_NAMES),
        (schema.receipt_counts, schema.receipt_counts.c.status, schema.STATUSES),
    ):
        counted = {(row[0], row[1]) for row in connection.execute(select(table.c.account_id, code))}
        if unnamed := {account_id for account_id, _ in counted} - set(accounts):
            missing.append(f"the names of accounts (number {', '.join(map(str, sorted(unnamed)))})")
        if not counted.issuperset((account_id, each) for account_id in accounts for each in codes):
            missing.append(f"counters ({table.name})")
    for table in (schema.messages, schema.receipts):
        if not accounts and connection.execute(select(table).limit(1)).first() is not None:
            missing.append("every account")
            break
    return missing
