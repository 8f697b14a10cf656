"""What a connection with Smartswitch shows before anything is sent over it: the address, and how it is encrypted.

Pure but for asking the TLS library; connecting is `transport`'s, and why it failed is said by `client`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encryption:
    """A TLS handshake that was trusted."""

    protocol: str
    """Such as ``TLSv1.3``."""
    cipher: str
    issuer: str
    """Who vouches for the certificate, "unknown" if it does not tell."""
    names: tuple[str, ...]
    """The host names and addresses that it is for."""
    ends_ms: int | None
    """When the certificate expires, in wall milliseconds."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection that came about; ``encryption`` is None without TLS."""

    address: str
    encryption: Encryption | None


def encryption_of(connection: ssl.SSLObject) -> Encryption:
    """Say what a finished handshake brought."""
    # Typed by typeshed as a mapping of nested tuples that no two keys share.
    certificate: dict[str, object] = dict(connection.getpeercert() or {})
    cipher = connection.cipher()
    ends = certificate.get("notAfter")
    return Encryption(
        protocol=connection.version() or "unknown",
        cipher=cipher[0] if cipher else "unknown",
        issuer=_issuer(certificate.get("issuer")),
        names=_names(certificate.get("subjectAltName")),
        ends_ms=int(ssl.cert_time_to_seconds(ends) * 1000) if isinstance(ends, str) else None,
    )


def _issuer(parts: object) -> str:
    found = {
        name: value
        for group in (parts if isinstance(parts, tuple) else ())
        for name, value in (group if isinstance(group, tuple) else ())
    }
    return str(found.get("commonName") or found.get("organizationName") or "unknown")


def _names(pairs: object) -> tuple[str, ...]:
    return tuple(str(value) for _, value in (pairs if isinstance(pairs, tuple) else ()))
