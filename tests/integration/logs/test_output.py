"""Where the log goes, and that nothing on the way holds up or ends the process: real sockets, pipes and disks."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.logs import AUDIT, NOTICE, Event, Log, about
from tests.unit.logs.test_formats import decoded

MADE: list[Log] = []
NAMES = (None, "dlr_buffer", AUDIT, "apscheduler", "py.warnings")


@pytest.fixture(autouse=True)
def loggers() -> Iterator[logging.Logger]:
    """This program's logger; all levels and handlers are put back afterwards."""
    every = [logging.getLogger(name) for name in NAMES]
    kept = [(each.handlers[:], each.level) for each in every]
    yield every[1]
    logging.captureWarnings(capture=False)
    while MADE:
        MADE.pop().close()
    for each, (handlers, level) in zip(every, kept, strict=True):
        each.handlers[:] = handlers
        each.setLevel(level)


@pytest.fixture
def journal() -> Iterator[Path]:
    """A path that is short enough for the journal's socket."""
    with tempfile.TemporaryDirectory(prefix="dlr") as folder:
        yield Path(folder) / "socket"


def a_log(environ: Mapping[str, str], *, journal: Path = Path("/nowhere"), fd: int = 2) -> Log:
    """A log that is closed after the test."""
    MADE.append(Log(environ, journal=journal, fd=fd))
    return MADE[-1]


def listening(path: Path) -> socket.socket:
    """The journal's socket, as systemd binds it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return sock


def entries(sock: socket.socket) -> list[dict[str, str]]:
    """Every entry that came."""
    found = []
    while True:
        try:
            found.append({name: value.decode() for name, value in decoded(sock.recv(1 << 20))})
        except BlockingIOError:
            return found


def stderr_as_the_journals() -> dict[str, str]:
    """What systemd sets where stderr is the journal's; here it is that of the test."""
    found = os.fstat(2)
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


