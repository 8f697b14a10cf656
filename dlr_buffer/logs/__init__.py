"""The program's log: what a line is about, how lines look, and where they go.

``events`` names the important kinds of lines and the facts that a line may carry, ``sparing`` bounds what keeps
happening, ``formats`` writes a record as text, as JSON or as fields of the journal, ``output`` puts it out without ever
holding up or ending the daemon. Nothing here decides what is worth a line: that is said where it happens.
"""

from dlr_buffer.logs.events import AUDIT, NOTICE, Event, about, place_of
from dlr_buffer.logs.output import JOURNAL_SOCKET, Log, LogFormat, set_level
from dlr_buffer.logs.sparing import Sparing

__all__ = [
    "AUDIT",
    "JOURNAL_SOCKET",
    "NOTICE",
    "Event",
    "Log",
    "LogFormat",
    "Sparing",
    "about",
    "place_of",
    "set_level",
]
