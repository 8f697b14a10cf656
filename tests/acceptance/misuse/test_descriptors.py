"""Open files never run out: connections are bounded by the limit on them, and admins have room of their own."""

from __future__ import annotations

import contextlib
import json
import resource
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack

import psutil  # type: ignore[import-untyped]
import pytest

from tests.acceptance.harness import Site, StandIn, eventually
from tests.acceptance.misuse.crowd import HEAD, HEALTH, connected, many_files, register

REFUSED = "dlr_buffer_client_connections_refused"
OPEN = "dlr_buffer_client_connections"
FILES = 512


@pytest.fixture
def few_files(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let programs that the test starts from then on open so many files and no more."""

    def limit(files: int) -> None:
        program = site.folder / "limited-python"
        program.write_text(
            f'#!/bin/sh\nulimit -n {files}\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8"
        )
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return limit


def metric(site: Site, name: str) -> int:
    """One figure of /metrics."""
    text: str = site.ask("GET", "/metrics")
    return int(float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " "))))


def test_too_low_a_limit_is_refused(site: Site, few_files: Callable[[int], None]) -> None:
    """With 64 open files nothing could be promised: the daemon says how many it needs, and does not start."""
    site.configure()
    few_files(64)
    done = site.command("run")
    assert done.returncode == 1
    assert "may open 64 files, but" in done.stderr
    assert "LimitNOFILE=" in done.stderr
    assert "Traceback" not in done.stderr
    assert not site.client_socket.exists()


def test_apps_that_hold_every_connection_do_not_keep_admins_out(
    site: Site, few_files: Callable[[int], None]
) -> None:
    """The room for connections follows the limit on open files; when apps fill theirs, admins see it and get in.

    Those beyond are told so, and what is pending goes to Smartswitch all the while.
    """
    few_files(FILES)
    with many_files(), StandIn() as upstream, ExitStack() as crowd:
        site.configure(upstream.url)
        daemon = site.start()
        site.ask("POST", "/v1/accounts/default/pause", {})
        with site.client() as app:
            app.report_many([(f"m{number}", "delivered") for number in range(500)])
        for _ in range(FILES):
            raw = crowd.enter_context(connected(site.client_socket))
            with contextlib.suppress(BrokenPipeError):
                raw.sendall(HEAD)  # in the middle of a request none gives way
        eventually(lambda: metric(site, OPEN) + metric(site, REFUSED), lambda seen: seen == FILES)
        assert metric(site, REFUSED) > 0
        assert metric(site, "dlr_buffer_admin_connections_refused") == 0
        assert psutil.Process(daemon.pid).num_fds() < FILES
        alarms = site.ask("GET", "/v1/status")["alarms"]
        assert any("the client socket is full" in alarm for alarm in alarms), alarms
        head, _, body = raw.recv(65536).partition(b"\r\n\r\n")  # the last one was turned away
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in head.lower()
        assert json.loads(body)["code"] == "overloaded"
        site.ask("POST", "/v1/accounts/default/resume", {})
        assert site.wait_until_sent()["receipts"]["acknowledged"] == 500
        assert metric(site, OPEN) > 0, "the apps hold their connections still"
        crowd.close()
        eventually(lambda: metric(site, OPEN), lambda still: still == 0)
        with site.client() as app:
            app.register("good")
    assert site.log.read_text(encoding="utf-8").count("is full with") == 1


def test_no_descriptor_left_at_all(site: Site) -> None:
    """If the system itself gives no more files, who is connected goes on, and the others are served afterwards."""
    site.configure()
    daemon = site.start()
    with connected(site.client_socket) as kept:
        register(kept, "before")
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (psutil.Process(daemon.pid).num_fds(), hard))
        with connected(site.client_socket) as waiting:
            waiting.sendall(HEALTH)
            eventually(site.log.read_text, lambda log: "out of system resource" in log)
            for number in range(200):
                register(kept, f"during{number}")
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connected(site.client_socket) as later:
            register(later, "after")
    # It waits a second between two tries: it does not spin.
    assert site.log.read_text(encoding="utf-8").count("out of system resource") < 100
    assert daemon.terminate() == 0
