"""What is read of certificates: the dates that OpenSSL reads too, and of everything else a plain error."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.config.certificates import certificates, has_encrypted_key, has_key, validity

AUTHORITY = trustme.CA()
LEAF = AUTHORITY.issue_cert("localhost")


def ms(*date: int) -> int:
    """A moment of UTC in wall milliseconds."""
    return int(dt.datetime(*date, tzinfo=dt.UTC).timestamp() * 1000)  # type: ignore[misc, arg-type] # six numbers


@pytest.mark.parametrize("year", [1970, 1999, 2026, 2049, 2050, 2200, 9999])
def test_the_dates_are_read(year: int) -> None:
    """In either of the two ways in which dates are written: with two digits of the year before 2050, else with four."""
    end = dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    begin = end - dt.timedelta(days=366)
    begin = max(begin, dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    pem = AUTHORITY.issue_cert("localhost", not_before=begin, not_after=end).cert_chain_pems[0].bytes()
    (der,) = certificates(pem)
    assert validity(der) == (int(begin.timestamp() * 1000), int(end.timestamp() * 1000))


def test_a_bundle() -> None:
    """Each certificate of a file, with what people write between them, and line ends of any kind."""
    pems = [LEAF.cert_chain_pems[0].bytes(), AUTHORITY.cert_pem.bytes()]
    bundle = "# vertrauenswürdig\n".encode() + b"\nsubject=x\n".join(pems).replace(b"\n", b"\r\n")
    # What trustme gives to all that is not told otherwise.
    always = (ms(2000, 1, 1, 0, 0, 0), ms(3000, 1, 1, 0, 0, 0))
    assert [validity(der) for der in certificates(bundle)] == [always, always]
    assert certificates(bundle)[0] == ssl.PEM_cert_to_DER_cert(pems[0].decode())
    assert certificates(b"nothing") == ()


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(cut=st.integers(0, 1200), put=st.binary(max_size=6))
def test_any_damage(cut: int, put: bytes) -> None:
    """Whatever is broken off or overwritten: dates, or ValueError, and nothing else."""
    (der,) = certificates(LEAF.cert_chain_pems[0].bytes())
    for damaged in (der[:cut], der[:cut] + put + der[cut + len(put) :]):
        with contextlib.suppress(ValueError):
            validity(damaged)


def test_a_certificate_that_is_cut() -> None:
    """Cut anywhere up to its dates it is none."""
    (der,) = certificates(LEAF.cert_chain_pems[0].bytes())
    for length in range(150):
        with pytest.raises(ValueError, match=r"not a certificate|cut short|not DER"):
            validity(der[:length])


def test_keys() -> None:
    """A key is told from a certificate, and one with a passphrase from one without."""
    plain = LEAF.private_key_pem.bytes()
    assert has_key(plain)
    assert not has_encrypted_key(plain)
    assert not has_key(LEAF.cert_chain_pems[0].bytes())
    assert has_encrypted_key(
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    traditional = (
        b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMII=\n-----END RSA PRIVATE KEY-----\n"
    )
    assert has_encrypted_key(traditional)
