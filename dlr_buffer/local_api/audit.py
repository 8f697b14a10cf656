"""The audit line: who did what on the admin socket, to which rows, and how many changed.

One line in the log for an action, whatever it takes; each receipt that it changed has the same name of the admin in its
history. An action that deletes leaves no history: its line names every id that was named to it, in further lines if
need be, and is announced before the first row goes, for the case that the daemon is killed in the middle.
"""

from __future__ import annotations

import asyncio
import logging
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from dlr_buffer.local_api.peers import NOBODY, UNSEEN, Peer, printable, program_of
from dlr_buffer.logs import AUDIT, NOTICE, Event, about
from dlr_buffer.selection import ActionCount

_MOST_CHARACTERS: Final = 8000
"""Of the ids in one line; a line of the log may be twice as long."""

_MOST_PROGRAM_CHARACTERS: Final = 64

_log = logging.getLogger(AUDIT)


@dataclass(frozen=True, slots=True)
class Admin:
    """Who acts: a process, its user's name, and the name of its program."""

    peer: Peer
    user: str
    program: str

    def __str__(self) -> str:
        """As history and log name an admin."""
        return f"{self.user} (uid {self.peer.uid}, process {self.peer.pid}, {self.program})"


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to what; ``selections`` has the ids in as many parts as lines are needed, or the filter."""

    action: str
    selections: tuple[str, ...] = ()
    account: str | None = None
    announced: bool = False
    """Whether a line is written before it begins."""


def named(noun: str, ids: Sequence[str], *, every: bool) -> tuple[str, ...]:
    """Word a selection by ids, as a part for each line; unless ``every`` id is needed, one part with the first ones."""
    parts: list[str] = []
    part: list[str] = []
    length = 0
    for each in ids:
        if part and length + len(each) > _MOST_CHARACTERS:
            parts.append(" ".join(part))
            part, length = [], 0
            if not every:
                break
        part.append(each)
        length += len(each) + 1
    if part:
        parts.append(" ".join(part))
    number = f"{len(ids)} {noun}{'' if len(ids) == 1 else 's'}"
    return tuple(f"{number}: {text}" for text in parts) or (number,)


def peer_in(scope: Scope) -> Peer:
    """Who sent this request."""
    peer = scope.get("state", {}).get("peer", NOBODY)
    return peer if isinstance(peer, Peer) else NOBODY


async def admin_in(scope: Scope) -> Admin:
    """Who sent this request, with the names of user and program as they are now."""
    peer = peer_in(scope)
    # A directory service may take its time.
    user = await asyncio.to_thread(_user_name, peer.uid)
    program = program_of(peer.pid)
    return Admin(peer, user, _agent(scope) if program == UNSEEN else program)


def begins(admin: Admin, deed: Deed) -> None:
    """Write down that something is about to be done, if that is to be announced."""
    if deed.announced:
        _write(admin, deed, f"{admin} begins: {_words(deed)}", None)


def done(admin: Admin, deed: Deed, count: ActionCount | None = None) -> None:
    """Write down what was done; ``count`` is of rows."""
    _write(admin, deed, f"{admin}: {_words(deed)}{_counted(count)}", count)


def failed(admin: Admin, deed: Deed, error: BaseException, count: ActionCount | None = None) -> None:
    """Write down that something was not done, or not to the end."""
    why = (
        "the daemon stops"
        if isinstance(error, asyncio.CancelledError)
        else str(error) or type(error).__name__
    )
    _write(admin, deed, f"{admin}: {_words(deed)}{_counted(count)}; then it failed: {why}", count)


def _write(admin: Admin, deed: Deed, text: str, count: ActionCount | None) -> None:
    first, *more = deed.selections or (None,)
    _say(admin, deed, text, first, count)
    for part in more:
        _say(admin, deed, f"{admin}: {deed.action}, further ids: {part}", part, None)


def _say(admin: Admin, deed: Deed, text: str, selection: str | None, count: ActionCount | None) -> None:
    facts = about(
        Event.ADMIN_ACTION,
        action=deed.action,
        account=deed.account,
        selection=selection,
        peer_uid=admin.peer.uid,
        peer_user=admin.user,
        peer_pid=admin.peer.pid,
        peer_program=admin.program,
        changed=None if count is None else count.changed,
        skipped=None if count is None else count.skipped,
        in_flight=None if count is None else count.in_flight,
    )
    _log.log(NOTICE, "%s", text, extra=facts)


def _words(deed: Deed) -> str:
    return f"{deed.action} ({deed.selections[0]})" if deed.selections else deed.action


def _counted(count: ActionCount | None) -> str:
    if count is None:
        return ""
    return f": {count.changed} changed, {count.skipped} skipped, {count.in_flight} left alone in flight"


def _agent(scope: Scope) -> str:
    """What the request calls its program (User-Agent): all there is where the service is kept from seeing processes."""
    agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
    words: list[str] = agent.decode("latin-1").split()
    return printable(words[0][:_MOST_PROGRAM_CHARACTERS]) if words else UNSEEN


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError, ValueError):
        return "nobody known"
