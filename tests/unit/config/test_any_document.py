"""Configurations with any flaw: each is read, or refused with the key's name; nothing else, and never a credential."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlr_buffer.cli import main
from dlr_buffer.config import Configuration, ConfigurationError, describe, load, parse, restart_needed
from dlr_buffer.doctor import access

PASSWORD = "s3cr3t-p4ss"
LOGIN = "supplier-l0gin"
IN_URL = "p4ss-in-url"
DOCUMENT = """\
[api]
client_socket = "/run/a.sock"
admin_socket = "/run/b.sock"
client_group = 0
admin_group = 4711
client_mode = "0660"
admin_mode = "0600"
client_allow = [0, 1001]
admin_allow = ["root"]

[database]
url = "sqlite:////var/lib/dlr-buffer/queue.db"
min_free = "256MiB"
first_request_id = 1

[messages]
validity_period = "72h"
unknown_messages = "register"

[retention]
acknowledged = "7d"
dead = "30d"

[log]
level = "info"
format = "auto"

[accounts.default]
url = "https://smartswitch.example.com/api/dlr"
login = "{login}"
password_file = "{file}"
parameters = "query"
timeout = "30s"
concurrency = 4
rate_limit = 0
allow_http = false
max_waiting = 0
proxy = "http://proxy.example.com:3128"
proxy_credentials_file = "{proxy}"

[accounts.default.tls]
ca_file = "{ca}"
client_cert = "{cert}"
client_key = "{key}"
min_version = "1.2"

[accounts.default.batch]
max_receipts = 100
max_url_bytes = 7168
linger = "250ms"

[accounts.default.retry]
initial = "1s"
max = "10m"
max_refusals = 5
lifetime = "7d"
auth_probe = "5m"
"""
LINES = DOCUMENT.splitlines()
KEYS = [number for number, line in enumerate(LINES) if " = " in line]
_settings = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WORDS = r"""
0 -1 1e400 nan inf true 1979-05-27 07:32:00 [] {} [[]] "" "0s" "-1s" "1.5h" "99999999999999999d" "0B" "1TiB"
"/" "//" "relative" "http://x" "https://" "https://u:p4ss-in-url@h/" "https://h/?p=p4ss-in-url" "https://h:99999/"
"https://[::1" "https://[::1]:0/" "sqlite://" "sqlite:////" "sqlite:////a\u0000b" "postgresql://u:p4ss-in-url@h/d"
"\u0000" "\u202e" "0777" "9999" "no-such-group"
"""
VALUES = st.one_of(
    st.sampled_from(WORDS.split()),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=30).map(lambda text: '"' + text.replace("\\", "").replace('"', "") + '"'),
    st.text(max_size=10),
)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The document with all files that it names."""
    path = tmp_path_factory.mktemp("etc") / "default.password"
    authority = trustme.CA()
    leaf = authority.issue_cert("supplier.example.com")
    contents = {
        "file": PASSWORD.encode(),
        "proxy": f"user:{PASSWORD}".encode(),
        "ca": authority.cert_pem.bytes(),
        "cert": leaf.cert_chain_pems[0].bytes(),
        "key": leaf.private_key_pem.bytes(),
    }
    files = {name: path.with_name(name) for name in contents}
    for name, file in files.items():
        file.touch(0o600)
        file.write_bytes(contents[name])
    return DOCUMENT.format(login=LOGIN, **files)


def outcome(read: Callable[[], Configuration]) -> tuple[str, ...]:
    """Read a configuration; returns the paths of its problems, none if it is good. Any other exception gets out."""
    try:
        configuration = read()
    except ConfigurationError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error.problems)
        _check_secrets(shown)
        return tuple(problem.path for problem in error.problems)
    text = describe(configuration)
    _check_secrets(text + repr(configuration))
    assert restart_needed(configuration, configuration) == ()
    return ()


def _check_secrets(text: str) -> None:
    for secret in (PASSWORD, LOGIN, IN_URL):
        assert secret not in text


def test_the_document_is_good(document: str) -> None:
    """What is mutated below is a good configuration with every key."""
    assert outcome(lambda: parse(document, {})) == ()


@_settings
@given(line=st.sampled_from(KEYS), value=VALUES)
@example(line=LINES.index("client_group = 0"), value='"https://u:p4ss-in-url@h/"')
def test_any_value(document: str, line: int, value: str) -> None:
    """Any value at any key is read, or that key (or one that must fit it) is named, or the line if it is no TOML."""
    lines = document.splitlines()
    key = lines[line].partition(" = ")[0]
    lines[line] = f"{key} = {value}"
    section = next(text for text in reversed(lines[:line]) if text.startswith("[")).strip("[]")
    problems = outcome(lambda: parse("\n".join(lines), {}, source="c.toml"))

    related = {f"{section}.{key}", "api.admin_socket", "retention.acknowledged", "accounts.default.retry.max"}
    for path in problems:
        assert path in related or path.startswith((f"{section}.", "c.toml")), path


@_settings
@given(line=st.integers(0, len(LINES) - 1), key=st.text(max_size=12), again=st.integers(0, len(LINES) - 1))
def test_any_key_and_any_order(document: str, line: int, key: str, again: int) -> None:
    """A key renamed, a line doubled elsewhere, a section twice."""
    lines = document.splitlines()
    doubled = lines[again]
    name, equals, value = lines[line].partition(" = ")
    lines[line] = f"{key}{equals}{value}" if equals else f"[{key}]"
    outcome(lambda: parse("\n".join(lines), {}))
    lines.insert(again // 2, doubled)
    outcome(lambda: parse("\n".join(lines), {}))
    assert name or not equals


@_settings
@given(
    start=st.integers(0, 1600),
    skip=st.integers(0, 40),
    put=st.text(max_size=8) | st.sampled_from(["[" * 500]),
)
@example(start=0, skip=2000, put="")
def test_any_edit(document: str, start: int, skip: int, put: str) -> None:
    """Characters left out and put in anywhere."""
    outcome(lambda: parse(document[:start] + put + document[start + skip :], {}))


@_settings
@given(content=st.binary(max_size=200), position=st.integers(0, 1600))
@example(content=b"\xef\xbb\xbf", position=0)
@example(content=b"\xff\xfe\x00", position=500)
def test_any_bytes_in_the_file(
    document: str, tmp_path_factory: pytest.TempPathFactory, content: bytes, position: int
) -> None:
    """A file with any bytes in it, through the very function that the daemon reads it with."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    raw = document.encode()
    path.write_bytes(raw[:position] + content + raw[position:])
    outcome(lambda: load(path, {}))


@settings(_settings, max_examples=60)
@given(line=st.sampled_from(KEYS), value=VALUES)
def test_check_config_says_so(
    document: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    line: int,
    value: str,
) -> None:
    """`check-config` ends with 0 and the values, or with 1 and what is wrong; the credentials are in neither."""
    lines = document.splitlines()
    lines[line] = f"{lines[line].partition(' = ')[0]} = {value}"
    path: Path = tmp_path_factory.getbasetemp() / "checked.toml"
    with contextlib.suppress(UnicodeEncodeError):  # lone surrogates cannot be in a file
        path.write_text("\n".join(lines), encoding="utf-8")
        expected = outcome(lambda: load(path, {}))
        with pytest.MonkeyPatch.context() as patch:
            # Where the service is installed, its user may not read what only this test can.
            patch.setattr(access, "identity_of", {}.get)
            code = main(["--config", str(path), "check-config"])
        shown = capsys.readouterr()
        _check_secrets(shown.out + shown.err)
        assert code == (1 if expected else 0)
        assert bool(shown.err) == bool(expected)
