"""The one family of errors that crosses module borders.

Each error carries its facts as attributes; the text is made from them and says what to do. Foreign exceptions
(SQLAlchemy's, httpx's) are translated into these at the edge where they occur, once. No HTTP status and no
exit code lives here: the local API and the command line choose those.
"""

from __future__ import annotations


class DlrBufferError(Exception):
    """Root of every error this program raises on purpose; its text never holds a credential."""


class InvalidItem(DlrBufferError):
    """A request is well formed, but a field of it is not allowed (`invalid`, 422)."""


class UnknownAccount(DlrBufferError):
    """No account of that name can be meant (`unknown-account`, 422).

    ``account`` is the name asked for, or None if it was left out and none stands out.
    """

    def __init__(self, account: str | None, known: tuple[str, ...]) -> None:
        """Remember what was asked and which names would have been understood."""
        self.account = account
        self.known = known
        names = ", ".join(known) or "none"
        if account is None:
            text = f"name an account: there are several and none is called 'default' (configured: {names})"
        else:
            text = f"no account is called {account!r} (configured: {names})"
        super().__init__(text)


class NotFound(DlrBufferError):
    """What was asked for is not in the queue (`not-found`, 404)."""


class MessageFinal(DlrBufferError):
    """Another final state was reported first, and the first one wins (`message-final`, 409)."""

    def __init__(self, state: str) -> None:
        """Remember the final ``state`` that the message already has."""
        self.state = state
        super().__init__(f"the message is final already: it is {state}, and the first final state wins")


class Conflict(DlrBufferError):
    """The request contradicts what the queue already knows (`conflict`, 409)."""


class Overloaded(DlrBufferError):
    """Too much waits already; nothing was stored (`overloaded`, 503)."""

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        """Remember after how many whole seconds trying again makes sense."""
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class StorageFull(DlrBufferError):
    """The disk has no room; nothing was stored (`storage-full`, 507)."""

    def __init__(self, detail: str, retry_after_s: int = 30) -> None:
        """Remember after how many whole seconds trying again makes sense."""
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class StoreUnavailable(DlrBufferError):
    """The database could not be opened, read or written; nothing was stored.

    ``fatal`` says that going on would be dishonest (an I/O error, a corrupt file): the daemon ends, for
    systemd to start it anew.
    """

    def __init__(self, detail: str, *, fatal: bool = False) -> None:
        """Remember whether the daemon has to end."""
        self.fatal = fatal
        super().__init__(detail)
