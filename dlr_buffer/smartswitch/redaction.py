"""Taking credentials out of what a server says.

The login and the password travel in the query, and error pages like to repeat the URL that they are about.
What such a page says is kept for admins, so it passes through here first.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from urllib.parse import quote

REDACTED = "[redacted]"

_SHORT = 4
"""A credential shorter than this is only found where it stands alone; else every text would be riddled."""
_ECHO = r"(_(?:login|password)(?:=|%(?:25)*3D|&\#61;|\\u003d))"
_ECHO_REST = r"""[^&\s"'<>]*"""


def redactor(login: str, password: str) -> Callable[[str], str]:
    """Return a function that replaces both credentials in a text by ``[redacted]``, however encoded.

    Found are the raw text, percent-encoding (once or twice, ``+`` for a space), HTML character references and
    JSON escapes, mixed as they come, and whatever follows ``_login=`` or ``_password=``.
    """
    # The longest first: a login that is the beginning of the password must not leave the password's end
    # standing.
    secrets = sorted({secret for secret in (login, password) if secret}, key=len, reverse=True)
    either = "|".join(map(_in_any_encoding, secrets)) or "(?!)"
    pattern = re.compile(f"{_ECHO}(?:{either})?{_ECHO_REST}|{either}", re.IGNORECASE)
    digits_are_harmless = not any(map(str.isdigit, secrets))

    def redact(text: str) -> str:
        # Most of what comes is ids of digits, thousands a second.
        if digits_are_harmless and text.isdigit():
            return text
        return pattern.sub(lambda found: (found[1] or "") + REDACTED, text)

    return redact


def _in_any_encoding(secret: str) -> str:
    pattern = "".join(map(_character_in_any_encoding, secret))
    return pattern if len(secret) >= _SHORT else rf"(?<!\w){pattern}(?!\w)"


def _character_in_any_encoding(character: str) -> str:
    percent = "".join(f"%(?:25)*{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    utf16 = character.encode("utf-16-be", "surrogatepass")
    escape = "".join(rf"\\u{utf16[at]:02x}{utf16[at + 1]:02x}" for at in range(0, len(utf16), 2))
    forms = {re.escape(character), percent, escape, f"&\\#0*{ord(character)};", f"&\\#x0*{ord(character):x};"}
    forms |= {re.escape(html.escape(character)), re.escape(quote(character, safe="", errors="replace"))}
    if character == " ":
        forms.add(r"\+")
    if character in '"\\/':
        forms.add(re.escape("\\" + character))
    # The longest first, lest the '&' of '&amp;' is taken and 'amp;' stops the match.
    return f"(?:{'|'.join(sorted(forms, key=len, reverse=True))})"
