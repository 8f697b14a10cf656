"""Users and groups: those of this system, and names that nobody has."""

from __future__ import annotations

import grp
import os

import pytest

from dlr_buffer.doctor.access import Identity, identity_of_uid
from dlr_buffer.doctor.groups import group_findings, user_finding
from tests.unit.doctor.findings_of import told


@pytest.mark.parametrize(
    ("name", "needed", "level"),
    [("root", True, "ok"), ("no-such-user", True, "error"), ("no-such-user", False, "note")],
)
def test_the_user(name: str, needed: bool, level: str) -> None:  # noqa: FBT001 - a parameter
    """A service whose user does not exist can't start; without a service nobody misses it."""
    assert told([user_finding(name, needed=needed)]) == [(level, "user")]


@pytest.mark.parametrize(("used", "level"), [(True, "error"), (False, "warning")])
def test_a_missing_group(used: bool, level: str) -> None:  # noqa: FBT001 - a parameter
    """It is an error as soon as a socket is to be given to it."""
    assert told(group_findings("no-such-group", daemon=None, used=used)) == [(level, "group")]


def test_a_group_with_people_in_it() -> None:
    """Who is in it is told, and the daemon's user has to be a member."""
    own = identity_of_uid(os.geteuid())
    name = grp.getgrgid(own.gid).gr_name
    stranger = Identity("stranger", 4003, 4003, frozenset({4003}))
    findings = list(group_findings(name, daemon=stranger, used=True))
    assert told(findings) == [("ok", "group"), ("error", "group-daemon")]
    assert own.name in findings[0].what
    assert told(group_findings(name, daemon=stranger, used=False)) == [
        ("ok", "group"),
        ("note", "group-daemon"),
    ]


def test_a_group_that_is_the_daemons_alone() -> None:
    """A group without apps is a note, with the command that lets one in."""
    alone = next((each for each in grp.getgrall() if not each.gr_mem and each.gr_gid not in _primary()), None)
    if alone is None:
        pytest.skip("every group of this system has somebody in it")
    (finding,) = group_findings(alone.gr_name, daemon=None, used=False)
    assert told([finding]) == [("note", "group")]
    assert finding.remedy is not None
    assert f"usermod --append --groups {alone.gr_name}" in finding.remedy


def _primary() -> set[int]:
    import pwd

    return {user.pw_gid for user in pwd.getpwall()}
