"""TLS of one account: whom it trusts and what it shows, read from files into the one context that connections use.

The files are read and judged here, at start and at every reload: whoever gets a `TlsSettings` has no file to open any
more, and can tell by comparing whether a certificate was renewed. What is wrong with a server's certificate shows only
when connecting: that is `dlr_buffer.smartswitch`'s.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dlr_buffer.config import certificates
from dlr_buffer.config.certificates import Validity
from dlr_buffer.config.credentials import Sources, absolute_path
from dlr_buffer.config.private_files import FileRefused
from dlr_buffer.config.settings import Configuration, Problem, TlsSettings
from dlr_buffer.config.table import Table

MinVersion = Literal["1.2", "1.3"]

_MAX_FILE_BYTES = 4 << 20
_NOT_MINE = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")
_SOON_MS = 14 * 86_400_000
"""How long before its end a certificate is warned of."""
_DER = b"\x30\x82"


def new_context(min_version: MinVersion, authorities: tuple[bytes, ...] | None = None) -> ssl.SSLContext:
    """Return a context that trusts ``authorities`` (in DER), else the system's, and speaks HTTP/1.1.

    SSL_CERT_FILE and SSL_CERT_DIR name other places for the system's trust, as OpenSSL has it. SSLKEYLOGFILE, in which
    every session could be read, is not heeded. Raises ssl.SSLError if an authority is no certificate.
    """
    # Names and certificates are checked by default with this protocol. ssl.create_default_context would do the same,
    # but write the keys of sessions where the environment says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[min_version]
    context.set_alpn_protocols(["http/1.1"])
    if authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        for authority in authorities:
            context.load_verify_locations(cadata=authority)
    return context


class SystemTrust:
    """The system's authorities as they are now: loaded when they are first asked for, and once for all accounts."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._contexts: dict[MinVersion, tuple[ssl.SSLContext, str]] = {}

    def context(self, min_version: MinVersion) -> tuple[ssl.SSLContext, str]:
        """Return a context with them, and a fingerprint that differs when they do.

        Authorities in a folder are read by OpenSSL when it needs them: they are always the present ones, and no part
        of the fingerprint.
        """
        if min_version not in self._contexts:
            context = new_context(min_version)
            seen = hashlib.sha256(b"".join(sorted(context.get_ca_certs(binary_form=True))))
            self._contexts[min_version] = context, seen.hexdigest()
        return self._contexts[min_version]


def read_tls(table: Table, sources: Sources, *, https: bool) -> TlsSettings:
    """Read an account's table ``tls``; ``https`` says whether its URL is one to use TLS with."""
    min_version = table.choice("min_version", TlsSettings().min_version, ("1.2", "1.3"))
    ca_file = absolute_path(table, "ca_file", "/etc/dlr-buffer/smartswitch-ca.pem")
    client_cert = absolute_path(table, "client_cert", f"/etc/dlr-buffer/{sources.account}.crt")
    client_key = sources.path(table, "client_key", "client_key")
    table.close()
    if not https:
        if min_version != TlsSettings().min_version:
            table.note("min_version", "is without effect: the url does not begin with https://")
        for key in ("ca_file", "client_cert", "client_key"):
            if table.has(key) and table.sound(key):
                table.note(key, "is without effect: the url does not begin with https://")
        return TlsSettings(min_version=min_version)
    if client_cert is None:
        if table.has("client_key") and table.sound("client_key", "client_cert"):
            table.note("client_key", "is without effect unless client_cert is given too")
        client_key = None
    authorities, authorities_until_ms = _authorities(table, sources, ca_file) if ca_file else (None, None)
    chain = _chain(table, sources, client_cert, client_key) if client_cert else None
    if authorities is None and chain is None:
        return TlsSettings(ca_file, client_cert, client_key, min_version)
    context = _context(table, min_version, authorities)
    if context is not None and client_cert is not None and chain is not None:
        _show(table, context, client_cert, client_key)
    seen = hashlib.sha256(b"".join(authorities or ()) + b"|" + (chain.content if chain else b""))
    return TlsSettings(
        ca_file,
        client_cert,
        client_key,
        min_version,
        context=context,
        fingerprint=seen.hexdigest(),
        client_validity=chain.validity if chain else None,
        authorities_until_ms=authorities_until_ms,
    )


def certificate_warnings(configuration: Configuration, now_ms: int) -> tuple[Problem, ...]:
    """Say which certificates of the configuration are not valid at ``now_ms``, or will soon be so no more."""
    return tuple(
        Problem(f"accounts.{account.name}.tls.{key}", detail)
        for account in configuration.accounts.values()
        for key, detail in _warnings(account.tls, now_ms)
    )


def next_expiry_ms(configuration: Configuration) -> int | None:
    """Return when the first client certificate ends, in wall milliseconds; None if there is none."""
    ends = [
        tls.client_validity.until_ms for tls in _every_tls(configuration) if tls.client_validity is not None
    ]
    return min(ends, default=None)


