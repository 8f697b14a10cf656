"""What files in PEM hold, and from when until when a certificate is valid.

Only as much of X.509 is read as an admin has to be told (RFC 5280 §4.1): the two dates. Whether a certificate is to be
trusted is OpenSSL's to say. Pure: bytes in, values out.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*?)-----END CERTIFICATE-----"
)
_KEY: Final = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*)PRIVATE KEY-----(.*?)-----END ", re.DOTALL)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_LONG_FORM: Final = 0x80
_LONGEST_LENGTH: Final = 4
_CENTURY_TURN: Final = 50
"""A two-digit year below it is of this century (RFC 5280 §4.1.2.5.1)."""


class Validity(NamedTuple):
    """From when until when a certificate is valid, in wall milliseconds."""

    from_ms: int
    until_ms: int


def certificates(content: bytes) -> tuple[bytes, ...]:
    """Return the certificates of a PEM file in DER, in their order; raises ValueError if one is not base64."""
    try:
        return tuple(
            base64.b64decode(b"".join(each.split()), validate=True) for each in _CERTIFICATE.findall(content)
        )
    except binascii.Error:
        raise ValueError("not base64") from None


def has_key(content: bytes) -> bool:
    """Whether a PEM file holds a private key."""
    return _KEY.search(content) is not None


def has_encrypted_key(content: bytes) -> bool:
    """Whether the private key of a PEM file takes a passphrase."""
    found = _KEY.search(content)
    return found is not None and (b"ENCRYPTED" in found[1] or b"Proc-Type: 4,ENCRYPTED" in found[2])


def validity(der: bytes) -> Validity:
    """Read the dates of a certificate in DER; raises ValueError if it is none."""
    _, at, _ = _value(der, 0, _SEQUENCE)
    _, at, end = _value(der, at, _SEQUENCE)
    # Before the dates: an optional version, the serial number, the signature's algorithm, the issuer.
    for _ in range(4 if der[at : at + 1] == bytes([_VERSION]) else 3):
        _, _, at = _value(der, at)
    _, at, end = _value(der, at, _SEQUENCE)
    first, at, end_of_first = _value(der, at)
    begins = _time(first, der[at:end_of_first])
    second, at, end_of_second = _value(der, end_of_first)
    if end_of_second != end:
        raise ValueError("not two dates")
    return Validity(begins, _time(second, der[at:end_of_second]))


def _value(der: bytes, at: int, wanted: int | None = None) -> tuple[int, int, int]:
    """Return the tag of the value at ``at``, where its content begins, and where it ends."""
    if at + 2 > len(der):
        raise ValueError("cut short")
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & _LONG_FORM:
        size = length & ~_LONG_FORM
        if not 0 < size <= _LONGEST_LENGTH:
            raise ValueError("not DER")
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    if begin + length > len(der) or (wanted is not None and tag != wanted):
        raise ValueError("not a certificate")
    return tag, begin, begin + length


def _time(tag: int, text: bytes) -> int:
    digits = text.decode("ascii", "replace")
    if tag == _UTC_TIME and re.fullmatch(r"[0-9]{12}Z", digits):
        digits = ("20" if int(digits[:2]) < _CENTURY_TURN else "19") + digits
    elif tag != _GENERALIZED_TIME or not re.fullmatch(r"[0-9]{14}Z", digits):
        raise ValueError("not a date")
    # strptime takes fewer digits than it is told.
    return int(datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp() * 1000)
