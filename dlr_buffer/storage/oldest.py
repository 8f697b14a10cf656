"""Since when each account's oldest waiting message waits: a slow walk, for `status`.

No index can tell it (one would have to change with every report), so it is looked for in small steps, and
what is found is looked at again by its key alone.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, select

from dlr_buffer.storage import schema

WINDOW: Final = 5_000
"""Messages looked at by one query."""
WINDOWS_PER_STEP: Final = 20

_M = schema.messages.c
_ONE = select(_M.state, _M.registered_at).where(_M.id == bindparam("id"))
_WINDOW = (
    select(_M.id, _M.state, _M.registered_at, _M.account_id)
    .where(_M.id >= bindparam("start"))
    .order_by(_M.id)
    .limit(WINDOW)
)


class OldestWaiting:
    """Remembers where each account's oldest waiting message is.

    Messages only ever become final and new ones get higher numbers, so each account's mark only moves on: to
    its oldest waiting message, or past what was looked at.
    """

    def __init__(self) -> None:
        """Know of none."""
        self.found: dict[int, int] = {}
        """By account id, when its oldest waiting message was registered; wall milliseconds."""
        self._marks: dict[int, int] = {}

    def step(self, connection: Connection, accounts: set[int]) -> None:
        """Look on, for the ids of accounts that have waiting messages; a bounded number of rows."""
        for account_id in [each for each in self.found if each not in accounts]:
            del self.found[account_id]
        missing = {each for each in accounts if not self._still_waiting(connection, each)}
        for _ in range(WINDOWS_PER_STEP):
            if not missing:
                return
            start = min(self._marks.get(each, 0) for each in missing)
            rows = connection.execute(_WINDOW, {"start": start}).all()
            if not rows:
                return
            for row in rows:
                account_id = row.account_id
                mark = self._marks.get(account_id, 0)
                if account_id in missing and row.id >= mark and row.state < schema.FIRST_FINAL:
                    self._marks[account_id], self.found[account_id] = row.id, row.registered_at
                    missing.discard(account_id)
            for account_id in missing:
                self._marks[account_id] = max(self._marks.get(account_id, 0), rows[-1].id + 1)

    def _still_waiting(self, connection: Connection, account_id: int) -> bool:
        if account_id not in self.found:
            return False
        row = connection.execute(_ONE, {"id": self._marks[account_id]}).first()
        if row is not None and row.state < schema.FIRST_FINAL:
            return True
        del self.found[account_id]
        return False
