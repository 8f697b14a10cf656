"""Sockets with planted faults: real files with real owners and modes, real listeners and dead ones."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dlr_buffer import __version__
from dlr_buffer.doctor.access import Identity
from dlr_buffer.doctor.running import (
    Answer,
    Asked,
    Commands,
    alarm_findings,
    answer_findings,
    ask,
    version_finding,
)
from dlr_buffer.doctor.sockets import (
    Wanted,
    socket_findings,
    unit_path_finding,
    wanted_by_configuration,
    wanted_by_unit,
)
from tests.unit.doctor.findings_of import told

DAEMON = Identity("dlr-buffer", 4001, 4001, frozenset({4001}))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@contextmanager
def bound(path: Path, *, listens: bool = True) -> Iterator[socket.socket]:
    """Bind a socket at ``path``; one that does not listen refuses, as a dead daemon's does."""
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        if listens:
            listening.listen()
        yield listening


@as_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "faults"),
    [
        (4001, 4002, 0o660, 0),
        (0, 4002, 0o660, 1),
        (4001, 4001, 0o660, 1),
        (4001, 4002, 0o666, 1),
        (0, 0, 0o600, 3),
    ],
)
def test_owner_group_and_mode(public_folder: Path, owner: int, group: int, mode: int, faults: int) -> None:
    """Each that is not as wanted is an error of its own, and the command that is told mends it."""
    path = public_folder / "client.sock"
    wanted = wanted_by_configuration("client", path, 0o660, 4002, DAEMON)
    with bound(path):
        os.chown(path, owner, group)
        path.chmod(mode)
        found = list(socket_findings(wanted))
        assert told(found) == ([("error", "socket")] * faults if faults else [("ok", "socket")])
        for each in found if faults else []:
            assert os.system((each.remedy or "").replace("sudo ", "")) == 0
        assert told(socket_findings(wanted)) == [("ok", "socket")]


def test_something_else_in_its_place(public_folder: Path) -> None:
    """A plain file where the socket should be keeps the daemon from starting."""
    path = public_folder / "client.sock"
    path.touch()
    assert told(socket_findings(Wanted(path, None, None, 0o660, "x"))) == [("error", "socket")]
    path.unlink()
    assert told(socket_findings(Wanted(path, None, None, 0o660, "x"))) == []


@as_root
def test_a_folder_that_hides_the_socket(public_folder: Path) -> None:
    """Whoever may open the socket has to get there: a folder that is closed to its group is named."""
    path = public_folder / "client.sock"
    with bound(path):
        os.chown(path, 4001, 4002)
        path.chmod(0o660)
        public_folder.chmod(0o750)
        found = list(socket_findings(Wanted(path, 4001, 4002, 0o660, "x")))
        assert told(found) == [("ok", "socket"), ("error", "socket-folder")]
        assert str(public_folder) in found[1].what
        os.chown(public_folder, 0, 4002)
        assert told(socket_findings(Wanted(path, 4001, 4002, 0o660, "x"))) == [("ok", "socket")]


def test_what_a_socket_unit_wants(public_folder: Path) -> None:
    """Owner, group and mode are the unit's where it has them, else root's and 0666, as systemd.socket(5) says."""
    path = public_folder / "client.sock"
    wanted = wanted_by_unit("x.socket", path, {"SocketUser": "", "SocketGroup": "0", "SocketMode": "0660"})
    assert (wanted.uid, wanted.gid, wanted.mode) == (0, 0, 0o660)
    open_to_all = wanted_by_unit("x.socket", path, {})
    assert (open_to_all.uid, open_to_all.gid, open_to_all.mode) == (0, 0, 0o666)
    unknown = wanted_by_unit("x.socket", path, {"SocketGroup": "no-such-group", "SocketUser": "no-such-user"})
    assert (unknown.uid, unknown.gid) == (None, None)


