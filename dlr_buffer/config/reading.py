"""From a TOML document to a `Configuration`: which keys there are, their ranges, and what must fit together.

Every problem of a document is collected before anything is raised. No problem repeats a login, a password or an
account's URL (which may hold either by mistake).
"""

from __future__ import annotations

import grp
import ipaddress
import os.path
import pwd
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard
from urllib.parse import SplitResult, urlsplit

from dlr_buffer.config.credentials import (
    Sources,
    read_login,
    read_password,
    read_proxy_credentials,
)
from dlr_buffer.config.private_files import Reader, reason
from dlr_buffer.config.settings import (
    AccountSettings,
    ApiSettings,
    BatchSettings,
    Configuration,
    ConfigurationError,
    DatabaseSettings,
    LogSettings,
    MessageSettings,
    Problem,
    RetentionSettings,
    RetrySettings,
    Secret,
)
from dlr_buffer.config.table import Table
from dlr_buffer.config.tls import read_tls
from dlr_buffer.config.values import write_duration
from dlr_buffer.messages import MAX_VALIDITY_MS, MIN_VALIDITY_MS

DEFAULT_PATH = Path("/etc/dlr-buffer/config.toml")
"""Where the configuration is if neither ``--config`` nor ``DLR_BUFFER_CONFIG`` says otherwise."""

_MAX_FILE_BYTES = 1 << 20
_MAX_USERS = 1000
_MOST_WAITING = 1_000_000_000

_SECOND = 1_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_MIB = 1 << 20
_TIB = 1 << 40

_ACCOUNT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# What useradd and directories allow: spaces and backslashes occur in those of domains.
_USER_OR_GROUP_NAME = re.compile(r"\w[\w .@\\$-]{0,63}")
# RFC 3986 §2 and §3.3: what a URL may hold at all, and a path of pchars.
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\.?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TOML_PLACE = re.compile(r" ?\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")

_NO_ACCOUNT = """there is no account; write at least:

    [accounts.default]
    url = "https://smartswitch.example.com/api/dlr"
    login = "supplier"
    password_file = "/etc/dlr-buffer/default.password"   # a file with only the password in it"""


def load(path: Path | None, environ: Mapping[str, str]) -> Configuration:
    """Read the configuration from ``path``, else from ``DLR_BUFFER_CONFIG`` in ``environ``, else `DEFAULT_PATH`.

    Password files are read too, and groups looked up. Raises ConfigurationError with everything that is wrong.
    """
    chosen = chosen_path(path, environ)
    return parse(_text_of(chosen), environ, source=str(chosen))


