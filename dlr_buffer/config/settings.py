"""The records of the configuration, their defaults, and the error that lists what is wrong with one.

Fields in ``_ms`` are whole milliseconds, fields in ``_bytes`` whole bytes. The records don't check themselves: that
is ``reading``'s, which knows where in the file a value stands and so can say what to mend.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Never

from dlr_buffer.config.certificates import Validity
from dlr_buffer.errors import DlrBufferError

_SECOND = 1_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_MIB = 1024 * 1024

_DERIVED: Final = {"derived": True}


def is_derived(item: Field[Any]) -> bool:
    """Whether a record's field is no key of the file: it was made from what a key names."""
    return item.metadata.get("derived", False) is True


class Secret:
    """A string that shows itself only to `reveal`: ``str``, ``repr`` and ``format`` give ``***``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep ``text``."""
        self._text = text

    def reveal(self) -> str:
        """Return the string itself; for the one place that sends it."""
        return self._text

    def __str__(self) -> str:
        """Give three asterisks, whatever the length."""
        return "***"

    def __repr__(self) -> str:
        """Give three asterisks, whatever the length."""
        return "***"

    def __format__(self, spec: str) -> str:
        """Give three asterisks, formatted by ``spec``."""
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        """Compare with another secret; a plain string is never equal."""
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash(self._text)

    def __reduce_ex__(self, protocol: object) -> Never:
        """Refuse to be pickled or copied into a file; raises TypeError."""
        raise TypeError("a secret cannot be pickled")

    def __deepcopy__(self, memo: object) -> Secret:
        """Be its own copy, since it never changes."""
        return self


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The two Unix sockets (DESIGN §5): where they are and who may open them."""

    client_socket: Path = Path("/run/dlr-buffer/client.sock")
    admin_socket: Path = Path("/run/dlr-buffer/admin.sock")
    client_group: int | None = None
    """Numeric id of the group that the client socket is given to; None leaves it with the daemon's own."""
    admin_group: int | None = None
    client_mode: int = 0o660
    admin_mode: int = 0o600
    client_allow: tuple[int, ...] | None = None
    """Numeric ids of the users who may use the client socket; None: whoever may open it."""
    admin_allow: tuple[int, ...] | None = None
    """The same for the admin socket, where root and the daemon's own user always may."""


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where the queue is kept."""

    url: str = "sqlite:////var/lib/dlr-buffer/queue.db"
    min_free_bytes: int = 256 * _MIB
    """Free bytes on the file system under which registration answers 507."""
    first_request_id: int = 1

    @property
    def path(self) -> Path:
        """The absolute path of the SQLite file."""
        return Path(self.url.removeprefix("sqlite:///"))


@dataclass(frozen=True, slots=True)
class MessageSettings:
    """What holds for messages unless the app says otherwise."""

    validity_period_ms: int = 72 * _HOUR
    unknown_messages: Literal["register", "reject"] = "register"


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long what is done with stays to be looked at."""

    acknowledged_ms: int = 7 * _DAY
    dead_ms: int = 30 * _DAY


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a batch closes: whichever of the three comes first (DESIGN §4)."""

    max_receipts: int = 100
    max_url_bytes: int = 7168
    """Longest request target, encoded, in bytes; with ``parameters = "form"`` it bounds the body instead."""
    linger_ms: int = 250


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How failures are waited out, and when a receipt is given up (DESIGN §2, §4)."""

    initial_ms: int = _SECOND
    max_ms: int = 10 * _MINUTE
    max_refusals: int = 5
    lifetime_ms: int = 7 * _DAY
    auth_probe_ms: int = 5 * _MINUTE


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Whom an account with an https URL trusts, and what it shows; its files are read already."""

    ca_file: Path | None = None
    """Certificates that are trusted instead of the system's."""
    client_cert: Path | None = None
    client_key: Path | None = None
    """None if the key stands in ``client_cert``, or there is no certificate to show."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    context: ssl.SSLContext | None = field(default=None, repr=False, compare=False, metadata=_DERIVED)
    """Made of the files; None if there are none: then the system's trust has to be loaded."""
    fingerprint: str = field(default="", repr=False, metadata=_DERIVED)
    """Differs when the content of a file does."""
    client_validity: Validity | None = field(default=None, metadata=_DERIVED)
    authorities_until_ms: int | None = field(default=None, metadata=_DERIVED)
    """When the last certificate of ``ca_file`` ends, in wall milliseconds."""


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """One Smartswitch login at one URL."""

    name: str
    url: str
    login: Secret
    password: Secret
    parameters: Literal["query", "form"] = "query"
    timeout_ms: int = 30 * _SECOND
    """Covers one whole exchange, from connecting to the last byte of the answer."""
    concurrency: int = 4
    """Most requests on the wire at once."""
    rate_limit: float = 0.0
    """Most requests a second; 0 is no limit."""
    allow_http: bool = False
    max_waiting: int = 0
    """Most messages without a final state; beyond it registration answers 503. 0 is no limit."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    proxy: str | None = None
    """``http://HOST:PORT`` of the proxy that connections go through."""
    proxy_credentials: Secret | None = None
    """``USER:PASSWORD`` for it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that was configured, checked; ``accounts`` is read-only and holds at least one."""

    api: ApiSettings
    database: DatabaseSettings
    messages: MessageSettings
    retention: RetentionSettings
    log: LogSettings
    accounts: Mapping[str, AccountSettings]


class Problem(NamedTuple):
    """One thing that is wrong: ``path`` is the dotted key, or the file (and line); ``detail`` says what to do."""

    path: str
    detail: str


class ConfigurationError(DlrBufferError):
    """The configuration cannot be used; ``problems`` lists everything found, never with a credential in it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        """Remember every problem; the text has one line for each."""
        self.problems = problems
        lines = "\n".join(f"  {problem.path}: {problem.detail}" for problem in problems)
        super().__init__(f"the configuration cannot be used:\n{lines}")
