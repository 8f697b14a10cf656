"""SIGTERM with work under way: exit 0 in time, no answer torn, what is on the wire finished or given back."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import sqlite3
import threading
from contextlib import closing

from dlr_buffer.simulator import Hang, SimulatorSettings
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import DaemonProcess, Site, StandIn, eventually, threads

SLOW = ["slow-1", "slow-2", "slow-3"]
WAITING = [f"waiting-{number}" for number in range(50)]
CLIENTS = 6


def hang(request: Request) -> Hang | None:
    """Never answer about one message; answer the others as usual."""
    return Hang() if any(receipt.message_id == "hangs" for receipt in request.receipts) else None


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """An HTTP request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(sock: socket.socket) -> tuple[int, bytes] | None:
    """Read one answer whole; None if the connection ended before it began. A torn one fails the test."""
    received = b""
    while b"\r\n\r\n" not in received:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            assert received == b"", f"a torn head: {received!r}"
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    assert found is not None, head
    while len(body) < int(found[1]):
        piece = sock.recv(65536)
        assert piece, f"a torn body: {head!r} {body!r}"
        body += piece
    json.loads(body)
    return int(head.split()[1]), body


def connected(site: Site) -> socket.socket:
    """A raw connection to the client socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(30)
    sock.connect(str(site.client_socket))
    return sock


def register_on_and_on(site: Site, prefix: str, stored: set[str], busy: threading.Barrier) -> None:
    """Register, one singly and two hundred in bulk by turns, until no answer comes."""
    with connected(site) as sock:
        for number in itertools.count():
            ids = (
                [f"{prefix}-{number}"] if number % 2 else [f"{prefix}-{number}-{each}" for each in range(200)]
            )
            lines = b"\n".join(json.dumps({"message_id": each}).encode() for each in ids)
            try:
                sock.sendall(post("/v1/messages", lines, "application/x-ndjson"))
            except (BrokenPipeError, ConnectionResetError):
                return
            answer = read_answer(sock)
            if answer is None:
                return
            if answer[0] == 503:
                continue
            assert answer[0] in (200, 201), answer
            stored.update(ids)
            if number == 10:
                busy.wait(30)


def test_stop_under_load(site: Site) -> None:
    """Slow requests finish, a hanging one is given back, answers are whole, and it ends with 0 within 10 s."""
    stored: set[str] = set()
    busy = threading.Barrier(CLIENTS + 1)
    with StandIn(SimulatorSettings(latency=3.0), script=hang) as stand_in:
        site.configure(stand_in.url, account={"concurrency": 4}, batch={"max_receipts": 1, "linger": "0s"})
        daemon = site.start()
        with site.client() as app:
            for message_id in (*SLOW, "hangs", *WAITING):
                app.report(message_id, "delivered")

        half_sent = connected(site)
        whole = post("/v1/messages", json.dumps({"message_id": "half"}).encode())
        half_sent.sendall(whole[:-5])

        def work(number: int) -> None:
            register_on_and_on(site, f"load-{number}", stored, busy)

        with half_sent, threads(CLIENTS, work):
            busy.wait(30)
            stand_in.wait_for(lambda record: record.concurrent_requests == 4 and record.requests == 4)
            assert daemon.terminate() == 0
            read_answer(half_sent)
        assert not site.client_socket.exists()
        assert not site.admin_socket.exists()

        # On a busy machine some more were answered before the signal: what counts is that none was torn.
        finished = stand_in.look(lambda record: record.accepted)
        assert finished >= len(SLOW)
        assert site.recount()["receipts"] == {
            "acknowledged": finished,
            "pending": len(SLOW) + 1 + len(WAITING) - finished,
        }
        sightings = stand_in.look(
            lambda record: {each: len(record.sightings(each)) for each in (*SLOW, "hangs")}
        )
        assert sightings == {**dict.fromkeys(SLOW, 1), "hangs": 1}

        stand_in.simulator.script = None
        stand_in.behave(SimulatorSettings())
        site.start()
        messages = {message["message_id"] for message in site.pages("/v1/messages")}
        assert stored <= messages
        assert "half" not in messages
        site.wait_until_sent()
        again = stand_in.look(lambda record: record.sightings("hangs"))
        assert len(again) == 2
        assert len({(each.state, each.request_id) for each in again}) == 1
        record = stand_in.look(lambda record: record.summary())
    assert record["accepted"] == len(SLOW) + 1 + len(WAITING)
    assert record["resends"] == 1


def test_a_second_signal_is_harmless(site: Site) -> None:
    """SIGTERM twice, as an impatient admin does, still ends with exit code 0."""
    site.configure()
    daemon = site.start()
    daemon.process.terminate()
    assert daemon.terminate() == 0
    assert "Traceback" not in site.log.read_text()


def test_stop_in_the_middle_of_a_reload(site: Site) -> None:
    """SIGTERM while a reload waits for the requests of accounts that leave still ends with 0 within 10 s."""
    with StandIn(script=hang) as stand_in:
        account = {"url": stand_in.url}
        site.configure(stand_in.url, others={"leaving": account, "following": account})
        daemon = site.start()
        with site.client() as app:
            for name in ("leaving", "following"):
                app.report("hangs", "delivered", account=name)
        stand_in.wait_for(lambda record: record.concurrent_requests == 2)
        site.configure(stand_in.url)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(site.log.read_text, lambda log: "following is not configured any more" in log)
        assert daemon.terminate() == 0
    assert "Traceback" not in site.log.read_text()
    with closing(sqlite3.connect(site.database)) as database:
        assert database.execute("SELECT status, count(*) FROM receipts GROUP BY status").fetchall() == [
            (2, 2)
        ]


MIGRATES_FOR_LONG = """
import pathlib, sys, time
if "dlr_buffer.storage.migrate" in sys.orig_argv:
    pathlib.Path({mark!r}).touch()
    time.sleep(3600)
"""


def test_stop_in_the_middle_of_a_migration(site: Site) -> None:
    """SIGTERM to the daemon alone while it migrates ends both with 0, says so, and the next start begins anew."""
    mark = site.folder / "migrating"
    (site.folder / "sitecustomize.py").write_text(MIGRATES_FOR_LONG.format(mark=str(mark)), "utf-8")
    site.configure()
    daemon = DaemonProcess(site, {"PYTHONPATH": str(site.folder)})
    site.runs.append(daemon)
    eventually(mark.exists, bool)
    assert daemon.terminate() == 0
    assert "stopped before the queue was open" in site.log.read_text()
    assert "CRITICAL" not in site.log.read_text()
    assert site.start().terminate() == 0
