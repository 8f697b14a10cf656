# ruff: noqa: D102, D105, D107 - the protocols say what these methods promise
"""The local API on two real Unix sockets over a Store in memory, and a client that checks every answer it gets.

Each answer is validated against what `/openapi.json` of that socket says of it.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import jsonschema  # type: ignore[import-untyped]

from dlr_buffer.errors import NotFound
from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.local_api import (
    ApiServer,
    BodyLimits,
    BodyRoom,
    DaemonFacts,
    DatabaseFacts,
    ExpiryView,
    bind,
    create_app,
)
from dlr_buffer.local_api.connections import ConnectionLimits
from dlr_buffer.local_api.openapi import openapi_document
from dlr_buffer.local_api.operations import OPERATIONS
from dlr_buffer.receipt_queue.queue import QueueSettings, ReceiptQueue
from tests.integration.local_api.memory_store import MemoryStore

NOW_MS = 1_795_459_260_250  # 2026-11-23T18:41:00.250Z
LIMITS = BodyLimits(body_bytes=200_000, bodies_bytes=300_000, items=3000, silence_s=30.0)

T = TypeVar("T")


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms

    async def sleep(self, duration_ms: int) -> None:
        self.ms += duration_ms


@dataclass
class ScriptedDaemon:
    """What the daemon would know: accounts, expiry and vitals, as the test sets them."""

    paused: set[str] = field(default_factory=set)
    names: tuple[str, ...] = ("default", "other")
    expiry: ExpiryView = field(
        default_factory=lambda: ExpiryView(
            stopped=True, reason="the clock leapt", since_ms=NOW_MS, last_sweep_at_ms=None
        )
    )
    troubles: tuple[str, ...] = ()
    configured: bool = True

    def views(self) -> tuple[AccountView, ...]:
        return tuple(self._view(name) for name in self.names)

    def _view(self, name: str) -> AccountView:
        health = HealthState.PAUSED if name in self.paused else HealthState.OPEN
        return AccountView(
            name, self.configured, health, NOW_MS, None, None, None, 0, 100, 4, 0.0, 100, 0, 0, 0
        )

    async def pause(self, name: str) -> AccountView:
        return self._known(name, self.paused.add)

    async def resume(self, name: str) -> AccountView:
        return self._known(name, self.paused.discard)

    def _known(self, name: str, change: Callable[[str], None]) -> AccountView:
        if name not in self.names:
            raise NotFound(f"no account is called {name!r}")
        change(name)
        return self._view(name)

    def problems(self) -> tuple[str, ...]:
        return self.troubles

    def facts(self) -> DaemonFacts:
        database = DatabaseFacts("/var/lib/dlr-buffer/queue.db", 4096, 0, 10**9, "3.51.3")
        return DaemonFacts(
            "0.1.0", 4711, NOW_MS - 90_000, database, {"registered": 1.5}, {"registered": 90}, ("a sentence",)
        )

    def exposition(self) -> tuple[bytes, str]:
        return b"dlr_up 1\n", "text/plain; version=1.0.0; charset=utf-8"


class ScriptedExpiry:
    """Expiry that is stopped until it is resumed."""

    def __init__(self, daemon: ScriptedDaemon) -> None:
        self._daemon = daemon

    def view(self) -> ExpiryView:
        return self._daemon.expiry

    async def resume(self) -> ExpiryView:
        self._daemon.expiry = ExpiryView(stopped=False, reason=None, since_ms=None, last_sweep_at_ms=NOW_MS)
        return self._daemon.expiry


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)


def connect(path: Path) -> socket.socket:
    """Open a raw connection."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(30)
    try:
        raw.connect(str(path))
    except OSError:
        raw.close()
        raise
    return raw


@dataclass(frozen=True)
class Reply:
    """An answer, with its JSON read."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any


class Api:
    """The running API; every `call` is checked against the description. Without ``express`` all goes the long way."""

    def __init__(
        self,
        folder: Path,
        *,
        accounts: frozenset[str],
        limits: BodyLimits = LIMITS,
        connections: ConnectionLimits | None = None,
        express: bool = True,
    ) -> None:
        self.express = express
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.daemon = ScriptedDaemon()
        self.queue = ReceiptQueue(
            self.store, self.clock, QueueSettings(accounts, 259_200_000, register_unknown=True)
        )
        self.room = BodyRoom(limits)
        self.paths = {"client": folder / "client.sock", "admin": folder / "admin.sock"}
        self.loop = asyncio.new_event_loop()
        self.connections = connections
        self.servers: dict[str, ApiServer] = {}
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for name, path in self.paths.items():
            app = create_app(
                self.queue,
                accounts=self.daemon,
                expiry=ScriptedExpiry(self.daemon),
                vitals=self.daemon,
                clock=self.clock,
                admin=name == "admin",
                room=self.room,
            )
            self.servers[name] = ApiServer(
                app,
                bind(path, 0o600, None),
                name=f"{name} socket",
                limits=self.connections,
                express=app.express if self.express else None,
            )
            self.run(self.servers[name].start())
        return self

    def __exit__(self, *_error: object) -> None:
        for server in self.servers.values():
            self.run(server.stop(2000))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        socket: str = "admin",
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request (a body that is not bytes as JSON) and check the answer against the description."""
        connection = UnixConnection(self.paths[socket])
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, raw, {"Content-Type": content_type, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            received = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        return checked(socket, method, target, answer.status, received, content)


def checked(
    socket: str, method: str, target: str, status: int, headers: Mapping[str, str], content: bytes
) -> Reply:
    """Fail unless the answer is one that the description promises."""
    assert int(headers["content-length"]) == len(content) or method == "HEAD"
    media_type = headers["content-type"].partition(";")[0]
    if method == "HEAD":
        return Reply(status, headers, content, None)
    value: Any = json.loads(content) if media_type.endswith("json") else None
    document = described(socket)
    operation = _operation(document, method, target.partition("?")[0])
    if operation is None:
        assert status in {404, 405}, (status, content)
        schema: Any = {"$ref": "#/components/schemas/ProblemResource"}
        assert media_type == "application/problem+json"
    else:
        assert str(status) in operation["responses"], (status, content)
        promised = operation["responses"][str(status)]
        assert media_type in promised["content"], media_type
        assert {name.lower() for name in promised.get("headers", {})} <= headers.keys()
        schema = promised["content"][media_type]["schema"]
    if status >= 400:
        assert value["status"] == status
        assert value["type"] == f"urn:dlr-buffer:problem:{value['code']}"
    if value is not None:
        whole = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(
            whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        ).validate(value)
    return Reply(status, headers, content, value)


@functools.cache
def described(socket: str) -> dict[str, Any]:
    """The document of a socket, with every resource closed: a member that it does not name is an error here."""
    document: dict[str, Any] = json.loads(openapi_document(OPERATIONS, admin=socket == "admin"))
    for name, schema in document["components"]["schemas"].items():
        if schema.get("type") == "object" and name != "ProblemResource":
            schema.setdefault("additionalProperties", False)
    return document


def _operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    spelled: dict[str, Any] | None = document["paths"].get(path, {}).get(method.lower())
    if spelled is not None:
        return spelled
    for template, methods in document["paths"].items():
        pattern = re.escape(template).replace(r"\{message_id\}", ".*")
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), path) and method.lower() in methods:
            found: dict[str, Any] = methods[method.lower()]
            return found
    return None
