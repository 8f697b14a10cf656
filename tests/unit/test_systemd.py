"""What the daemon tells systemd, on a real datagram socket, and how log lines look there and on a terminal."""

from __future__ import annotations

import logging
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dlr_buffer.systemd import Notifier, log_to_stderr


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A socket as systemd's, which never waits: what was sent is there at once."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(address)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        yield sock


def received(sock: socket.socket) -> list[str]:
    """Every datagram that came."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture
def address() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="dlr") as folder:
        yield str(Path(folder) / "notify")


@pytest.fixture
def loggers() -> Iterator[logging.Logger]:
    """This program's logger; all levels and handlers are put back afterwards."""
    root, ours, ticks = (logging.getLogger(name) for name in (None, "dlr_buffer", "apscheduler"))
    kept = root.handlers[:], root.level, ours.level, ticks.level
    yield ours
    root.handlers[:] = kept[0]
    for logger, level in zip((root, ours, ticks), kept[1:], strict=True):
        logger.setLevel(level)


def test_the_life_of_a_daemon(address: str) -> None:
    """Readiness, a reload with its time, and the end are one datagram each, in sd_notify(3)'s words."""
    with listening(address) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.reloading()
        notifier.ready()
        notifier.stopping()
        ready, reloading, again, stopping = received(sock)
    assert (ready, again, stopping) == ("READY=1", "READY=1", "STOPPING=1")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)


def test_the_status_is_sent_when_it_changes(address: str) -> None:
    """The same line is not sent twice in a row."""
    with listening(address) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        for line in ("3 pending", "3 pending", "2 pending", "3 pending"):
            notifier.status(line)
        assert received(sock) == ["STATUS=3 pending", "STATUS=2 pending", "STATUS=3 pending"]


def test_an_abstract_socket_is_found() -> None:
    """A leading @ stands for Linux's abstract namespace, as systemd's containers use it."""
    name = f"dlr-test-{secrets.token_hex(8)}"
    with listening(f"\0{name}") as sock:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert received(sock) == ["READY=1"]


def test_without_systemd_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """No socket named: silence, not an error."""
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        Notifier(environ).ready()
    assert not caplog.records


def test_a_systemd_that_does_not_listen_is_no_reason_to_fail(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the socket is gone the daemon says so and goes on."""
    Notifier({"NOTIFY_SOCKET": address}).ready()
    assert "systemd could not be told" in caplog.text


def test_journal_lines_begin_with_their_priority(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of an event carries sd-daemon(3)'s priority and no time, which the journal adds."""
    log_to_stderr("info", {"JOURNAL_STREAM": "8:1"})
    loggers.debug("unseen")
    loggers.info("seen")
    loggers.warning("two\nlines")
    loggers.error("wrong")
    loggers.critical("over")
    assert capsys.readouterr().err.splitlines() == ["<6>seen", "<4>two", "<4>lines", "<3>wrong", "<2>over"]


def test_terminal_lines_begin_with_the_time_in_utc(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a person the time comes first, in UTC with milliseconds."""
    log_to_stderr("debug", {})
    record = loggers.makeRecord("dlr_buffer", logging.DEBUG, "x", 1, "hello", (), None)
    record.created, record.msecs = 1_800_000_000.25, 250.0
    loggers.handle(record)
    assert capsys.readouterr().err == "2027-01-15T08:00:00.250Z DEBUG   hello\n"


def test_other_libraries_speak_from_warnings_on(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debugging our own program does not bring other people's chatter, and ticks that overlap are no news."""
    log_to_stderr("debug", {"JOURNAL_STREAM": "8:1"})
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    logging.getLogger("apscheduler.scheduler").warning("missed")
    assert capsys.readouterr().err.splitlines() == ["<4>trouble"]