def test_a_unit_that_listens_elsewhere(public_folder: Path) -> None:
    """The configuration has to name the path at which systemd listens."""
    path = public_folder / "client.sock"
    assert unit_path_finding("x.socket", path, {"Listen": f"{path} (Stream)"}) is None
    elsewhere = unit_path_finding("x.socket", path, {"Listen": "/run/other.sock (Stream)"})
    assert told([elsewhere]) == [("error", "socket-path")]


def answered(path: Path, *, admin: bool = False, patience_s: float = 20.0) -> Asked:
    """Ask at a socket."""
    return ask(path, admin=admin, patience_s=patience_s)


def test_no_socket_and_a_stale_one(public_folder: Path) -> None:
    """A socket that a killed daemon left is told from one that is not there, and from a daemon that lost its socket."""
    path = public_folder / "client.sock"
    missing = answered(path)
    assert missing.answer is Answer.MISSING
    assert told(answer_findings("client", missing, alive=False)) == [("warning", "answer")]
    assert told(answer_findings("client", missing, alive=True)) == [("error", "answer")]
    with bound(path, listens=False):
        stale = answered(path)
    assert stale.answer is Answer.STALE
    assert told(answer_findings("client", stale, alive=False)) == [("warning", "answer")]
    by_hand = Commands("dlr-buffer run", "again", "log")
    (finding,) = answer_findings("client", stale, alive=False, commands=by_hand)
    assert (finding.remedy or "").startswith("dlr-buffer run")


def test_a_daemon_that_hangs(public_folder: Path) -> None:
    """Connections that are taken and never answered are an error, after a bounded time."""
    path = public_folder / "client.sock"
    with bound(path):
        silent = answered(path, patience_s=0.05)
    assert silent.answer is Answer.SILENT
    assert told(answer_findings("client", silent, alive=True)) == [("error", "answer")]


def serve(listening: socket.socket, *answers: bytes) -> threading.Thread:
    """Answer the requests of one connection, one after the other."""

    def run() -> None:
        connection, _ = listening.accept()
        with closing(connection):
            for answer in answers:
                while not connection.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def http(status: str, body: bytes) -> bytes:
    """Make an answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_daemon_that_is_not_well(public_folder: Path) -> None:
    """What /healthz complains of is repeated as an error, and what status shows beside it is still taken."""
    path = public_folder / "admin.sock"
    ill = http("503 Service Unavailable", b'{"detail": "not healthy: the last commit failed"}')
    status = http("200 OK", b'{"version": "0.0.1", "pid": 1, "alarms": ["the disk is nearly full"]}')
    with bound(path) as listening:
        server = serve(listening, ill, status)
        asked = answered(path, admin=True)
        server.join()
    assert asked.answer is Answer.UNHEALTHY
    (finding,) = answer_findings("admin", asked, alive=True)
    assert told([finding]) == [("error", "answer")]
    assert "the last commit failed" in finding.what
    assert asked.status is not None
    assert told(alarm_findings(asked.status)) == [("warning", "alarm")]
    assert told([version_finding(asked.version, __version__)]) == [("warning", "version")]
    assert told([version_finding(__version__, __version__), version_finding(None, __version__)]) == [
        ("ok", "version")
    ]


@as_root
def test_a_socket_that_is_not_for_you(public_folder: Path) -> None:
    """An ordinary user is told so, and it is no fault."""
    path = public_folder / "admin.sock"
    with bound(path):
        path.chmod(0o600)
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(4003)
            os.setuid(4003)
            os._exit(0 if answered(path, admin=True).answer is Answer.FORBIDDEN else 1)
        assert os.waitpid(pid, 0)[1] == 0
    asked = Asked(path, Answer.FORBIDDEN)
    assert told(answer_findings("admin", asked, alive=True)) == [("note", "answer")]
    assert told(answer_findings("admin", Asked(path, Answer.NOT_ASKED), alive=False)) == [("note", "answer")]
    assert told(answer_findings("admin", Asked(path, Answer.WELL), alive=True)) == [("ok", "answer")]
