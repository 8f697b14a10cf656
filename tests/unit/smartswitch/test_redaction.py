"""Redaction: no credential survives in what a server said, however it was encoded."""

from __future__ import annotations

import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.smartswitch.redaction import redactor

PASSWORD = "p@ss w\"ör/d'<&1"
FORMS = {
    "raw": PASSWORD,
    "percent": quote(PASSWORD, safe=""),
    "percent-lower": quote(PASSWORD, safe="").lower(),
    "percent-lax": quote(PASSWORD),
    "plus": quote_plus(PASSWORD),
    "twice": quote(quote(PASSWORD, safe=""), safe=""),
    "html": html.escape(PASSWORD),
    "json": json.dumps(PASSWORD)[1:-1],
    "json-utf8": json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
    "numeric": "".join(f"&#{ord(c)};" for c in PASSWORD),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_encoding_is_found(form: str) -> None:
    """The password goes, whatever encoding it is repeated in, and the text around it stays."""
    assert redactor("login", PASSWORD)(f"before {FORMS[form]} after") == "before [redacted] after"


@pytest.mark.parametrize("form", FORMS)
def test_an_echoed_query_is_emptied(form: str) -> None:
    """Nothing is left of a repeated query, though the password holds what could end the pattern."""
    text = redactor("login", PASSWORD)(
        f"/api/dlr?request_id=1&_login=login&_password={FORMS[form]} was not found"
    )
    assert text == "/api/dlr?request_id=1&_login=[redacted]&_password=[redacted] was not found"


def test_a_login_that_begins_the_password() -> None:
    """The longer credential is taken first, so its end does not stay behind."""
    assert redactor("hunter", "hunter2000")("hunter2000 hunter") == "[redacted] [redacted]"


def test_a_short_credential_is_only_found_alone() -> None:
    """A password of one letter does not riddle every word, yet goes where it stands by itself."""
    redact = redactor("ab", "x")
    assert redact("an example, x, about _login=ab&_password=x&y") == (
        "an example, [redacted], about _login=[redacted]&_password=[redacted]&y"
    )


def test_no_credentials_at_all() -> None:
    """Empty credentials change nothing."""
    assert redactor("", "")("Not Found") == "Not Found"


@settings(deadline=None)
@given(st.text(min_size=4, max_size=20), st.text(max_size=30), st.text(max_size=30))
def test_no_password_survives(password: str, before: str, after: str) -> None:
    """For any password of four characters or more and any text around it, the password itself is gone."""
    redacted = redactor("", password)(before + password + after)
    assert password not in redacted.replace("[redacted]", "\x00" * 40)
