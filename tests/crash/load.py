"""The load of the crash tests: apps that register and report, and an admin, each a thread with one connection.

Each tells the oracle what it is about to ask and what it was answered, and ends when the daemon is gone. What got no
answer is asked again from the next daemon, as an app should, while nobody can have forgotten the message.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from dlr_buffer.client import ApiError, Client, DaemonUnreachable
from tests.acceptance.harness import PATIENCE_S, Site
from tests.crash.known import Shown
from tests.crash.oracle import Oracle
from tests.crash.upstream import POISON, now_ms

ACCOUNTS: Final = ("default", "second")
SINGLES: Final = 3
LIVES_AT_ONCE: Final = 25
REPEAT_WITHIN_MS: Final = 5_000
"""Much less than retention: later the message may be gone, and asked for again it would be a new one."""

LIVES: Final[tuple[tuple[str, ...], ...]] = (
    ("enroute", "delivered"),
    ("enroute", "delivered"),
    ("accepted", "enroute", "delivered"),
    ("delivered",),
    ("undeliverable",),
    ("enroute", "unknown", "enroute", "rejected"),
    ("enroute", "enroute", "delivered", "delivered"),
    ("delivered", "enroute"),
    ("delivered", "rejected"),
    ("enroute",),
    (),
)
"""What apps report of a message: in order, too late, twice, contradictory, or nothing more until it expires."""


class Stopped(Exception):
    """The daemon is gone, or says that it is going."""


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """What may be asked again."""

    account: str
    items: tuple[tuple[str, str | int | None], ...]
    report: bool
    since_ms: int


@dataclass(slots=True)
class Memory:
    """What outlives one daemon: what is to be asked again, and what messages an admin might pick."""

    unanswered: list[_Unanswered] = field(default_factory=list)
    recent: list[tuple[str, str]] = field(default_factory=list)

    def note(self, account: str, message_ids: Sequence[str]) -> None:
        """Remember a few recent names."""
        self.recent += [(account, each) for each in message_ids]
        del self.recent[:-300]


class Load:
    """All clients of one run of the daemon; `stop` joins them and raises what one of them fell over."""

    def __init__(self, site: Site, oracle: Oracle, memory: Memory, *, run: int, seed: str) -> None:
        """Start them."""
        self._site = site
        self._oracle = oracle
        self._memory = memory
        self._run = run
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        works: list[tuple[str, Callable[[Random, str], None]]] = [
            ("bulk", self._bulk),
            ("admin", self._admin),
        ]
        works += [(f"app{number}", self._singles) for number in range(SINGLES)]
        self._threads = [
            threading.Thread(
                target=self._guarded,
                args=(work, Random(f"{seed}/{run}/{name}"), name),
                name=name,
                daemon=True,
            )
            for name, work in works
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask nothing more and wait until all have ended."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if any(thread.is_alive() for thread in self._threads):
            raise AssertionError("a client still waits for an answer of a daemon that is gone")
        if self._failures:
            raise self._failures[0]

    def _guarded(self, work: Callable[[Random, str], None], rng: Random, name: str) -> None:
        try:
            work(rng, name)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`, in the campaign's thread
            self._failures.append(error)

    # Apps

    def _singles(self, rng: Random, name: str) -> None:
        with self._site.client() as app:
            if name == "app0":
                self._repeat(app)
            number = 0
            under_way: list[tuple[str, str, list[str]]] = []
            while not self._stopping.is_set():
                # Many lives at once, so that between two states of one there is time for the first to be sent.
                if len(under_way) < LIVES_AT_ONCE or rng.random() < 0.1:
                    number += 1
                    message_id = f"{self._run}-{name}-{number}" + (POISON if rng.random() < 0.01 else "")
                    account = rng.choice(ACCOUNTS)
                    self._memory.note(account, [message_id])
                    if rng.random() < 0.8:
                        self._register(app, account, message_id, rng.choice((None, 1, 2, 3)))
                    under_way.append((account, message_id, list(rng.choice(LIVES))))
                account, message_id, states = life = rng.choice(under_way)
                if states:
                    self._report(app, account, message_id, states.pop(0))
                if not states:
                    under_way.remove(life)

    def _register(self, app: Client, account: str, message_id: str, validity: int | None) -> None:
        self._oracle.asks_to_register(account, [(message_id, validity and validity * 1000)], at_ms=now_ms())
        try:
            answer = app.register(message_id, account, validity)
        except (DaemonUnreachable, ApiError) as error:
            self._broke_off(error, account, [(message_id, validity)], report=False)
            return
        self._oracle.registered(
            account,
            {message_id: _milliseconds(answer["expires_at"])},
            validity_ms=validity and validity * 1000,
            at_ms=now_ms(),
        )

    def _report(self, app: Client, account: str, message_id: str, state: str) -> None:
        self._oracle.asks_to_report(account, [(message_id, state)], at_ms=now_ms())
        try:
            answer = app.report(message_id, state, account)
        except (DaemonUnreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.code == "message-final":
                self._oracle.conflicted(account, message_id, state, at_ms=now_ms())
                return
            self._broke_off(error, account, [(message_id, state)], report=True)
            return
        # Where the state was known already, the answer may show the message or a receipt of it.
        known = answer.get("message_state") == state
        request_id = int(answer["request_id"]) if known else None
        self._oracle.reported(account, message_id, state, request_id, at_ms=now_ms())

    def _bulk(self, rng: Random, _name: str) -> None:
        with self._site.client() as app:
            number = 0
            later: list[tuple[str, list[tuple[str, str]]]] = []
            while not self._stopping.wait(rng.uniform(0, 0.1)):
                number += 1
                account = rng.choice(ACCOUNTS)
                ids = [
                    f"{self._run}-bulk{number}-{each}" + (POISON if rng.random() < 0.002 else "")
                    for each in range(rng.choice((20, 50, 150)))
                ]
                self._memory.note(account, rng.sample(ids, 5))
                if rng.random() < 0.8:
                    validity = rng.choice((None, 1, 3))
                    self._register_many(app, account, ids, validity, array=rng.random() < 0.5)
                # A life each, dealt out over two requests.
                lives = {each: rng.choice(LIVES) for each in ids}
                first = [(each, state) for each, states in lives.items() for state in states[:1]]
                second = [(each, state) for each, states in lives.items() for state in states[1:]]
                later.append((account, second))
                self._report_many(app, account, first, array=rng.random() < 0.5)
                if len(later) > 1:
                    self._report_many(app, *later.pop(0), array=rng.random() < 0.5)

    def _register_many(
        self, app: Client, account: str, ids: Sequence[str], validity: int | None, *, array: bool
    ) -> None:
        self._oracle.asks_to_register(
            account, [(each, validity and validity * 1000) for each in ids], at_ms=now_ms()
        )
        fields = {"account": account} | ({} if validity is None else {"validity_period": validity})
        # A bad item must not hurt its neighbours.
        items = [*({"message_id": each, **fields} for each in ids), {"message_id": "", **fields}]
        try:
            errors = _many(app, "/v1/messages", items, array=array)
        except (DaemonUnreachable, ApiError) as error:
            self._broke_off(error, account, [(each, validity) for each in ids], report=False)
        if [index for index, _ in errors] != [len(ids)]:
            raise AssertionError(f"registering in bulk: unexpected errors {errors}")
        self._oracle.registered(
            account, dict.fromkeys(ids), validity_ms=validity and validity * 1000, at_ms=now_ms()
        )

    def _report_many(
        self, app: Client, account: str, reports: Sequence[tuple[str, str]], *, array: bool
    ) -> None:
        if not reports:
            return
        self._oracle.asks_to_report(account, reports, at_ms=now_ms())
        items = [{"message_id": each, "message_state": state, "account": account} for each, state in reports]
        try:
            errors = dict(_many(app, "/v1/receipts", items, array=array))
        except (DaemonUnreachable, ApiError) as error:
            self._broke_off(error, account, reports, report=True)
        for index, (message_id, state) in enumerate(reports):
            match errors.get(index):
                case None:
                    self._oracle.reported(account, message_id, state, at_ms=now_ms())
                case "message-final":
                    self._oracle.conflicted(account, message_id, state, at_ms=now_ms())
                case code:
                    raise AssertionError(f"reporting {message_id} {state} in bulk: {code}")

    def _repeat(self, app: Client) -> None:
        """Ask again what the daemon before did not answer."""
        todo, self._memory.unanswered = self._memory.unanswered, []
        for each in todo:
            for message_id, value in each.items:
                if now_ms() - each.since_ms > REPEAT_WITHIN_MS:
                    break
                if each.report:
                    self._report(app, each.account, message_id, str(value))
                else:
                    self._register(app, each.account, message_id, value if isinstance(value, int) else None)

    def _broke_off(
        self,
        error: DaemonUnreachable | ApiError,
        account: str,
        items: Sequence[tuple[str, str | int | None]],
        *,
        report: bool,
    ) -> None:
        """No answer, or one that says that the daemon is going: raises Stopped, or what went wrong else."""
        self._oracle.unanswered()
        if isinstance(error, ApiError) and error.status != 503:
            raise AssertionError(
                f"unexpected answer for {account} {list(items[:3])}: {error.problem}"
            ) from error
        self._memory.unanswered.append(_Unanswered(account, tuple(items), report, now_ms()))
        raise Stopped

    # The admin

    def _admin(self, rng: Random, _name: str) -> None:
        acts: list[tuple[int, Callable[[Client, Random], None]]] = [
            (4, self._hold_some),
            (1, self._hold_many),
            (6, self._release),
            (3, self._retry),
            (3, self._delete_receipts),
            (1, self._delete_messages),
            (2, self._expire),
            (2, self._pause),
            (3, self._resume),
        ]
        chances, choices = [chance for chance, _ in acts], [act for _, act in acts]
        with self._site.admin() as admin:
            while not self._stopping.wait(rng.uniform(0, 0.08)):
                (act,) = rng.choices(choices, chances)
                try:
                    act(admin, rng)
                except DaemonUnreachable:
                    self._oracle.unanswered()
                    raise Stopped from None
                except ApiError as error:
                    if error.status != 503:
                        raise
                    raise Stopped from None

    def _page(self, admin: Client, narrowing: str, limit: int) -> list[Shown]:
        items = admin.request("GET", f"/v1/receipts?limit={limit}&{narrowing}")["items"]
        return [
            Shown(int(each["request_id"]), each["account"], each["message_id"], each["message_state"])
            for each in items
        ]

    def _hold_some(self, admin: Client, rng: Random) -> None:
        some = self._page(admin, f"status=pending&account={rng.choice(ACCOUNTS)}", 30)
        self._oracle.asks_to_hold()
        _steer(admin, "hold", some)
        self._oracle.shows_held(self._page(admin, "status=held", 300))

    def _hold_many(self, admin: Client, _rng: Random) -> None:
        self._oracle.asks_to_hold()
        admin.request("POST", "/v1/receipts/hold", {"filter": {"status": "pending"}})
        self._oracle.shows_held(self._page(admin, "status=held", 300))

    def _release(self, admin: Client, _rng: Random) -> None:
        self._oracle.asks_to_release()
        admin.request("POST", "/v1/receipts/release", {"filter": {"status": "held"}})
        self._oracle.released()

    def _retry(self, admin: Client, rng: Random) -> None:
        if rng.random() < 0.3:
            admin.request("POST", "/v1/receipts/retry", {"filter": {"status": "pending"}})
            return
        some = self._page(admin, "status=dead", 20)
        before = self._oracle.asks_to_retry(some)
        if _steer(admin, "retry", some):
            self._oracle.retried(before)

    def _delete_receipts(self, admin: Client, rng: Random) -> None:
        doomed = self._page(admin, "status=dead", 20)
        doomed += self._page(admin, f"status={rng.choice(('pending', 'held'))}", 5)
        self._oracle.asks_to_delete_receipts(doomed)
        if _steer(admin, "delete", doomed):
            self._oracle.deleted_receipts(doomed)

    def _delete_messages(self, admin: Client, rng: Random) -> None:
        account, ids = self._pick(rng, 12)
        deletion = self._oracle.asks_to_delete(account, ids)
        answer = admin.request("POST", "/v1/messages/delete", {"account": account, "message_ids": ids})
        for message_id in ids:
            found = True
            try:
                admin.message(message_id, account)
            except ApiError as error:
                if error.code != "not-found":
                    raise
                found = False
            self._oracle.deleted(deletion, message_id, found=found, in_flight=answer["in_flight"])

    def _expire(self, admin: Client, rng: Random) -> None:
        account, ids = self._pick(rng, 12)
        there = self._oracle.asks_to_expire(account, ids)
        admin.request("POST", "/v1/messages/expire", {"account": account, "message_ids": ids})
        self._oracle.expired(account, ids, there)

    def _pick(self, rng: Random, count: int) -> tuple[str, list[str]]:
        account = rng.choice(ACCOUNTS)
        names = [message_id for name, message_id in list(self._memory.recent) if name == account]
        return account, rng.sample(names, min(count, len(names)))

    def _pause(self, admin: Client, rng: Random) -> None:
        self._set_paused(admin, rng.choice(ACCOUNTS), paused=True)

    def _resume(self, admin: Client, rng: Random) -> None:
        for account in ACCOUNTS:
            self._set_paused(admin, account, paused=False)

    def _set_paused(self, admin: Client, account: str, *, paused: bool) -> None:
        self._oracle.asks_to_pause(account)
        admin.request("POST", f"/v1/accounts/{account}/{'pause' if paused else 'resume'}")
        self._oracle.paused(account, paused=paused)


def _steer(admin: Client, action: str, receipts: Sequence[Shown]) -> bool:
    """Act on receipts by id; returns whether the answer says that all of them were changed."""
    if not receipts:
        return True
    ids = [str(each.request_id) for each in receipts]
    changed: int = admin.request("POST", f"/v1/receipts/{action}", {"request_ids": ids})["changed"]
    return changed == len(receipts)


def _milliseconds(time: str) -> int:
    """What a time of the API is since 1970."""
    since = dt.datetime.fromisoformat(time) - dt.datetime.fromtimestamp(0, dt.UTC)
    return since // dt.timedelta(milliseconds=1)


def _many(app: Client, path: str, items: Sequence[dict[str, Any]], *, array: bool) -> list[tuple[int, str]]:
    """Send many as a JSON array, or else as NDJSON; returns the errors by index."""
    if array:
        answer = app.request("POST", path, list(items))
        return [(each["index"], each["code"]) for each in answer["errors"]]
    store = app.register_many if path == "/v1/messages" else app.report_many
    return [(each.index, each.code) for each in store(items).errors]
