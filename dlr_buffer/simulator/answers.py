"""What the stand-in can do with a request: answer it, drop it, let it hang, or send raw bytes.

Only descriptions live here; `server` carries them out and `behaviour` chooses them. A script (see
`server.Simulator`) returns one of these too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Scripted:
    """A well-formed HTTP answer.

    ``Content-Length`` is added unless ``headers`` carry it or a transfer coding; to lie about the length use
    `Raw`. ``accepts`` says that the stand-in acted on the request's receipts, whatever the answer claims:
    they count as accepted. ``delay`` is in seconds, on top of the configured latency; ``close`` ends the
    connection afterwards.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    accepts: bool = False
    delay: float = 0.0
    close: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Reset the connection (RST) instead of answering; with ``accepts`` after having acted on the request."""

    accepts: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer: the connection stays open until the client goes away or the stand-in stops."""

    accepts: bool = False


class Ending(StrEnum):
    """What becomes of the connection after raw bytes."""

    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes for the connection exactly as given, head included, one write for each piece.

    ``pieces`` may be without end: sending stops when the client goes away. ``pause`` is the time in seconds
    before every piece but the first.
    """

    pieces: Iterable[bytes]
    ending: Ending = Ending.CLOSE
    pause: float = 0.0
    accepts: bool = False


Answer = Scripted | Drop | Hang | Raw
