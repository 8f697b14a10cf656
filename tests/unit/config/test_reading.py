"""Reading the configuration: what is understood, and what every mistake is answered with."""

from __future__ import annotations

import grp
import os
import pwd
import traceback
from pathlib import Path

import pytest

from dlr_buffer.config import (
    AccountSettings,
    ApiSettings,
    BatchSettings,
    Configuration,
    ConfigurationError,
    DatabaseSettings,
    LogSettings,
    MessageSettings,
    RetentionSettings,
    RetrySettings,
    Secret,
    load,
    parse,
)

PASSWORD = "s3cr3t-p4ss"
LOGIN = "supplier-l0gin"
URL = "https://smartswitch.example.com/api/dlr"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """Give a password file as an admin would write it."""
    path = tmp_path / "default.password"
    path.touch(0o600)
    path.write_text(PASSWORD + "\n")
    return path


def account(password_file: Path, *, url: str = URL, extra: str = "", name: str = "default") -> str:
    """Write an account's section."""
    return (
        f'[accounts.{name}]\nurl = "{url}"\nlogin = "{LOGIN}"\npassword_file = "{password_file}"\n{extra}\n'
    )


def read(text: str, **environ: str) -> Configuration:
    """Read a document."""
    return parse(text, environ)


def problems(text: str, **environ: str) -> dict[str, str]:
    """Read a document that is wrong, and give its problems by path; none of it may hold a credential."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text, environ, source="c.toml")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert PASSWORD not in shown
    assert LOGIN not in shown
    assert all(problem.path in str(caught.value) for problem in caught.value.problems)
    found = dict(caught.value.problems)
    assert len(found) == len(caught.value.problems), "a key was complained of twice"
    return found


def test_the_smallest_document_gets_every_default(password_file: Path) -> None:
    """One account is enough; all else is as the contract says."""
    configuration = read(account(password_file))
    assert configuration == Configuration(
        api=ApiSettings(
            Path("/run/dlr-buffer/client.sock"), Path("/run/dlr-buffer/admin.sock"), None, None, 0o660, 0o600
        ),
        database=DatabaseSettings("sqlite:////var/lib/dlr-buffer/queue.db", 268_435_456, 1),
        messages=MessageSettings(259_200_000, "register"),
        retention=RetentionSettings(604_800_000, 2_592_000_000),
        log=LogSettings("info"),
        accounts={
            "default": AccountSettings(
                "default",
                URL,
                Secret(LOGIN),
                Secret(PASSWORD),
                "query",
                30_000,
                4,
                0.0,
                allow_http=False,
                batch=BatchSettings(100, 7168, 250),
                retry=RetrySettings(1_000, 600_000, 5, 604_800_000, 300_000),
            )
        },
    )
    assert configuration.database.path == Path("/var/lib/dlr-buffer/queue.db")


def test_every_key_is_taken_over(tmp_path: Path, password_file: Path) -> None:
    """No key is read and then forgotten: each set to another value than its default arrives."""
    text = f"""
