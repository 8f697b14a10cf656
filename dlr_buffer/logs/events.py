"""What a line of the log can be about: the important kinds of lines, and the facts beside the text.

Kinds have a fixed id, the journal's ``MESSAGE_ID=``, that programs may rely on: an id never changes its meaning, and
none is used again. docs/logging.md lists them.
"""

from __future__ import annotations

import logging
import traceback
from enum import Enum
from typing import Final, TypedDict, Unpack

NOTICE: Final = 25
"""Between info and warning, as syslog has it: nothing is wrong, but somebody will ask for it one day."""
logging.addLevelName(NOTICE, "NOTICE")

AUDIT: Final = "dlr_buffer.audit"
"""The logger of what admins did; it speaks at every level."""


class Event(Enum):
    """The important kinds of lines: id for the journal, and what it means."""

    STARTED = "539995bb889e4c4386e30e4872725d43", "the daemon serves"
    STOPPED = "54e8c3570a6440508ed4caf5d1d69f30", "the daemon has stopped in order"
    START_FAILED = "71ad34ea81ea488f902fdfa485e72d20", "the daemon could not start"
    RELOADED = "11a81c34cc7841c386dca5f86ac7eda7", "the configuration was read again and holds"
    RELOAD_REFUSED = (
        "6080b38f556b436da66dcb16422fb476",
        "the configuration could not be used; the old one stays",
    )
    RESTART_NEEDED = "1494470615264d7f86d6dbb25a1c23ed", "a reload found changes that wait for a restart"
    DATABASE_FAILED = "63a6f3cd3a0d4e9d835205a57bf9ed6a", "the database failed for good, and the daemon ends"
    DATABASE_SAVED = (
        "95069d1f8f4a45a1a803a69620461ad6",
        "what became of a database that was replaced under the daemon",
    )
    COMMIT_FAILED = "97c27855e32c4474b1d164382fb43d30", "the database refused a transaction"
    COMMITS_SUCCEED = "752f813c0715446eb91c8a3ea11232a3", "the database takes transactions again"
    LAST_RUN_BROKE_OFF = "b673e1b60dd343f1b33e2c46698a84d1", "the last run did not close the queue"
    QUEUE_RESTORED = "95139222f10049d0b041421eca9d2098", "the queue is older than the last run's: a backup"
    QUEUE_TOUCHED = "c1b27f6c5e7442998b1afca2fc475356", "another program wrote to the queue"
    REGISTRATION_STOPPED = "168ffc04ec194203957c1eb094dda136", "the disk is nearly full: apps get 507"
    REGISTRATION_RESUMED = "3dd42c4b3e5042dabc62006bb6823b36", "the disk has room again"
    ACCOUNT_FULL = "9503a509726546399b3d7948d9af4107", "an account has max_waiting messages: apps get 503"
    ADMIN_ACTION = "a6dca8a2c97c4fd29ca131a2b3885a7a", "what an admin did (the audit line)"
    PEER_REFUSED = "bf0018fd3b3249e8b1db442491bf4d24", "an allow list kept somebody out"
    SOCKET_FULL = "de3acb706024405d95d53dd4d9f82fb9", "a socket has no room for more connections"
    ACCOUNT_OUTAGE = "53d018ca90344680985be1d9b6819a86", "Smartswitch gave no usable answer"
    ACCOUNT_SUSPENDED = "ca15cd2c9a4945a79f952fb41d7ffa6d", "Smartswitch refuses login or password"
    ACCOUNT_REJECTING = (
        "e23028c91ec847169bf2a13bab9be387",
        "Smartswitch refuses what nothing proves to be bad",
    )
    ACCOUNT_OPEN = "c1d89f88262c481993b0f9f6943cdbde", "an account is well again"
    ACCOUNT_UNCONFIGURED = "4ae9111a52aa4149b799dcce27a2fd25", "an account left the configuration"
    BATCH_REFUSED = "f0fd2caad20545c2834cd3d8c1f7f3e2", "a batch was refused; the bad receipt is looked for"
    BATCH_TOO_LARGE = "7ca4b7d01a8b475cbe88fad7e4cd551e", "a request was too large for the server"
    PROTOCOL_VIOLATION = "373462bdc7de487aab89b6bd361e9988", "an answer held entries that break the protocol"
    DEAD_LETTER = "7c90163ebb4d4a48a01b2b2bedc8e786", "receipts were given up"
    DEAD_LETTERS_PURGED = "3485295993d24cd0ab2e4752cda928b0", "retention removed dead letters"
    EXPIRY_STOPPED = "43b610ec69fc47a48bfae3f329e36fc8", "the clock can't be believed: nothing expires"
    EXPIRY_RESUMED = "126b65fe524845d4a3c5d5145c190660", "messages expire again"
    DEFECT = "5c6f741a08514b568f47006e00212c17", "an error that nobody foresaw; please report it"
    STALLED = (
        "deaf4fd4937f4b9996dc4183e00accaa",
        "a part of the daemon has not got on: systemd starts it anew",
    )
    LINES_LOST = "05e2d04b58d94ed5ba02951c643f9070", "lines of the log could not be written"

    def __init__(self, message_id: str, meaning: str) -> None:
        """Take the two apart."""
        self.message_id = message_id
        self.meaning = meaning

    @property
    def slug(self) -> str:
        """Its name in JSON lines, such as ``admin-action``."""
        return self.name.lower().replace("_", "-")


class Facts(TypedDict, total=False):
    """What may stand beside the text: in capitals in the journal, as written here in JSON."""

    account: str | None
    receipt: int | None
    """A receipt's request_id."""
    cause: str | None
    """Why an account is in trouble, one word; or an error code of Smartswitch."""
    error_code: str | None
    count: int | None
    socket: str | None
    peer_uid: int | None
    peer_user: str | None
    peer_pid: int | None
    peer_program: str | None
    action: str | None
    selection: str | None
    changed: int | None
    skipped: int | None
    in_flight: int | None
    keys: str | None
    path: str | None


def about(event: Event | None = None, /, **facts: Unpack[Facts]) -> dict[str, object]:
    """Say what a line is about: for ``extra=`` of a logger's methods. A fact of None is left out."""
    return {"event": event, "facts": {name: value for name, value in facts.items() if value is not None}}


def place_of(error: BaseException) -> str:
    """Say where an error happened, a line for each call; not its text, which nobody has cleared of credentials."""
    return "".join(traceback.format_tb(error.__traceback__))


def event_of(record: logging.LogRecord) -> Event | None:
    """The kind of a line; None for the others."""
    event = getattr(record, "event", None)
    return event if isinstance(event, Event) else None


def facts_of(record: logging.LogRecord) -> dict[str, str | int]:
    """The facts beside a line's text."""
    facts = getattr(record, "facts", None)
    return facts if isinstance(facts, dict) else {}
