"""The client library: registers messages and reports their states over the daemon's Unix socket.

For apps written in Python, and for the command line and the demo, which use the same calls. It needs the
standard library only (tenacity is imported once something has to be tried again), and speaks nothing but the
HTTP of DESIGN §5; it never opens the queue's database.

with Client("/run/dlr-buffer/client.sock") as client: client.register("1561370632513")
client.report("1561370632513", "delivered")
"""

from __future__ import annotations

import errno as errnos
import http.client
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from dlr_buffer import __version__
from dlr_buffer.errors import DlrBufferError

if TYPE_CHECKING:
    from tenacity import RetryCallState

CHUNK_ITEMS = 1000
"""Items per bulk request; the daemon commits as many at once."""
CHUNK_BYTES = 4 * 1024 * 1024
"""A bulk request is closed at this size even with fewer items; the daemon takes 16 MiB."""
_NDJSON = "application/x-ndjson"
_SERVICE_UNAVAILABLE = 503
_LONGEST_WAIT_S = 30.0


class DaemonUnreachable(DlrBufferError):
    """No answer came from the daemon at ``socket``.

    ``reason`` says why in words, ``errno`` is the operating system's number (None if the connection broke off
    or the time was over), and ``request_sent`` tells that the daemon may have acted on the request.
    """

    def __init__(
        self, socket_path: Path, reason: str, *, errno: int | None = None, request_sent: bool = False
    ) -> None:
        """Remember where the daemon was looked for and why it did not answer."""
        self.socket = socket_path
        self.reason = reason
        self.errno = errno
        self.request_sent = request_sent
        super().__init__(f"no daemon answers at {socket_path}: {reason}")