[api]
client_socket = "/run/a.sock"
admin_socket = "/run/b.sock"
client_group = "{grp.getgrgid(0).gr_name}"
admin_group = 4711
client_mode = "0666"
admin_mode = "660"
client_allow = ["{pwd.getpwuid(0).pw_name}", 1001, 0]
admin_allow = []
[database]
url = "sqlite:///{tmp_path}/q.db"
min_free = "1GiB"
first_request_id = 1000
[messages]
validity_period = "1h"
unknown_messages = "reject"
[retention]
acknowledged = "2h"
dead = "1d"
[log]
level = "debug"
format = "json"
[accounts.a-b_2]
url = "http://10.0.0.1:8080/x%20y"
allow_http = true
login = "l"
password_file = "{password_file}"
parameters = "form"
timeout = "5s"
concurrency = 2
rate_limit = 2.5
max_waiting = 1000
batch = {{ max_receipts = 10, max_url_bytes = 2000, linger = "0s" }}
retry = {{ initial = "2s", max = "2s", max_refusals = 1, lifetime = "1d", auth_probe = "1s" }}
"""
    assert read(text) == Configuration(
        api=ApiSettings(Path("/run/a.sock"), Path("/run/b.sock"), 0, 4711, 0o666, 0o660, (0, 1001), ()),
        database=DatabaseSettings(f"sqlite:///{tmp_path}/q.db", 1 << 30, 1000),
        messages=MessageSettings(3_600_000, "reject"),
        retention=RetentionSettings(7_200_000, 86_400_000),
        log=LogSettings("debug", "json"),
        accounts={
            "a-b_2": AccountSettings(
                "a-b_2",
                "http://10.0.0.1:8080/x%20y",
                Secret("l"),
                Secret(PASSWORD),
                "form",
                5_000,
                2,
                2.5,
                allow_http=True,
                max_waiting=1000,
                batch=BatchSettings(10, 2000, 0),
                retry=RetrySettings(2_000, 2_000, 1, 86_400_000, 1_000),
            )
        },
    )


def test_all_problems_are_reported_at_once(password_file: Path) -> None:
    """An admin mends a file in one go, not one error after another."""
    text = 'log = 5\n[messages]\nvalidity_period = "3 days"\n[retention]\ndaed = "1d"\n' + account(
        password_file, url="ftp://h/", extra='timeout = "1w"\n[accounts.default.batch]\nmax_receipts = 0'
    )
    assert set(problems(text)) == {
        "log",
        "messages.validity_period",
        "retention.daed",
        "accounts.default.url",
        "accounts.default.timeout",
        "accounts.default.batch.max_receipts",
    }


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("api", "client_sock", "client_socket"),
        ("database", "URL", "url"),
        ("messages", "validity-period", "validity_period"),
        ("accounts.default.retry", "max_refusal", "max_refusals"),
        ("acounts", "x", "accounts"),
    ],
)
def test_an_unknown_key_names_the_nearest(password_file: Path, section: str, key: str, near: str) -> None:
    """A typing error is answered with what was probably meant."""
    found = problems(account(password_file) + f"[{section}]\n{key} = 1\n")
    assert [detail for detail in found.values() if detail.endswith(f"did you mean {near}?")]


def test_an_unknown_key_like_no_other_lists_the_keys(password_file: Path) -> None:
    """Where nothing is near, what there is is listed."""
    assert problems(account(password_file) + "[log]\nzzz = 1\n") == {
        "log.zzz": "is not a key here; the keys are level, format"
    }


def test_a_password_in_the_file_is_refused_with_the_way_to_do_it(password_file: Path) -> None:
    """The likeliest mistake is answered with what to write instead, without the password."""
    found = problems(account(password_file, extra=f'password = "{PASSWORD}"'))
    assert "password_file" in found["accounts.default.password"]


@pytest.mark.parametrize("text", ["", "[accounts]\n"])
def test_no_account_at_all_shows_what_to_write(text: str) -> None:
    """A first start says which lines are missing, ready to copy."""
    detail = problems(text)["accounts"]
    for line in ("[accounts.default]", "url = ", "login = ", "password_file = "):
        assert f"    {line}" in detail


@pytest.mark.parametrize("name", ["Default", "-a", '"a b"', '"ä"', "a" * 64, '""', '"../x"'])
def test_account_names_are_narrow(password_file: Path, name: str) -> None:
    """A name has to be safe in file names, metrics and URLs."""
    found = problems(account(password_file, name=name))
    assert [detail for path, detail in found.items() if path.startswith("accounts.") and "1 to 63" in detail]


@pytest.mark.parametrize(
    "line",
    [
        'timeout = "49ms"',
        'timeout = "601s"',
        "timeout = 30",
        "concurrency = 0",
        "concurrency = 257",
        "concurrency = true",
        'concurrency = "4"',
        "concurrency = 0x" + "f" * 9000,
        "rate_limit = -1",
        "rate_limit = 0.0001",
        "rate_limit = nan",
        "rate_limit = inf",
        "rate_limit = false",
        "allow_http = 1",
        'parameters = "json"',
        "parameters = []",
        "batch.max_receipts = 10001",
        "batch.max_url_bytes = 255",
        'batch.linger = "61s"',
        'retry.initial = "0s"',
        'retry.max = "25h"',
        'retry.max = "999ms"',
        "retry.max_refusals = 0",
        'retry.lifetime = "366d"',
        'retry.auth_probe = "99ms"',
        "login = 7",
        'login = ""',
        'login = "a\\nb"',
        f'login = "{"a" * 1025}"',
        "url = 1979-05-27",
        "batch = 5",
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(password_file: Path, line: str) -> None:
    """Every key of an account is bounded, and the problem names exactly that key."""
    key = line.partition(" ")[0]
    lines = [ln for ln in account(password_file).splitlines() if not ln.startswith(f"{key} ")]
    assert list(problems("\n".join([*lines, line, ""]))) == [f"accounts.default.{key}"]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("api", 'client_socket = "client.sock"'),
        ("api", 'client_socket = "/run/"'),
        ("api", f'client_socket = "/{"a" * 107}"'),
        ("api", 'admin_socket = "/run/dlr-buffer/client.sock"'),
        ("api", "client_mode = 660"),
        ("api", 'client_mode = "0777"'),
        ("api", 'client_mode = "0260"'),
        ("api", 'client_mode = "rw-"'),
        ("api", 'admin_mode = "0666"'),
        ("api", 'client_group = "no-such-group-here"'),
        ("api", "client_group = -1"),
        ("api", "admin_group = true"),
        ("api", 'client_allow = "my-app"'),
        ("api", "client_allow = [-1]"),
        ("api", "client_allow = [true]"),
        ("api", "admin_allow = [[0]]"),
        ("api", 'admin_allow = ["no-such-user-here"]'),
        ("database", 'url = "sqlite:///queue.db"'),
        ("database", 'url = "sqlite://"'),
        ("database", 'url = "sqlite:////tmp"'),
        ("database", 'url = "sqlite:////tmp/q.db?mode=ro"'),
        ("database", 'url = "mysql://h/db"'),
        ("database", 'url = "postgresql+psycopg://h/db"'),
        ("database", 'min_free = "512KiB"'),
        ("database", "min_free = 5"),
        ("database", "first_request_id = 0"),
        ("messages", 'validity_period = "999ms"'),
        ("messages", 'validity_period = "31d"'),
        ("messages", 'unknown_messages = "drop"'),
        ("retention", 'acknowledged = "71h"'),
        ("retention", 'dead = "0s"'),
        ("log", 'level = "trace"'),
        ("log", 'format = "xml"'),
    ],
)
def test_the_other_sections_are_bounded_likewise(password_file: Path, section: str, line: str) -> None:
    """Every other key refuses what cannot work, and the problem names exactly that key."""
    found = problems(account(password_file) + f"[{section}]\n{line}\n")
    assert list(found) == [f"{section}.{line.partition(' ')[0]}"]


def test_the_longest_socket_path_is_taken(password_file: Path) -> None:
    """The limit is the kernel's: 107 bytes go, counted in UTF-8."""
    fits = "/" + "ä" * 53
    assert len(os.fsencode(fits)) == 107
    api = read(account(password_file) + f'[api]\nclient_socket = "{fits}"\n').api
    assert api.client_socket == Path(fits)


