"""The configuration: what an admin may set, read from TOML and checked as a whole (DESIGN §7).

``settings`` holds the frozen records and their defaults, ``values`` the spelling of durations and sizes, ``reading``
turns a TOML document into records, with ``credentials`` and ``tls`` for what stands in files of its own (which
``private_files`` judges and ``certificates`` takes apart); ``description`` turns records back into text and compares
them. Nothing here acts on a setting: sockets are bound, databases opened and accounts reloaded elsewhere.
"""

from dlr_buffer.config.description import describe, left_to_socket_units, restart_needed
from dlr_buffer.config.reading import DEFAULT_PATH, Survey, load, parse, survey
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
    TlsSettings,
)
from dlr_buffer.config.tls import SystemTrust, certificate_warnings, next_expiry_ms

__all__ = [
    "DEFAULT_PATH",
    "AccountSettings",
    "ApiSettings",
    "BatchSettings",
    "Configuration",
    "ConfigurationError",
    "DatabaseSettings",
    "LogSettings",
    "MessageSettings",
    "Problem",
    "RetentionSettings",
    "RetrySettings",
    "Secret",
    "Survey",
    "SystemTrust",
    "TlsSettings",
    "certificate_warnings",
    "describe",
    "left_to_socket_units",
    "load",
    "next_expiry_ms",
    "parse",
    "restart_needed",
    "survey",
]
