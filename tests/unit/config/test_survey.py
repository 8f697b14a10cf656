"""Reading as much as can be read of a configuration in which something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlr_buffer.config import ConfigurationError, load, survey

SOUND = """\
[database]
min_free = "1GiB"

[accounts.default]
url = "https://smartswitch.example.com/api/dlr"
login = "canary-login"
password_file = "{folder}/password"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound configuration with its password."""
    (tmp_path / "password").write_text("canary-password")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "config.toml").write_text(SOUND.format(folder=tmp_path))
    return tmp_path / "config.toml"


def test_a_sound_file_is_read_as_load_reads_it(path: Path) -> None:
    """The same configuration, no problems, and the files that it names."""
    found = survey(path, {})
    assert found.configuration == load(path, {})
    assert found.problems == ()
    assert found.path == path
    assert found.files == {"accounts.default.password_file": path.with_name("password")}


def test_what_is_wrong_does_not_hide_the_rest(path: Path) -> None:
    """Problems are those that `load` raises; whatever is right is still there."""
    with path.open("a") as file:
        file.write('[accounts.other]\nurl = "ftp://x/"\n[api]\nclient_mode = "0777"\n')
    with pytest.raises(ConfigurationError) as caught:
        load(path, {})
    found = survey(path, {})
    assert found.problems == caught.value.problems
    assert found.configuration is not None
    assert found.configuration.database.min_free_bytes == 1 << 30
    assert found.configuration.accounts["default"].url == "https://smartswitch.example.com/api/dlr"
    assert found.configuration.accounts["other"].url == ""
    assert found.configuration.api.client_mode == 0o660
    assert "canary" not in repr(found)


@pytest.mark.parametrize("content", ["[api\n", None])
def test_a_file_that_cannot_be_read_at_all(path: Path, content: str | None) -> None:
    """Then there is nothing but the problem."""
    path.unlink() if content is None else path.write_text(content)
    found = survey(path, {})
    assert (found.configuration, found.files, len(found.problems)) == (None, {}, 1)


def test_files_are_found_wherever_an_account_names_them(path: Path) -> None:
    """In its tables too; what is no absolute path is no file."""
    with path.open("a") as file:
        file.write('[accounts.default.tls]\nca_file = "/etc/ca.pem"\nclient_key = "key"\n')
    assert survey(path, {}).files == {
        "accounts.default.password_file": path.with_name("password"),
        "accounts.default.tls.ca_file": Path("/etc/ca.pem"),
    }