def test_retention_may_be_as_long_as_the_validity_period(password_file: Path) -> None:
    """Equal is enough; and a validity period that is wrong itself is not blamed on retention."""
    both = '[messages]\nvalidity_period = "5s"\n[retention]\nacknowledged = "5s"\n'
    assert read(account(password_file) + both).retention.acknowledged_ms == 5_000
    wrong = '[messages]\nvalidity_period = "99d"\n[retention]\nacknowledged = "5s"\n'
    assert list(problems(account(password_file) + wrong)) == ["messages.validity_period"]


@pytest.mark.parametrize(
    "url",
    [
        "https://h",
        "https://h:8443/api/dlr",
        "https://[2001:db8::1]/api/dlr",
        "https://h/a%20b/c;d=e",
        "https://10.20.30.40/",
        "https://3com.example.com/",
        "http://localhost:8080/api/dlr",
        "http://127.1.2.3/",
        "http://[::1]:80/",
    ],
)
def test_urls_that_are_taken(password_file: Path, url: str) -> None:
    """HTTPS anywhere and HTTP to this machine are fine, and the URL is kept as written."""
    assert read(account(password_file, url=url)).accounts["default"].url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is missing"),
        ("h/api/dlr", "https://"),
        ("ftp://h/", "https://"),
        ("http://h/api/dlr", "allow_http"),
        ("http://localhost.example.com/", "allow_http"),
        ("http://127.0.0.1.example.com/", "allow_http"),
        ("https:///api/dlr", "a host"),
        ("https://h:/", "a host"),
        ("https://h:0/", "a host"),
        ("https://h:99999/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://[h]/", "URL"),
        ("https://10.20.30.400/", "a host"),
        ("https://1.2.3.04/", "a host"),
        ("https://h.1/", "a host"),
        (f"https://{LOGIN}:{PASSWORD}@h/", "user name"),
        (f"https://h/?_password={PASSWORD}", "no query"),
        ("https://h/?", "no query"),
        ("https://h/#", "no query"),
        ("https://h/ä", "ASCII"),
        ("https://h/a b", "ASCII"),
        ("https://h/a\\\\b", "ASCII"),
        ("https://h/a\\nb", "ASCII"),
        ("https://h/%zz", "%XX"),
    ],
)
def test_urls_that_are_refused(password_file: Path, url: str, said: str) -> None:
    """What cannot work, or would show the password, is refused, and the URL is not repeated."""
    found = problems(account(password_file, url=url))
    assert list(found) == ["accounts.default.url"]
    assert said in found["accounts.default.url"]