def _every_tls(configuration: Configuration) -> Iterator[TlsSettings]:
    return (account.tls for account in configuration.accounts.values())


def _warnings(tls: TlsSettings, now_ms: int) -> Iterator[tuple[str, str]]:
    if (valid := tls.client_validity) is not None:
        renew = "put the renewed one in its place, then: systemctl reload dlr-buffer"
        if now_ms > valid.until_ms:
            yield "client_cert", f"{tls.client_cert} has expired on {_day(valid.until_ms)}; {renew}"
        elif now_ms > valid.until_ms - _SOON_MS:
            yield "client_cert", f"{tls.client_cert} expires on {_day(valid.until_ms)}; {renew}"
        elif now_ms < valid.from_ms:
            begin = _day(valid.from_ms)
            yield (
                "client_cert",
                f"{tls.client_cert} is not valid before {begin}; is this machine's clock right?",
            )
    if tls.authorities_until_ms is not None and now_ms > tls.authorities_until_ms:
        day = _day(tls.authorities_until_ms)
        yield "ca_file", f"{tls.ca_file} has no valid certificate any more: the last one has expired on {day}"


class _Chain:
    """What a client certificate's files hold."""

    __slots__ = ("content", "validity")

    def __init__(self, content: bytes, validity: Validity) -> None:
        self.content = content
        self.validity = validity


def _authorities(table: Table, sources: Sources, path: Path) -> tuple[tuple[bytes, ...] | None, int | None]:
    """Return the certificates of a bundle in DER, and when the last of them ends."""
    try:
        content = sources.reader.trusted(
            path, limit=_MAX_FILE_BYTES, missing="write the authority's certificates into it, in PEM"
        )
        found, dates = _certificates(path, content)
    except FileRefused as error:
        table.note("ca_file", f"{path} {error}")
        return None, None
    return found, max(each.until_ms for each in dates)


def _chain(table: Table, sources: Sources, cert: Path, key: Path | None) -> _Chain | None:
    reader, missing = (
        sources.reader,
        "write the certificate and those between it and its authority into it, in PEM",
    )
    try:
        # Without client_key the key stands beside the certificate.
        read = reader.trusted if key else reader.secret
        content = read(cert, limit=_MAX_FILE_BYTES, missing=missing)
        _, dates = _certificates(cert, content)
        if key is None:
            _check_key(cert, content, "; name the file that does in client_key")
    except FileRefused as error:
        table.note("client_cert", f"{cert} {error}")
        return None
    if key is not None:
        try:
            secret = reader.secret(
                key, limit=_MAX_FILE_BYTES, missing="write the private key into it, in PEM"
            )
            _check_key(key, secret, "")
        except FileRefused as error:
            table.note("client_key", f"{key} {error}")
            return None
        content += b"|" + secret
    return _Chain(content, dates[0])


def _certificates(path: Path, content: bytes) -> tuple[tuple[bytes, ...], tuple[Validity, ...]]:
    try:
        found = certificates.certificates(content)
        dates = tuple(map(certificates.validity, found))
    except ValueError:
        raise FileRefused("holds a certificate that is damaged; write it anew") from None
    if len(content) > _MAX_FILE_BYTES:
        raise FileRefused("is longer than 4 MiB; this is no bundle of certificates")
    if found:
        return found, dates
    if content.startswith(_DER):
        raise FileRefused(
            f"is not PEM but DER; convert it: openssl x509 -inform der -in {path} -out {path}.pem"
        )
    raise FileRefused("holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----")


def _check_key(path: Path, content: bytes, advice: str) -> None:
    if not certificates.has_key(content):
        raise FileRefused(
            f"holds no private key in PEM, which begins with -----BEGIN PRIVATE KEY-----{advice}"
        )
    if certificates.has_encrypted_key(content):
        raise FileRefused(
            "is encrypted with a passphrase, which nobody is there to type in; write it without one (openssl pkey"
            f" -in {path} -out NEW), or let systemd keep it encrypted (LoadCredentialEncrypted=)"
        )


def _context(
    table: Table, min_version: MinVersion, authorities: tuple[bytes, ...] | None
) -> ssl.SSLContext | None:
    try:
        return new_context(min_version, authorities)
    except ssl.SSLError as error:
        table.note("ca_file", f"holds a certificate that OpenSSL does not take ({error.reason or 'not DER'})")
        return None


def _show(table: Table, context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Let the context show the certificate."""
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason in _NOT_MINE:
            detail = f"{key or cert} does not belong to the certificate in {cert}"
        else:
            detail = f"{key or cert} or the certificate in {cert} is not taken by OpenSSL ({error.reason or 'not PEM'})"
        table.note("client_key" if key else "client_cert", detail)
    except OSError as error:
        table.note("client_cert", f"{cert} cannot be read: {error.strerror or 'I/O error'}")


def _day(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError):
        return "a day beyond every calendar"
