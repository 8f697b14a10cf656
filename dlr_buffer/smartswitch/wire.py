"""The request as Smartswitch wants it: names, order and percent-encoding (the seed, *Arguments*).

Pure text in, text out. It is built here and not by the HTTP library, which would leave some characters raw.
Sending is `client`'s, reading the answer is `answers`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from dlr_buffer.receipts import Receipt

_FIXED_LENGTH = len("message_id=&message_state=&request_id=&")
_PATH_SAFE = "/%!$&'()*+,;=:@"
"""What RFC 3986 allows raw in a path besides unreserved; ``%`` too, as the path is configured encoded."""


def encode_pairs(receipts: Sequence[Receipt]) -> str:
    """Return ``message_id=…&message_state=…&request_id=…`` per receipt, in order, joined by ``&``.

    Everything but RFC 3986 unreserved characters is ``%XX`` of its UTF-8 in capitals; a space is ``%20``.
    """
    return "&".join(
        [
            f"message_id={_quoted(receipt.message_id)}"
            f"&message_state={receipt.message_state}&request_id={receipt.request_id}"
            for receipt in receipts
        ]
    )


def _quoted(message_id: str) -> str:
    # Nearly every id is plain digits.
    return message_id if _is_plain(message_id) else quote(message_id, safe="")


def _is_plain(message_id: str) -> bool:
    return message_id.isascii() and message_id.isalnum()


def encode_credentials(login: str, password: str) -> str:
    """Return ``_login=…&_password=…``, encoded like the rest. The text is a secret."""
    return f"_login={quote(login, safe='')}&_password={quote(password, safe='')}"


def encode_query(receipts: Sequence[Receipt], login: str, password: str) -> str:
    """Return the whole query (or form body): the receipts, then the credentials. The text is a secret."""
    return f"{encode_pairs(receipts)}&{encode_credentials(login, password)}"


def target_path(url: str) -> str:
    """Return the path of ``url`` as the request target has it: ``/`` if empty, illegal characters encoded."""
    return quote(urlsplit(url).path, safe=_PATH_SAFE) or "/"


def encoded_length(receipt: Receipt) -> int:
    """Return how many bytes the receipt takes in the query, the ``&`` after it included."""
    message_id = receipt.message_id
    id_length = len(message_id) if _is_plain(message_id) else len(quote(message_id, safe=""))
    return _FIXED_LENGTH + id_length + len(receipt.message_state) + len(str(receipt.request_id))


def overhead(path: str | None, login: str, password: str) -> int:
    """Return the bytes of a request besides its receipts: ``path?`` and the credentials.

    ``path`` is `target_path`'s, or None for the form body, which holds no path. Together with every receipt's
    `encoded_length` this is the exact length of the request target (of the body).
    """
    return (0 if path is None else len(path) + len("?")) + len(encode_credentials(login, password))


def fitting(receipts: Sequence[Receipt], *, budget_bytes: int, max_receipts: int) -> int:
    """Return how many of ``receipts``, in order, go into one request: from 1 to ``max_receipts``.

    ``budget_bytes`` is what the receipts may take: the limit on the request target (neither ``POST`` nor
    ``HTTP/1.1`` counts) less `overhead`. One receipt goes alone even if it is too long: it would never go
    otherwise.
    """
    left = budget_bytes
    for count, receipt in enumerate(receipts[:max_receipts]):
        left -= encoded_length(receipt)
        if left < 0:
            return max(1, count)
    return max(1, min(len(receipts), max_receipts))
