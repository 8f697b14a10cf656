"""A crowd that misbehaves in every way at once, on a running daemon: the others are served, all of it is bounded."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import psutil  # type: ignore[import-untyped]

from tests.acceptance.harness import Site, eventually
from tests.acceptance.misuse.crowd import connected, crowded, many_files, register

IDLE = 1_000
GOOD = 150
"""Registrations that are timed, alone and in the crowd."""
MAX_GROWTH_BYTES = 128 * 1024 * 1024
"""What the crowd may cost at most; one of its members unbounded (requests without end) takes more within a second."""


def timed(path: Path, prefix: str) -> float:
    """Register one after another on one connection, and now and then on a new one; returns the seconds it took."""
    began = perf_counter()
    with connected(path) as kept:
        for number in range(GOOD):
            if number % 10:
                register(kept, f"{prefix}{number}")
            else:
                with connected(path) as raw:
                    register(raw, f"{prefix}{number}")
    return perf_counter() - began


def test_the_others_are_served(site: Site) -> None:
    """In a crowd of idle, slow, deaf, resetting and endless clients the good are answered, and memory stays bounded."""
    site.configure()
    daemon = site.start()
    process = psutil.Process(daemon.pid)
    timed(site.client_socket, "warm")
    site.ask("GET", "/v1/status")  # opens what reading takes
    site.pages("/v1/messages")
    files, memory = process.num_fds(), process.memory_info().rss
    alone = timed(site.client_socket, "alone")
    with many_files(), crowded(site.client_socket, site.admin_socket, idle=IDLE):
        crowd = timed(site.client_socket, "crowd")
        status = site.ask("GET", "/v1/status")
        grown = process.memory_info().rss - memory
    # Every turn of the daemon's loop has a piece of each endless client in it: slower, but by a bounded factor.
    assert crowd < 60 * alone + 5, (crowd, alone)
    assert status["alarms"] == []
    assert grown < MAX_GROWTH_BYTES
    eventually(process.num_fds, lambda found: found <= files)
    assert process.memory_info().rss - memory < MAX_GROWTH_BYTES
    stored = {message["message_id"] for message in site.pages("/v1/messages")} - {"slow"}
    assert stored == {f"{prefix}{n}" for prefix in ("warm", "alone", "crowd") for n in range(GOOD)}
    assert daemon.terminate() == 0
    assert "Traceback" not in site.log.read_text(encoding="utf-8")
