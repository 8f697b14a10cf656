"""The daemon and a server that answers wrongly in every way of the table, and is then mended."""

from __future__ import annotations

import asyncio
import json

from tests.acceptance.harness import Site
from tests.acceptance.test_09_secrets import LOGIN, PASSWORD, check_clean
from tests.acceptance.upstream.memory import peak_kib
from tests.acceptance.upstream.raw_server import Asked, Misbehave, RawServer
from tests.integration.smartswitch.misconduct import Misconduct, table

IDS = [f"m{number:02}" for number in range(50)]
WRONG = sorted(
    (row for row in table() if "acknowledged" not in row.outcome),
    key=lambda row: not row.name.startswith("echo"),
)
"""Those that repeat the credentials come first: of each cause, only the first in a minute is logged."""

BOUND_KIB = 48 * 1024
"""By how much the daemon's memory may grow at most: less than the 64 MiB that its bomb unpacks to."""


def act(row: Misconduct) -> Misbehave:
    """Answer as the row says."""

    async def misbehave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(row.raw(asked.ids, asked.target))

    return misbehave


def test_every_wrong_answer_and_then_a_good_one(site: Site) -> None:
    """Nothing is acknowledged, refused or lost by any wrong answer; mended, the same daemon delivers everything once.

    Login and password are in no file, no answer and no metric; no bomb and no flood of headers costs memory.
    """
    with RawServer(*map(act, WRONG)) as server:
        site.configure(
            server.url(),
            batch={"max_receipts": 10},
            retry={"initial": "2ms", "max": "10ms", "auth_probe": "100ms"},
            tables={"log": {"level": "debug"}},
            login=LOGIN,
            password=PASSWORD,
        )
        daemon = site.start()
        before = peak_kib(daemon.pid)
        with site.client() as app:
            app.report_many([(message_id, "delivered") for message_id in IDS])
        server.wait_for_the_end_of_the_script()

        assert site.recount() == {"messages": {"delivered": len(IDS)}, "receipts": {"pending": len(IDS)}}
        assert not any(receipt["refusals"] for receipt in site.pages("/v1/receipts"))
        for target in ("/v1/status", "/v1/accounts", "/metrics", "/v1/receipts?limit=1000"):
            check_clean(target, json.dumps(site.ask("GET", target), ensure_ascii=False))

        server.mend()
        site.wait_until_sent()
        assert site.recount()["receipts"] == {"acknowledged": len(IDS)}
        grown = peak_kib(daemon.pid) - before
        assert grown < BOUND_KIB, f"the daemon's memory grew by {grown} KiB"
        assert daemon.terminate() == 0
    assert sorted(server.acknowledged) == sorted(set(server.acknowledged))
    assert len(server.acknowledged) == len(IDS)
    assert all(b"kanari" in asked.target.lower() for asked in server.asked)
    assert "[redacted]" in site.log.read_text("utf-8")
    for path in site.folder.iterdir():
        if path.is_file() and path != site.config and path.suffix != ".password":
            check_clean(path.name, path.read_bytes())
