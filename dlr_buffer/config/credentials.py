"""Login, password and what the proxy asks for: from files, or from systemd's credentials.

A key that ends in ``_file`` names a file. Without it systemd's credential ``ACCOUNT.NAME`` is taken, if the unit has
one (``LoadCredential=``, ``LoadCredentialEncrypted=``, ``SetCredential=``): a file in ``$CREDENTIALS_DIRECTORY``. Whose
the files may be is judged in `private_files`. No problem repeats what is in one.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlr_buffer.config.private_files import FileRefused, Reader
from dlr_buffer.config.settings import Secret
from dlr_buffer.config.table import Table

MAX_LOGIN_CHARACTERS = 1024
_MAX_BYTES = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where an account's secrets may come from: its name, the environment, and who reads its files."""

    account: str
    environ: Mapping[str, str]
    reader: Reader

    def path(self, table: Table, key: str, name: str) -> Path | None:
        """Return the file that ``key`` names, else systemd's credential ``ACCOUNT.name``, else None.

        A key that is wrong is noted, and gives None too.
        """
        if table.has(key):
            return absolute_path(table, key, f"/etc/dlr-buffer/{self.account}.{name}")
        credentials = self.environ.get("CREDENTIALS_DIRECTORY", "")
        credential = Path(credentials, f"{self.account}.{name}")
        return credential if credentials and os.path.lexists(credential) else None

    def line(self, table: Table, key: str, path: Path, what: str) -> str:
        """Return the only line of the file at ``path``; if it has none, note why, and return nothing."""
        try:
            return _line(self.reader, path, what)
        except FileRefused as error:
            table.note(key, f"{path} {error}")
            return ""


def absolute_path(table: Table, key: str, example: str) -> Path | None:
    """Read the absolute path of a file; None if it is left out, or wrong (which is noted)."""
    named = table.text(key, "")
    if not table.has(key) or not table.sound(key):
        return None
    path = Path(named)
    if not path.is_absolute():
        table.note(key, f'must be an absolute path, like "{example}"')
        return None
    return path


def read_login(table: Table, sources: Sources) -> Secret:
    """Read the login: from the configuration itself, or from a file, or from systemd's credential."""
    path = sources.path(table, "login_file", "login")
    login = table.text("login", "")
    if table.has("login"):
        if table.has("login_file"):
            table.note("login_file", "is given, and login too; write one of them")
        if login and (len(login) > MAX_LOGIN_CHARACTERS or _CONTROL.search(login)):
            table.note(
                "login", f"must have 1 to {MAX_LOGIN_CHARACTERS} characters, without control characters"
            )
    elif path is not None:
        login = sources.line(table, "login_file", path, "login")
        if len(login) > MAX_LOGIN_CHARACTERS:
            table.note(
                "login_file", f"{path} is longer than {MAX_LOGIN_CHARACTERS} characters; this is no login"
            )
        return Secret(login)
    if not login and table.sound("login", "login_file"):
        table.note(
            "login",
            'is missing: write login = "…", as in the personal account at Smartswitch, or name a file with it in'
            f" login_file, or give systemd's unit LoadCredential={sources.account}.login:PATH",
        )
    return Secret(login)


def read_password(table: Table, sources: Sources) -> Secret:
    """Read the password from its file, or from systemd's credential."""
    key = "password_file"
    path = sources.path(table, key, "password")
    if path is not None:
        return Secret(sources.line(table, key, path, "password"))
    if table.sound(key):
        table.note(
            key,
            f'is missing: write password_file = "/etc/dlr-buffer/{sources.account}.password", a file with only the '
            f"password in it, or give systemd's unit LoadCredential={sources.account}.password:PATH",
        )
    return Secret("")


def read_proxy_credentials(table: Table, sources: Sources, *, proxy: bool) -> Secret | None:
    """Read ``user:password`` for the proxy from its file, or from systemd's credential; None if it asks for nothing."""
    key = "proxy_credentials_file"
    path = sources.path(table, key, "proxy_credentials")
    if path is None or not proxy:
        if table.has(key) and not proxy and table.sound(key):
            table.note(key, 'is without effect unless proxy = "http://HOST:PORT" is given too')
        return None
    credentials = sources.line(table, key, path, "user and password of the proxy")
    if credentials and ":" not in credentials:
        table.note(key, f"{path} must hold USER:PASSWORD on one line")
    return Secret(credentials)


def _line(reader: Reader, path: Path, what: str) -> str:
    content = reader.secret(path, limit=_MAX_BYTES + 2, missing=f"write a file with only the {what} in it")
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        line = content.decode()
    except UnicodeDecodeError:
        line = None
    # Raised out here: the decoder's error would be in the chain, with the content.
    if line is None:
        raise FileRefused("is not UTF-8; save it as UTF-8")
    if not line:
        raise FileRefused(f"is empty; write the {what} into it")
    if len(content) > _MAX_BYTES:
        raise FileRefused(f"is longer than {_MAX_BYTES} bytes; this is no {what}")
    if _CONTROL.search(line):
        raise FileRefused(f"has several lines or control characters; write only the {what}, on one line")
    return line
