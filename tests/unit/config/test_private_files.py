"""Whose a secret's file may be, who may read it, and what is said if it is otherwise."""

from __future__ import annotations

import grp
import os
import re
import stat
from pathlib import Path

import pytest

from dlr_buffer.config.private_files import FileRefused, Reader

SECRET = b"s3cr3t\n"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
READER = Reader()


def secret(path: Path, reader: Reader = READER) -> bytes:
    """Read it as the password file is read."""
    return reader.secret(path, limit=100, missing="write it")


def trusted(path: Path) -> bytes:
    """Read it as a bundle of authorities is read."""
    return READER.trusted(path, limit=100, missing="write it")


def refusal(path: Path, reader: Reader = READER) -> str:
    """Have it refused, and return what is said; the content is not in it."""
    with pytest.raises(FileRefused) as caught:
        secret(path, reader)
    said = str(caught.value)
    assert "s3cr3t" not in said
    return said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file as an admin should write it."""
    path = tmp_path / "default.password"
    path.touch(0o600)
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440, 0o700])
def test_modes_that_are_taken(file: Path, mode: int) -> None:
    """The owner's own, and reading by the group that the owner chose."""
    if mode & 0o040:
        os.chown(file, -1, os.getegid())
    file.chmod(mode)
    assert secret(file) == SECRET


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o644, "may be read by everybody (mode 0644)"),
        (0o604, "may be read by everybody"),
        (0o602, "may be written by everybody"),
        (0o666, "may be read and written by everybody"),
        (0o601, "may be executed by everybody"),
        (0o660, "may be written by the group"),
    ],
)
def test_modes_that_are_refused(file: Path, mode: int, said: str) -> None:
    """Whatever others may do with it, or the group but read it; and what is said ends with the command to run."""
    file.chmod(mode)
    message = refusal(file)
    assert said in message
    assert re.search(rf": run (chown \S+ {file} && )?chmod 06[04]0 {file}$", message)


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_the_command_that_is_told_mends_it(file: Path, mode: int) -> None:
    """Whoever runs what the refusal says is understood the next time."""
    file.chmod(mode)
    command = refusal(file).rpartition(": run ")[2]
    assert os.system(command) == 0
    assert stat.S_IMODE(file.stat().st_mode) in (0o600, 0o640)
    assert secret(file) == SECRET


@AS_ROOT
def test_somebody_elses_file(file: Path) -> None:
    """A file of neither root nor the daemon's user is refused, however its mode is, with the chown that mends it."""
    os.chown(file, 4711, -1)
    message = refusal(file)
    assert "belongs to 4711, who is neither root nor the user that this runs as" in message
    assert "chown root" in message
    with pytest.raises(FileRefused, match=rf"belongs to 4711.*: run chown root {file} && chmod 0644 {file}"):
        trusted(file)


@AS_ROOT
def test_all_that_is_wrong_is_said_at_once(file: Path) -> None:
    """Owner and mode are mended in one go."""
    os.chown(file, 4711, -1)
    file.chmod(0o644)
    assert "belongs to 4711" in refusal(file)
    assert "may be read by everybody" in refusal(file)


@AS_ROOT
@pytest.mark.parametrize("name", ["users", "nogroup"])
def test_a_group_that_everybody_is_in(file: Path, name: str) -> None:
    """To be readable for such a group is to be readable for everybody."""
    try:
        os.chown(file, -1, grp.getgrnam(name).gr_gid)
    except KeyError:
        pytest.skip(f"no group is called {name} here")
    file.chmod(0o640)
    assert f"may be read by the group {name}, which is not the daemon's alone" in refusal(file)
    file.chmod(0o600)
    assert secret(file) == SECRET


@AS_ROOT
def test_the_group_of_the_client_socket(file: Path) -> None:
    """Apps register, and do not get to know the password."""
    os.chown(file, -1, 4712)
    file.chmod(0o640)
    assert secret(file) == SECRET
    assert "may be read by the group 4712" in refusal(file, Reader(client_group=4712))


def test_a_link_is_followed_and_its_target_judged(file: Path, tmp_path: Path) -> None:
    """A link may be whatever it is; what it leads to may not be open to others."""
    link = tmp_path / "link"
    link.symlink_to(file)
    assert secret(link) == SECRET
    file.chmod(0o644)
    assert "may be read by everybody" in refusal(link)


@pytest.mark.parametrize("where", ["target", "link", "above"])
def test_a_folder_that_everybody_may_write_to(tmp_path: Path, where: str) -> None:
    """In it anybody could exchange the file: that of the link, that of the target, or one further up."""
    folders = {name: tmp_path / name for name in ("link", "above")}
    folders["target"] = folders["above"] / "target"
    for folder in folders.values():
        folder.mkdir(0o755)
    file = folders["target"] / "password"
    file.touch(0o600)
    file.write_bytes(SECRET)
    link = folders["link"] / "password"
    link.symlink_to(file)
    assert secret(link) == SECRET
    folders[where].chmod(0o777)
    message = refusal(link)
    assert f"everybody, who may write to {folders[where]}: run chmod o-w {folders[where]}" in message
    folders[where].chmod(0o1777)
    assert secret(link) == SECRET


def test_a_path_with_blanks_is_quoted(tmp_path: Path) -> None:
    """The command can be pasted."""
    path = tmp_path / "my password"
    path.touch(0o644)
    assert refusal(path).endswith(f"chmod 0600 '{path}'") or refusal(path).endswith(f"chmod 0640 '{path}'")


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a named pipe (which nobody waits for) and nothing at all."""
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is a device, pipe or socket" in refusal(tmp_path / "pipe")
    assert refusal(tmp_path / "none") == "is missing; write it"
    assert "not a path" in refusal(Path("/a\0b"))


def test_only_so_much_is_read(file: Path) -> None:
    """One byte more than the limit, so that the caller sees that it is too long."""
    file.write_bytes(b"x" * 1_000_000)
    assert len(secret(file)) == 101


@pytest.mark.parametrize("mode", [0o644, 0o444, 0o640, 0o600])
def test_what_is_trusted_may_be_read_by_everybody(file: Path, mode: int) -> None:
    """Certificates are no secret."""
    file.chmod(mode)
    assert trusted(file) == SECRET


@pytest.mark.parametrize("mode", [0o646, 0o664])
def test_what_is_trusted_may_be_written_by_nobody_else(file: Path, mode: int) -> None:
    """Whoever can write to a bundle of authorities decides to whom the password goes."""
    file.chmod(mode)
    with pytest.raises(FileRefused, match=rf"may be written by .*: run chmod 0644 {file}"):
        trusted(file)
