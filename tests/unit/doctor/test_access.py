"""Who may do what to a file, as the kernel would decide it."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from dlr_buffer.doctor.access import (
    READ,
    SEARCH,
    WRITE,
    Identity,
    barrier,
    group_name,
    identity_of,
    identity_of_uid,
    may,
    members,
    user_name,
)

SOMEBODY = Identity("somebody", 4001, 4001, frozenset({4001, 4002}))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@as_root
@pytest.mark.parametrize("uid", [0, 4001, 4003])
@pytest.mark.parametrize("gid", [0, 4002, 4003])
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o040, 0o004, 0o660, 0o606, 0o066, 0o640, 0o750])
def test_it_decides_as_the_kernel_does(public_folder: Path, uid: int, gid: int, mode: int) -> None:
    """Of owner, group and others only the first that fits counts; a process of that user finds the same."""
    file = public_folder / "file"
    file.touch()
    os.chown(file, uid, gid)
    file.chmod(mode)
    found = subprocess.run(
        ["sh", "-c", 'for b in r w x; do test -$b "$0" && echo $b; done; true', file],
        user=SOMEBODY.uid,
        group=SOMEBODY.gid,
        extra_groups=sorted(SOMEBODY.groups),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    decided = [
        bit
        for bit, wanted in (("r", READ), ("w", WRITE), ("x", SEARCH))
        if may(file.stat(), SOMEBODY, wanted)
    ]
    assert decided == found


def test_root_may_everything(tmp_path: Path) -> None:
    """Root is not asked for a mode."""
    tmp_path.chmod(0)
    assert may(tmp_path.stat(), Identity("root", 0, 0, frozenset({0})), READ | WRITE | SEARCH)
    tmp_path.chmod(0o700)


def test_the_outermost_closed_folder_is_the_barrier(public_folder: Path) -> None:
    """Of two folders that do not let somebody pass, the outer one is named; a file's own mode is not asked."""
    inner = public_folder / "outer" / "inner"
    inner.mkdir(parents=True)
    stranger = Identity("stranger", 4003, 4003, frozenset({4003}))
    (public_folder / "outer").chmod(0o750)
    inner.chmod(0o700)
    assert barrier(inner / "file", stranger) == public_folder / "outer"
    (public_folder / "outer").chmod(0o751)
    assert barrier(inner / "file", stranger) == inner
    inner.chmod(0o701)
    assert barrier(inner / "file", stranger) is None
    assert barrier(inner / "file", identity_of_uid(0)) is None


def test_names_are_looked_up_and_numbers_without_one_stay_numbers() -> None:
    """Users and groups of the system, and what nobody has."""
    root = identity_of("root")
    assert root is not None
    assert (root.uid, root.gid) == (0, 0)
    assert identity_of("no-such-user") is None
    assert identity_of_uid(0) == root
    assert identity_of_uid(3_999_999) == Identity("3999999", 3_999_999, 3_999_999, frozenset({3_999_999}))
    assert (user_name(0), group_name(0), user_name(3_999_999), group_name(3_999_999)) == (
        "root",
        "root",
        "3999999",
        "3999999",
    )


def test_members_are_those_listed_and_those_whose_own_it_is() -> None:
    """Both ways of being in a group count; one that does not exist has no list."""
    own = pwd.getpwuid(os.geteuid())
    found = members(grp.getgrgid(own.pw_gid).gr_name)
    assert found is not None
    assert own.pw_name in found
    assert members("no-such-group") is None