def chosen_path(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that `load` reads."""
    return path or Path(environ.get("DLR_BUFFER_CONFIG") or DEFAULT_PATH)


@dataclass(frozen=True, slots=True)
class Survey:
    """A configuration as far as it can be read, for whoever looks for what is wrong."""

    path: Path
    configuration: Configuration | None
    """With the defaults in place of what is wrong (a URL that is wrong is empty); None if the file can't be read."""
    problems: tuple[Problem, ...]
    files: Mapping[str, Path]
    """Each file that an account names, by its dotted key, such as ``accounts.default.password_file``."""


def survey(path: Path | None, environ: Mapping[str, str]) -> Survey:
    """Read the configuration that `load` would read, whatever is wrong with it; raises nothing."""
    chosen = chosen_path(path, environ)
    try:
        document = _document(_text_of(chosen), str(chosen))
    except ConfigurationError as error:
        return Survey(chosen, None, error.problems, {})
    configuration, problems = _configuration(document, environ)
    return Survey(
        chosen, configuration, tuple(problems), dict(_files_of("accounts", document.get("accounts")))
    )


def _files_of(path: str, table: object) -> Iterator[tuple[str, Path]]:
    for key, value in (table if isinstance(table, dict) else {}).items():
        if isinstance(value, str) and value.startswith("/") and key.endswith(("_file", "_cert", "_key")):
            yield f"{path}.{key}", Path(value)
        yield from _files_of(f"{path}.{key}", value)


def _text_of(chosen: Path) -> str:
    try:
        with chosen.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        detail = "there is no such file; write it (config/config.toml shows every key), or name another with --config"
        raise _failed(str(chosen), detail) from None
    except (OSError, ValueError) as error:
        raise _failed(str(chosen), f"cannot be read: {reason(error)}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise _failed(str(chosen), "is longer than 1 MiB; this is no configuration")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    # Raised out here so that no exception in the chain holds the file's content.
    raise _failed(f"{chosen}:{line}", "is not UTF-8; save the file as UTF-8")


def parse(text: str, environ: Mapping[str, str], *, source: str = "configuration") -> Configuration:
    """Read the TOML document ``text``; ``source`` is what problems of syntax are said to be in.

    ``environ`` is asked for ``CREDENTIALS_DIRECTORY`` (systemd's LoadCredential=). Raises ConfigurationError with
    everything that is wrong.
    """
    configuration, problems = _configuration(_document(text, source), environ)
    if problems:
        raise ConfigurationError(tuple(problems))
    return configuration


def _document(text: str, source: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        failure = _syntax(str(error), text, source)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or a thousand brackets.
        failure = _failed(source, "holds a number that is too long, or is nested too deeply")
    # Raised out here: from Python 3.14 on the decoder's error holds the whole document, with the login.
    raise failure


def _configuration(
    values: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Configuration, list[Problem]]:
    """Return what was read, with the defaults in place of what is wrong, and what is wrong."""
    problems: list[Problem] = []
    document = Table("", values, problems)
    api = _api(document.table("api"))
    configuration = Configuration(
        api=api,
        database=_database(document.table("database")),
        messages=_messages(document.table("messages")),
        retention=_retention(document.table("retention")),
        log=_log(document.table("log")),
        accounts=_accounts(document, environ, Reader(api.client_group)),
    )
    document.close()
    kept, waiting = configuration.retention.acknowledged_ms, configuration.messages.validity_period_ms
    if kept < waiting and document.sound("retention.acknowledged", "messages.validity_period"):
        document.note(
            "retention.acknowledged",
            f"must not be shorter than messages.validity_period ({write_duration(waiting)}): else a message could "
            "be forgotten while an app may still report it",
        )
    return configuration, problems


def _api(table: Table) -> ApiSettings:
    default = ApiSettings()
    api = ApiSettings(
        client_socket=table.socket("client_socket", default.client_socket),
        admin_socket=table.socket("admin_socket", default.admin_socket),
        client_group=_group(table, "client_group"),
        admin_group=_group(table, "admin_group"),
        client_mode=table.mode("client_mode", default.client_mode, 0o666),
        # The admin socket can delete receipts: it is never everybody's.
        admin_mode=table.mode("admin_mode", default.admin_mode, 0o660),
        client_allow=_users(table, "client_allow"),
        admin_allow=_users(table, "admin_allow"),
    )
    table.close()
    if api.client_socket == api.admin_socket and table.sound("client_socket", "admin_socket"):
        table.note("admin_socket", "must be another path than client_socket")
    return api


def _database(table: Table) -> DatabaseSettings:
    default = DatabaseSettings()
    database = DatabaseSettings(
        url=_database_url(table, "url", default.url),
        min_free_bytes=table.size("min_free", default.min_free_bytes, _MIB, _TIB),
        first_request_id=table.integer("first_request_id", default.first_request_id, 1, 1 << 62),
    )
    table.close()
    return database


def _messages(table: Table) -> MessageSettings:
    default = MessageSettings()
    messages = MessageSettings(
        validity_period_ms=table.duration(
            "validity_period", default.validity_period_ms, MIN_VALIDITY_MS, MAX_VALIDITY_MS
        ),
        unknown_messages=table.choice("unknown_messages", default.unknown_messages, ("register", "reject")),
    )
    table.close()
    return messages


def _retention(table: Table) -> RetentionSettings:
    default = RetentionSettings()
    retention = RetentionSettings(
        acknowledged_ms=table.duration("acknowledged", default.acknowledged_ms, _SECOND, 3650 * _DAY),
        dead_ms=table.duration("dead", default.dead_ms, _SECOND, 3650 * _DAY),
    )
    table.close()
    return retention


def _log(table: Table) -> LogSettings:
    default = LogSettings()
    log = LogSettings(
        level=table.choice("level", default.level, ("debug", "info", "warning", "error")),
        format=table.choice("format", default.format, ("auto", "text", "json", "journal")),
    )
    table.close()
    return log


def _accounts(document: Table, environ: Mapping[str, str], reader: Reader) -> Mapping[str, AccountSettings]:
    table = document.table("accounts")
    if not table.keys() and document.sound("accounts"):
        document.note("accounts", _NO_ACCOUNT)
    accounts = {}
    for name in table.keys():  # noqa: SIM118 - a Table is no mapping
        section = table.table(name)
        if _ACCOUNT_NAME.fullmatch(name):
            accounts[name] = _account(section, Sources(name, environ, reader))
        else:
            table.note(
                name,
                "an account's name has 1 to 63 of a-z, 0-9, _ and -, and begins with a letter or a digit",
            )
    return MappingProxyType(accounts)


def _account(table: Table, sources: Sources) -> AccountSettings:
    # Only to show the defaults; the three that have none are read below.
    default = AccountSettings(sources.account, "", Secret(""), Secret(""))
    allow_http = table.boolean("allow_http", default=default.allow_http)
    url = _account_url(table, "url", allow_http=allow_http)
    https = not url.startswith("http://")  # one that is wrong is complained of already
    proxy = _proxy(table, "proxy", https=https)
    account = AccountSettings(
        name=sources.account,
        url=url,
        login=read_login(table, sources),
        password=read_password(table, sources),
        parameters=table.choice("parameters", default.parameters, ("query", "form")),
        timeout_ms=table.duration("timeout", default.timeout_ms, 50, 10 * _MINUTE),
        concurrency=table.integer("concurrency", default.concurrency, 1, 256),
        rate_limit=table.number("rate_limit", default.rate_limit, 0.001, 100_000),
        allow_http=allow_http,
        max_waiting=table.integer("max_waiting", default.max_waiting, 0, _MOST_WAITING),
        batch=_batch(table.table("batch")),
        retry=_retry(table.table("retry")),
        tls=read_tls(table.table("tls"), sources, https=https),
        proxy=proxy,
        proxy_credentials=read_proxy_credentials(table, sources, proxy=table.has("proxy")),
    )
    table.close({"password": "is never written here; put it into a file and name that in password_file"})
    return account


def _batch(table: Table) -> BatchSettings:
    default = BatchSettings()
    batch = BatchSettings(
        max_receipts=table.integer("max_receipts", default.max_receipts, 1, 10_000),
        max_url_bytes=table.integer("max_url_bytes", default.max_url_bytes, 256, _MIB),
        linger_ms=table.duration("linger", default.linger_ms, 0, _MINUTE),
    )
    table.close()
    return batch


def _retry(table: Table) -> RetrySettings:
    default = RetrySettings()
    retry = RetrySettings(
        initial_ms=table.duration("initial", default.initial_ms, 1, _HOUR),
        max_ms=table.duration("max", default.max_ms, 1, _DAY),
        max_refusals=table.integer("max_refusals", default.max_refusals, 1, 1000),
        lifetime_ms=table.duration("lifetime", default.lifetime_ms, _SECOND, 365 * _DAY),
        auth_probe_ms=table.duration("auth_probe", default.auth_probe_ms, 100, _DAY),
    )
    table.close()
    if retry.initial_ms > retry.max_ms and table.sound("initial", "max"):
        table.note("max", f"must not be shorter than initial ({write_duration(retry.initial_ms)})")
    return retry


def _group(table: Table, key: str) -> int | None:
    """Read a group by name or number into its number."""
    value = table.take(key)
    if value is None:
        return None
    if _is_id(value):
        return value
    # What is no name at all may be anything, by mistake, so it is not repeated.
    if not isinstance(value, str) or not _USER_OR_GROUP_NAME.fullmatch(value):
        table.note(key, "must be a group's name in quotes, or its number")
        return None
    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        table.note(key, f"no group is called {value!r} on this system; create it, or name another")
        return None


def _users(table: Table, key: str) -> tuple[int, ...] | None:
    """Read a list of users by name or number into their numbers, each once; None if it is left out."""
    values = table.take(key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) > _MAX_USERS:
        table.note(key, f'must be a list of at most {_MAX_USERS} users, like ["my-app", 1001]')
        return None
    users: dict[int, None] = {}
    for value in values:
        if _is_id(value):
            users[value] = None
        elif not isinstance(value, str) or not _USER_OR_GROUP_NAME.fullmatch(value):
            table.note(key, "must hold users' names in quotes, or their numbers")
        else:
            try:
                users[pwd.getpwnam(value).pw_uid] = None
            except KeyError:
                table.note(key, f"no user is called {value!r} on this system; create it, or name another")
    return tuple(users)


def _is_id(value: object) -> TypeGuard[int]:
    # 2**32 - 1 means "leave it" to chown(2).
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < (1 << 32) - 1


def _database_url(table: Table, key: str, default: str) -> str:
    url = table.text(key, default)
    path = url.removeprefix("sqlite:///")
    if url.partition(":")[0].partition("+")[0] in {"postgresql", "postgres"}:
        table.note(key, "PostgreSQL arrives in a later release; use " + default + " for now")
    elif path == url:
        table.note(key, "must be SQLite's, like " + default)
    elif not path.startswith("/"):
        table.note(key, "must name an absolute path, so with four slashes, like " + default)
    elif path.endswith("/") or os.path.isdir(path):  # noqa: PTH112 - Path's raises where it may not look
        table.note(key, "names a directory; name a file in it, like " + default)
    elif set(path) & set("?#%") or _CONTROL.search(path):
        table.note(key, "must be a plain path without ?, # and %, like " + default)
    else:
        return url
    return default


def _account_url(table: Table, key: str, *, allow_http: bool) -> str:
    """Read the URL that receipts are posted to; it is never repeated, since a password may stand in it by mistake."""
    url = table.text(key, "")
    detail = _url_detail(url, allow_http=allow_http)
    if detail is None:
        return url
    if table.sound(key):
        table.note(key, detail)
    return ""


def _url_detail(url: str, *, allow_http: bool) -> str | None:
    """Say what is wrong with an account's URL, or None."""
    if not url:
        return 'is missing: write url = "https://…/api/dlr", the address that receipts are posted to'
    if not _URL_CHARACTERS.fullmatch(url):
        return "must be plain ASCII without spaces; write other characters of the path as %XX"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL: its host or port cannot be read"
    host = parts.hostname or ""
    if parts.scheme not in {"https", "http"}:
        return "must begin with https://"
    if "@" in parts.netloc:
        return "must not hold a user name or password; write login and password_file instead"
    if not _is_host(host, parts) or port == 0:
        return "must have a host (and after it a port only if it is not the usual one)"
    if "?" in url or "#" in url:
        return "must end with the path: no query and no fragment (login and password are added when sending)"
    if not _PATH.fullmatch(parts.path):
        return "must have a path of plain ASCII, other characters written as %XX"
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        return "must begin with https://, for the password travels in it (or set allow_http = true, knowing that)"
    return None


def _proxy(table: Table, key: str, *, https: bool) -> str | None:
    """Read the URL of a proxy; it is never repeated, since a password may stand in it by mistake."""
    url = table.text(key, "")
    if not table.has(key) or not table.sound(key):
        return None
    detail = _proxy_detail(url)
    if detail is None and not https:
        detail = "takes only an https:// url: with http:// the proxy would read login and password"
    if detail is None:
        return url.removesuffix("/")
    table.note(key, detail)
    return None


def _proxy_detail(url: str) -> str | None:
    """Say what is wrong with a proxy's URL, or None."""
    wanted = 'must be the proxy\'s address with its port, like "http://proxy.example.com:3128"'
    if not _URL_CHARACTERS.fullmatch(url):
        return wanted
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return wanted
    if parts.scheme == "https":
        return f"{wanted}: it is spoken to without TLS, and what goes through it has its own"
    if "@" in parts.netloc:
        return "must not hold a user name or password; write proxy_credentials_file instead"
    whole = parts.path in {"", "/"} and not ("?" in url or "#" in url)
    if parts.scheme != "http" or not port or not whole or not _is_host(parts.hostname or "", parts):
        return wanted
    return None


def _is_host(host: str, parts: SplitResult) -> bool:
    if parts.netloc.endswith(":"):
        return False
    if "[" in parts.netloc:
        return _address(host) is not None
    # What ends in a number is an address, to whoever looks it up: a name has letters there.
    if host.rpartition(".")[2].isdecimal():
        return isinstance(_address(host), ipaddress.IPv4Address)
    return _HOST.fullmatch(host) is not None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _failed(path: str, detail: str) -> ConfigurationError:
    return ConfigurationError((Problem(path, detail),))


def _syntax(message: str, text: str, source: str) -> ConfigurationError:
    """Turn the TOML decoder's message into a problem at file:line."""
    place = _TOML_PLACE.search(message)
    line = (place["line"] if place else None) or str(text.rstrip("\n").count("\n") + 1)
    column = f" (column {place['column']})" if place and place["column"] else ""
    return _failed(
        f"{source}:{line}", f"is not TOML: {message[: place.start()] if place else message}{column}"
    )