def test_http_elsewhere_needs_to_be_allowed(password_file: Path) -> None:
    """With allow_http the admin has said that he knows."""
    text = account(password_file, url="http://h/api/dlr", extra="allow_http = true")
    assert read(text).accounts["default"].url == "http://h/api/dlr"


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"pass", "pass"),
        (b"pass\n", "pass"),
        (b"pass\r\n", "pass"),
        (b" pa ss ", " pa ss "),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"a" * 4096 + b"\n", "a" * 4096),
    ],
)
def test_passwords_that_are_read(password_file: Path, content: bytes, password: str) -> None:
    """One newline at the end is the editor's; everything else is the password's."""
    password_file.write_bytes(content)
    assert read(account(password_file)).accounts["default"].password == Secret(password)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (PASSWORD.encode() + b"\n\n", "several lines"),
        (PASSWORD.encode() + b"\nx", "several lines"),
        (PASSWORD.encode() + b"\0", "control characters"),
        (PASSWORD.encode() + b"\xff", "not UTF-8"),
        (PASSWORD.encode() * 500, "longer than 4096"),
    ],
)
def test_password_files_that_are_refused(password_file: Path, content: bytes, said: str) -> None:
    """A file that holds no password is refused with its name and the reason, never with its content."""
    password_file.write_bytes(content)
    detail = problems(account(password_file))["accounts.default.password_file"]
    assert said in detail
    assert str(password_file) in detail


def test_a_password_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    """Both are said as what they are."""
    assert "is missing" in problems(account(tmp_path / "none"))["accounts.default.password_file"]
    assert "directory" in problems(account(tmp_path))["accounts.default.password_file"]
    assert "absolute" in problems(account(Path("x.password")))["accounts.default.password_file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_password_file_that_may_not_be_read(password_file: Path) -> None:
    """The reason is its permissions, and the problem says so."""
    password_file.chmod(0)
    assert "may not be read" in problems(account(password_file))["accounts.default.password_file"]


def test_systemd_credentials_are_used_where_no_file_is_named(tmp_path: Path, password_file: Path) -> None:
    """$CREDENTIALS_DIRECTORY/<account>.password serves accounts without password_file, which otherwise wins."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "default.password").touch(0o400)
    (credentials / "default.password").write_text("from-systemd")
    without = "\n".join(line for line in account(password_file).splitlines() if "password_file" not in line)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert parse(without, environ).accounts["default"].password == Secret("from-systemd")
    assert parse(account(password_file), environ).accounts["default"].password == Secret(PASSWORD)


def test_no_password_names_both_ways(tmp_path: Path, password_file: Path) -> None:
    """Whoever has neither a file nor a credential is told of both."""
    without = "\n".join(line for line in account(password_file).splitlines() if "password_file" not in line)
    for environ in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}):
        detail = problems(without, **environ)["accounts.default.password_file"]
        assert "/etc/dlr-buffer/default.password" in detail
        assert "LoadCredential=default.password:" in detail


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[log\n", "c.toml:1"),
        ("\n\n[log]\nlevel = info\n", "c.toml:4"),
        ("[log]\nlevel = 'a'\nlevel = 'b'\n", "c.toml:3"),
        ("[log]\nlevel = ", "c.toml:2"),
        ("[log]\nlevel = '''", "c.toml:2"),
        ("a = " + "[" * 100_000, "c.toml"),
        ("a = " + "9" * 5_000, "c.toml"),
    ],
)
def test_mistakes_of_syntax_give_file_and_line(text: str, place: str) -> None:
    """A file that is not TOML is answered with the place, as compilers do; even a monstrous one."""
    assert list(problems(text)) == [place]


def test_a_mistake_of_syntax_does_not_keep_the_document() -> None:
    """No exception in the chain carries the text of the file, which has the login in it."""
    with pytest.raises(ConfigurationError) as caught:
        parse(f'login = "{LOGIN}"\n[', {})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_where_the_file_is_looked_for(tmp_path: Path, password_file: Path) -> None:
    """The argument wins over the environment, and the environment over the default."""
    for name, level in (("argument", "error"), ("environ", "warning")):
        (tmp_path / name).write_text(account(password_file) + f'[log]\nlevel = "{level}"\n')
    environ = {"DLR_BUFFER_CONFIG": str(tmp_path / "environ")}
    assert load(tmp_path / "argument", environ).log.level == "error"
    assert load(None, environ).log.level == "warning"
    if not Path("/etc/dlr-buffer/config.toml").exists():
        with pytest.raises(ConfigurationError, match=r"/etc/dlr-buffer/config\.toml: there is no such file"):
            load(None, {"DLR_BUFFER_CONFIG": ""})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder, a file in another encoding and one far too long are named with the reason."""
    with pytest.raises(ConfigurationError, match="directory"):
        load(tmp_path, {})
    path = tmp_path / "c.toml"
    path.write_bytes(b"[log]\nlevel = '\xe4'\n")
    with pytest.raises(ConfigurationError, match=r"c\.toml:2: is not UTF-8") as caught:
        load(path, {})
    assert caught.value.__context__ is None
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigurationError, match="longer than 1 MiB"):
        load(path, {})