def test_the_journal_gets_entries_with_fields(
    loggers: logging.Logger, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """If stderr is the journal's, each record is one entry with text, priority, kind and facts, and stderr is quiet."""
    with closing(listening(journal)) as sock:
        a_log(stderr_as_the_journals(), journal=journal).apply("info", "auto")
        loggers.debug("unseen")
        loggers.warning("two\nlines", extra=about(Event.ACCOUNT_OUTAGE, account="default", receipt=7))
        (entry,) = entries(sock)
    assert entry["MESSAGE"] == "two\nlines"
    assert (entry["PRIORITY"], entry["ACCOUNT"], entry["RECEIPT"]) == ("4", "default", "7")
    assert entry["MESSAGE_ID"] == Event.ACCOUNT_OUTAGE.message_id
    assert entry["CODE_FILE"] == __file__
    assert entry["CODE_FUNC"] == "test_the_journal_gets_entries_with_fields"
    assert capfd.readouterr().err == ""


def test_a_stderr_that_was_led_elsewhere_gets_text(
    loggers: logging.Logger, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """JOURNAL_STREAM is inherited; only if it names this very stderr does it mean anything."""
    with closing(listening(journal)) as sock:
        for environ in ({}, {"JOURNAL_STREAM": "8:1"}, {"JOURNAL_STREAM": "nonsense"}):
            a_log(environ, journal=journal).apply("info", "auto")
            loggers.info("hello")
        assert entries(sock) == []
    assert capfd.readouterr().err.count("INFO    hello\n") == 3


def test_the_journal_on_request(loggers: logging.Logger, journal: Path) -> None:
    """``format = "journal"`` means the journal, whatever stderr is."""
    with closing(listening(journal)) as sock:
        a_log({}, journal=journal).apply("info", "journal")
        loggers.info("hello")
        assert [entry["MESSAGE"] for entry in entries(sock)] == ["hello"]


def test_without_its_socket_the_journal_gets_lines(
    loggers: logging.Logger, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the socket is missing (a container, say), lines with priorities go to stderr; also if it vanishes later."""
    log = a_log(stderr_as_the_journals(), journal=journal)
    log.apply("info", "auto")
    loggers.warning("before")
    with closing(listening(journal)):
        log.apply("info", "auto")
    loggers.error("after")
    journal.unlink()
    loggers.error("long after")
    assert capfd.readouterr().err == "<4>before\n<3>after\n<3>long after\n"
    assert log.lost == 0


def test_a_journal_that_is_started_anew_is_found_again(loggers: logging.Logger, journal: Path) -> None:
    """Its socket may be another one under the same name."""
    with closing(listening(journal)):
        a_log({}, journal=journal).apply("info", "journal")
        loggers.info("one")
    journal.unlink()
    with closing(listening(journal)) as sock:
        loggers.info("two")
        loggers.info("three")
        assert [entry["MESSAGE"] for entry in entries(sock)] == ["two", "three"]


def test_a_journal_that_does_not_read_holds_nothing_up(loggers: logging.Logger, journal: Path) -> None:
    """What does not fit in its buffer is lost, counted, shown as an alarm, and told once it reads again."""
    with closing(listening(journal)) as sock:
        log = a_log({}, journal=journal)
        log.apply("info", "journal")
        audit = logging.getLogger(AUDIT)
        sent = 0
        while not log.lost:
            sent += 1
            audit.log(NOTICE, "line %d", sent)
        for _ in range(100):
            audit.log(NOTICE, "lost")
        assert log.lost == 101
        assert "101 lines are lost" in (log.trouble or "")
        assert len(entries(sock)) == sent - 1
        audit.log(NOTICE, "again")
        told, again = entries(sock)
    assert again["MESSAGE"] == "again"
    assert told["MESSAGE"].startswith("101 lines of the log before this one could not be written")
    assert told["MESSAGE_ID"] == Event.LINES_LOST.message_id


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_pipe_that_nobody_reads_holds_nothing_up(loggers: logging.Logger, form: str) -> None:
    """Its flags are left alone (others hold it too); lines that do not fit are lost, and no line is half another."""
    reading, writing = os.pipe()
    try:
        log = a_log({}, fd=writing)
        log.apply("info", form)  # type: ignore[arg-type]  # one of them
        audit = logging.getLogger(AUDIT)
        while not log.lost:
            audit.log(NOTICE, "x" * 9_000)
        assert os.get_blocking(writing)
        seen = b""
        done = threading.Event()

        def read() -> None:
            nonlocal seen
            while (piece := os.read(reading, 1 << 16)) and b"the end" not in seen + piece:
                seen += piece
            seen += piece
            done.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while not done.is_set():
            audit.log(NOTICE, "the end")
        reader.join(30)
    finally:
        os.close(writing)
        os.close(reading)
    begins = b"2" if form == "text" else b"{"
    assert all(line.startswith(begins) for line in seen.splitlines())
    assert b"could not be written" in seen


def test_a_broken_pipe_and_a_full_disk_end_nothing(loggers: logging.Logger) -> None:
    """The lines are lost and counted, and the reason is told."""
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb", buffering=0) as full:
        for fd, reason in ((writing, "Broken pipe"), (full.fileno(), "No space left on device")):
            log = a_log({}, fd=fd)
            log.apply("info", "text")
            loggers.error("unheard")
            assert log.lost == 1
            assert reason in (log.trouble or "")
    os.close(writing)


def test_a_closed_stderr_never_becomes_a_file_of_the_queue(tmp_path: Path) -> None:
    """Started with stderr closed, the program opens it to nothing before anything else could get its number."""
    program = textwrap.dedent(
        """
        import logging, os, sys
        from dlr_buffer.logs import Log
        Log({}).apply("info", "auto")
        with open(sys.argv[1], "wb"):
            logging.getLogger("dlr_buffer").error("a line")
        """
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', sys.executable, program, str(tmp_path / "queue.db")]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "queue.db").read_bytes() == b""


def test_uncaught_errors_are_logged(tmp_path: Path) -> None:
    """What nothing catches, in the main thread or in another, is a line of the log with its priority."""
    program = textwrap.dedent(
        """
        import threading
        from dlr_buffer.logs import Log
        log = Log({}, journal="/nowhere")
        log.apply("info", "journal")
        log.take_uncaught()
        def fail():
            raise RuntimeError("in a thread")
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        raise RuntimeError("at the end")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert {"<2>RuntimeError: in a thread", "<2>RuntimeError: at the end"} < set(done.stderr.splitlines())
    assert all(line.startswith("<2>") for line in done.stderr.splitlines())


def test_levels(loggers: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """Other libraries speak from warnings on, ticks that overlap are no news, and what admins did is always told."""
    a_log({}, journal=Path("/nowhere")).apply("error", "journal")
    loggers.warning("unseen")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    logging.getLogger("apscheduler.scheduler").warning("missed")
    logging.getLogger(AUDIT).log(NOTICE, "ada did it")
    assert capfd.readouterr().err.splitlines() == ["<4>trouble", "<5>ada did it"]