class ApiError(DlrBufferError):
    """The daemon answered with a problem (RFC 9457).

    ``status`` is the HTTP status, ``code`` DESIGN §5's word for it, ``detail`` a sentence, ``problem`` the
    whole document, ``retry_after_s`` the Retry-After in seconds or None.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        problem: Mapping[str, Any],
        retry_after_s: float | None = None,
    ) -> None:
        """Remember the facts of the problem."""
        self.status = status
        self.code = code
        self.detail = detail
        self.problem = problem
        self.retry_after_s = retry_after_s
        super().__init__(f"{detail} ({code})")


@dataclass(frozen=True, slots=True)
class ItemError:
    """One item of a bulk request that was not taken.

    ``index`` counts from 0 over everything that was given.
    """

    index: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class BulkSummary:
    """What became of many registrations or reports.

    ``stored`` were registered (or queued) now, ``duplicates`` said what the queue knew already, ``errors``
    were not taken. An item stored by an attempt whose answer was lost counts as a duplicate.
    """

    stored: int
    duplicates: int
    errors: tuple[ItemError, ...]


class Client:
    """A connection to the daemon, kept alive between calls and made anew when the daemon restarts.

    Not for several threads at once: give each its own. Usable as a context manager.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        *,
        timeout_s: float | None = 60.0,
        retry_for_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect to ``socket_path`` at the first call.

        ``timeout_s`` bounds each wait for the daemon (None: for ever). Registering and reporting are tried
        again for ``retry_for_s`` seconds (0: never) when the daemon is away or says 503; both are idempotent.
        Any other call is tried again only if the daemon cannot have seen it. ``sleep`` waits between tries,
        in seconds.
        """
        self.socket_path = Path(socket_path)
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._sleep = sleep
        self._connection = _UnixConnection(self.socket_path, timeout_s)
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        """Return itself; the connection is made at the first call."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; a later call makes a new one."""
        self._connection.close()

    def connect(self) -> None:
        """Connect now unless connected; raises DaemonUnreachable without trying again."""
        if self._pid != os.getpid():  # a forked child must not write into its parent's connection
            self._connection = _UnixConnection(self.socket_path, self._timeout_s)
            self._pid = os.getpid()
        if self._connection.sock is not None:
            if not _readable(self._connection.sock):
                return
            self._connection.close()  # the daemon closed it while it was idle
        try:
            self._connection.connect()
        except OSError as error:
            self._connection.close()
            raise DaemonUnreachable(self.socket_path, _connect_reason(error), errno=error.errno) from None

    def register(
        self, message_id: str, account: str | None = None, validity_period: int | None = None
    ) -> dict[str, Any]:
        """Register one message and return its resource (DESIGN §5); when this returns, it is durable.

        ``account`` may be left out if there is only one or one is called ``default``; ``validity_period`` is
        in whole seconds. Raises ApiError (409 if it is registered with another validity period) or
        DaemonUnreachable.
        """
        item = _without_none(message_id=message_id, account=account, validity_period=validity_period)
        return self._store_one("/v1/messages", item)

    def report(self, message_id: str, message_state: str, account: str | None = None) -> dict[str, Any]:
        """Report that a message is in ``message_state`` (one of the seed's seven words); durable on return.

        Returns the receipt, or what the queue knows if that state was known already. Raises ApiError (409
        after another final state) or DaemonUnreachable.
        """
        item = _without_none(message_id=message_id, message_state=str(message_state), account=account)
        return self._store_one("/v1/receipts", item)

    def register_many(self, items: Iterable[Mapping[str, Any] | str]) -> BulkSummary:
        """Register any number of messages, an id or an object of DESIGN §5's fields each, in constant memory.

        They are sent in chunks of 1,000, in order. Bad items are in the summary and do not stop the others.
        Raises ApiError or DaemonUnreachable if the daemon is lost in the middle; then do it again: what is
        registered already counts as a duplicate.
        """
        return self._store_many("/v1/messages", "registered", map(_registration, items))

    def report_many(self, items: Iterable[Mapping[str, Any] | tuple[str, str]]) -> BulkSummary:
        """Report any number of states, ``(message_id, message_state)`` or an object each.

        As `register_many`.
        """
        return self._store_many("/v1/receipts", "queued", map(_report, items))

    def message(self, message_id: str, account: str | None = None) -> dict[str, Any]:
        """Return one message with its receipts and their history.

        Raises ApiError (404) or DaemonUnreachable.
        """
        if not message_id:
            raise ValueError("message_id is empty")
        # A broken surrogate pair is passed on: the daemon says what is wrong with it.
        target = "/v1/messages/" + quote(message_id, safe="", errors="surrogatepass")
        if account is not None:
            target += "?" + urlencode({"account": account})
        answer: dict[str, Any] = self.request("GET", target)
        return answer

    def request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Send any request of DESIGN §5 and return the decoded JSON answer (text if it is not JSON).

        ``path`` is a request target, percent-encoded by the caller; ``body`` is sent as JSON unless it is
        None. GET is tried again like registering; everything else only if the daemon cannot have seen it.
        """
        encoded = None if body is None else json.dumps(body).encode()
        return self._send(method, path, encoded, "application/json", repeatable=method == "GET")

    def _store_one(self, path: str, item: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(
            "POST", path, json.dumps(item).encode(), "application/json", repeatable=True
        )
        return answer

    def _store_many(self, path: str, stored_key: str, items: Iterable[Mapping[str, Any]]) -> BulkSummary:
        stored = duplicates = start = 0
        errors: list[ItemError] = []
        for lines in _chunks(items):
            # NDJSON rather than an array: a line that is not JSON to the daemon fails alone.
            answer = self._send("POST", path, b"\n".join(lines), _NDJSON, repeatable=True)
            stored += answer[stored_key]
            duplicates += answer["duplicates"]
            errors.extend(
                ItemError(start + item["index"], item["code"], item["detail"]) for item in answer["errors"]
            )
            start += len(lines)
        return BulkSummary(stored, duplicates, tuple(errors))

    def _send(
        self, method: str, path: str, body: bytes | None, content_type: str, *, repeatable: bool
    ) -> Any:  # noqa: ANN401 - JSON
        try:
            return self._exchange(method, path, body, content_type)
        except (DaemonUnreachable, ApiError) as error:
            if self._retry_for_s <= 0 or not _worth_repeating(error, repeatable=repeatable):
                raise
            failure: DaemonUnreachable | ApiError | None = error

        from tenacity import (  # costs more than a call, and is seldom needed
            Retrying,
            retry_if_exception,
            stop_before_delay,
            wait_random_exponential,
        )

        jitter = wait_random_exponential(multiplier=0.1, max=2)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after_s if isinstance(error, ApiError) else None
            return min(asked or 0.0, _LONGEST_WAIT_S) + jitter(state)

        def attempt() -> Any:  # noqa: ANN401 - JSON
            nonlocal failure
            if failure is not None:  # the first try is behind us: wait as its answer says
                first, failure = failure, None
                raise first
            return self._exchange(method, path, body, content_type)

        return Retrying(
            retry=retry_if_exception(lambda error: _worth_repeating(error, repeatable=repeatable)),
            wait=wait,
            stop=stop_before_delay(self._retry_for_s),
            sleep=self._sleep,
            reraise=True,
        )(attempt)

    def _exchange(self, method: str, path: str, body: bytes | None, content_type: str) -> Any:  # noqa: ANN401 - JSON
        self.connect()
        # Where the daemon may not see other processes, this is how it names who did something.
        headers = {"User-Agent": _USER_AGENT} | ({} if body is None else {"Content-Type": content_type})
        sent = True
        try:
            try:
                self._connection.request(method, path, body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError):
                # The daemon hung up before it had the whole request, so it did not act on it; it may have
                # said why.
                sent = False
            response = self._connection.getresponse()
            content = _whole_body(response)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise DaemonUnreachable(
                self.socket_path, _broken_reason(error, self._timeout_s), request_sent=sent
            ) from None
        except BaseException:  # interrupted in the middle: the next answer on this connection is not ours
            self._connection.close()
            raise
        return _decoded(response, content)


_USER_AGENT = f"dlr-buffer/{__version__}"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, socket_path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = socket_path

    def connect(self) -> None:
        """Open the socket; raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _readable(sock: socket.socket) -> bool:
    """Whether an idle connection has something to read: its end, or an answer that nobody asked for."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def _connect_reason(error: OSError) -> str:
    match error.errno:
        case errnos.ENOENT:
            return "there is no such socket"
        case errnos.ECONNREFUSED:
            return "the connection was refused"
        case errnos.EACCES | errnos.EPERM:
            return "permission denied"
        case errnos.EAGAIN:
            return "too many connections wait there already"
        case _:
            return error.strerror or str(error)


def _broken_reason(error: Exception, timeout_s: float | None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, ConnectionError | http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection broke off before the answer was complete"
    return f"what answered is not HTTP ({type(error).__name__})"


def _worth_repeating(error: BaseException, *, repeatable: bool) -> bool:
    if isinstance(error, ApiError):
        return repeatable and error.status == _SERVICE_UNAVAILABLE and error.retry_after_s is not None
    if isinstance(error, DaemonUnreachable):
        if error.errno in (errnos.EACCES, errnos.EPERM, errnos.ENAMETOOLONG):
            return False
        return repeatable or not error.request_sent
    return False


def _whole_body(response: http.client.HTTPResponse) -> bytes:
    """Read the body; raises IncompleteRead if anything of the answer is missing."""
    if response.length is None and not response.chunked:
        # Headers that were cut off pass for complete ones in http.client; the daemon always sends a length.
        raise http.client.IncompleteRead(b"")
    return response.read()


def _decoded(response: http.client.HTTPResponse, content: bytes) -> Any:  # noqa: ANN401 - JSON
    value: Any
    try:
        value = json.loads(content) if content else None
    except ValueError:
        value = content.decode(errors="replace")
    if response.status < http.client.BAD_REQUEST:
        return value
    problem = value if isinstance(value, dict) else {}
    retry_after = response.getheader("Retry-After", "")
    raise ApiError(
        response.status,
        str(problem.get("code", f"http-{response.status}")),
        str(problem.get("detail") or problem.get("title") or response.reason),
        problem,
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )


def _without_none(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _registration(item: Mapping[str, Any] | str) -> Mapping[str, Any]:
    return {"message_id": item} if isinstance(item, str) else item


def _report(item: Mapping[str, Any] | tuple[str, str]) -> Mapping[str, Any]:
    return {"message_id": item[0], "message_state": str(item[1])} if isinstance(item, tuple) else item


def _chunks(items: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for item in items:
        line = json.dumps(item).encode()
        if lines and (len(lines) == CHUNK_ITEMS or size + len(line) > CHUNK_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield lines
