"""Binding: modes that are right from the first instant, stale files, living daemons, and what is no socket at all."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dlr_buffer.errors import DlrBufferError
from dlr_buffer.local_api import bind
from dlr_buffer.local_api.accepting import accept_present


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The worst umask: whatever is not asked for is allowed."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_as_asked(folder: Path, mode: int) -> None:
    """The mode is the one asked for, whatever the umask takes away, and a client can connect at once."""
    path = folder / "s.sock"
    before = os.umask(0o077)
    try:
        with bind(path, mode, os.getgid()):
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, os.getgid())
            assert stat.S_ISSOCK(found.st_mode)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
    finally:
        os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_the_mode_is_right_from_the_first_instant(folder: Path) -> None:
    """A watcher that looks all the time never sees any socket in the folder with a bit more than asked for."""
    path = folder / "s.sock"
    seen: set[tuple[bool, int]] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for entry in os.scandir(folder):
                try:
                    seen.add(
                        (entry.name == path.name, stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode))
                    )
                except FileNotFoundError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while (True, 0o640) not in seen:
            bind(path, 0o640, None).close()
        for _ in range(500):
            bind(path, 0o640, None).close()
    finally:
        done.set()
        watcher.join()
    assert {mode for shown, mode in seen if shown} == {0o640}
    assert all(mode & ~0o640 == 0 for _, mode in seen)


@pytest.mark.usefixtures("open_umask")
def test_the_draft_has_no_permission_before_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between bind and chmod the file, still under its hidden name, has no permission at all."""
    modes: list[int] = []
    chmod = Path.chmod

    def watched(self: Path, mode: int) -> None:
        modes.append(stat.S_IMODE(self.lstat().st_mode))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    bind(folder / "s.sock", 0o660, None).close()
    assert modes == [0]


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    """The file of a daemon that died is no obstacle."""
    path = folder / "s.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    inode = path.stat().st_ino
    with bind(path, 0o600, None), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert not path.exists()
    assert inode


def test_a_living_socket_is_left_alone(folder: Path) -> None:
    """Where a daemon answers, nothing is touched and the error says so."""
    path = folder / "s.sock"
    with bind(path, 0o600, None):
        inode = path.stat().st_ino
        with pytest.raises(DlrBufferError, match="another daemon answers"):
            bind(path, 0o600, None)
        assert path.stat().st_ino == inode
        assert [entry.name for entry in folder.iterdir()] == ["s.sock"]


def test_a_living_socket_with_a_full_backlog_is_left_alone(folder: Path) -> None:
    """A daemon too busy to accept is alive too."""
    path = folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                waiting.append(client)
                client.settimeout(0)
                client.connect(str(path))
        except BlockingIOError:
            pass
        try:
            with pytest.raises(DlrBufferError, match="another daemon answers"):
                bind(path, 0o600, None)
        finally:
            for client in waiting:
                client.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "datagram"])
def test_what_is_no_listening_socket_is_never_removed(folder: Path, kind: str) -> None:
    """A file, a folder, a link or another kind of socket at the path stays, and the error names the path."""
    path = folder / "s.sock"
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(folder / "nowhere")
        case _:
            other.bind(str(path))
    inode = path.lstat().st_ino
    with pytest.raises(DlrBufferError, match=r"s\.sock"):
        bind(path, 0o600, None)
    other.close()
    assert path.lstat().st_ino == inode


def test_a_missing_folder_is_named(folder: Path) -> None:
    """The error names what has to be created."""
    with pytest.raises(DlrBufferError, match="does not exist"):
        bind(folder / "nowhere" / "s.sock", 0o600, None)


def test_a_path_that_is_too_long_is_refused_clearly(folder: Path) -> None:
    """The system's limit on socket paths is told in words."""
    deep = folder / ("x" * 100)
    deep.mkdir()
    with pytest.raises(DlrBufferError, match="path"):
        bind(deep / "s.sock", 0o600, None)
    assert list(deep.iterdir()) == []


def test_a_failed_binding_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the group cannot be given, the draft is removed and the error names the group."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(DlrBufferError, match="group 12345"):
        bind(folder / "s.sock", 0o600, 12345)
    assert list(folder.iterdir()) == []


def test_closing_removes_only_its_own_file(folder: Path) -> None:
    """A file that another daemon put in the place meanwhile stays."""
    path = folder / "s.sock"
    first = bind(path, 0o600, None)
    path.unlink()
    with bind(path, 0o600, None):
        first.close()
        assert path.exists()
    assert not path.exists()


def test_who_left_before_it_was_accepted_is_dropped(folder: Path) -> None:
    """Among clients that left at once, those that wait are accepted in order; who ended only its sending side waits."""
    path = folder / "s.sock"

    def come(*, stay: bool) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(b"stays" if stay else b"left")
        if not stay:
            client.close()
        return client

    with bind(path, 0o600, None) as listening:
        for _ in range(10):
            come(stay=False)
        first, second = come(stay=True), come(stay=True)
        first.shutdown(socket.SHUT_WR)
        for _ in range(100):
            come(stay=False)
        third = come(stay=True)
        for expected in (first, second):
            accepted = accept_present(listening)
            with accepted, expected:
                assert accepted.recv(100) == b"stays"
                accepted.sendall(b"answer")
                assert expected.recv(100) == b"answer"
        # A turn of the loop has other things to do as well.
        with pytest.raises(BlockingIOError, match="for the next turn"):
            accept_present(listening)
        while True:
            with suppress(BlockingIOError):
                accepted = accept_present(listening)
                break
        with accepted, third:
            assert accepted.recv(100) == b"stays"
        with pytest.raises(BlockingIOError):
            accept_present(listening)
