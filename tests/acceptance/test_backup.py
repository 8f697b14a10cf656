"""`dlr-buffer backup` and `check-db` as an admin runs them, beside a daemon under the load of real clients."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from tests.acceptance.harness import Site, StandIn, eventually, threads

APPS = 3


def names(database: Path) -> set[str]:
    """The messages in a database."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return {row[0] for row in opened.execute("SELECT message_id FROM messages")}


def test_a_backup_beside_a_daemon_under_load(site: Site) -> None:
    """While apps register and report and receipts are acknowledged, the copy is sound and lacks nothing of before."""
    answered: list[set[str]] = [set() for _ in range(APPS)]
    enough = threading.Event()

    def app(number: int) -> None:
        with site.client() as client:
            for turn in itertools.count():
                if enough.is_set():
                    return
                name = f"app{number}-{turn}"
                client.register(name)
                client.report(name, "delivered")
                answered[number].add(name)

    with StandIn() as upstream:
        site.configure(upstream.url)
        daemon = site.start()
        with threads(APPS, app):
            try:
                eventually(lambda: min(map(len, answered)), lambda least: least > 50)
                before = frozenset().union(*map(frozenset, answered))
                target = site.folder / "backup.db"
                done = site.command("backup", str(target))
                assert done.returncode == 0, done.stderr
                after = frozenset().union(*map(frozenset, answered))
                assert len(after) > len(before), "nothing happened beside the backup"
                assert before <= names(target)
                for checked in (site.command("check-db", str(target)), site.command("check-db")):
                    assert checked.returncode == 0, checked.stdout + checked.stderr
                    assert "nothing is wrong" in checked.stdout
            finally:
                enough.set()
        site.wait_until_sent()
        assert daemon.terminate() == 0
    assert set().union(*answered) <= names(site.database)
