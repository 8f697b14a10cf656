"""The stand-in on the wire: real sockets against it, and its command as a real program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlr_buffer.simulator import (
    Answer,
    Drop,
    Ending,
    Exchange,
    FaultKind,
    Hang,
    Outage,
    OutageKind,
    Raw,
    Request,
    Scripted,
    Simulator,
    SimulatorSettings,
)

CREDENTIALS = "_login=LOGIN&_password=PASSWORD"
ONE = f"/api/dlr?message_id=1561370632513&message_state=delivered&request_id=1&{CREDENTIALS}"
TWO = (
    "/api/dlr?message_id=1561370632513&message_state=delivered&request_id=1"
    f"&message_id=1561370632522&message_state=delivered&request_id=2&{CREDENTIALS}"
)


class Reply(NamedTuple):
    """An HTTP answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The body, read as JSON."""
        return json.loads(self.body)


def _request(target: str, method: str = "POST", headers: str = "", body: bytes = b"") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


async def _read(reader: asyncio.StreamReader) -> Reply:
    """Read one answer by its Content-Length; IncompleteReadError if it is cut short."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    return Reply(int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


async def _ask(
    server: Simulator, target: str = ONE, method: str = "POST", headers: str = "", body: bytes = b""
) -> Reply:
    """Ask once on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with closing(writer):
        writer.write(_request(target, method, headers, body))
        return await _read(reader)


def _fault(kind: FaultKind) -> SimulatorSettings:
    return SimulatorSettings(faults={kind: 1.0})


# -- the protocol ----------------------------------------------------------------------------------------


def test_the_seeds_examples_on_the_wire() -> None:
    """The seed's three requests get the seed's three answers, its ids included."""

    async def scenario() -> None:
        async with Simulator(SimulatorSettings(first_response_id=1561370632713)) as server:
            one = await _ask(server, ONE)
            assert (one.status, one.headers["content-type"]) == (200, "application/vnd.api+json")
            assert one.body.decode().startswith(
                '{\n\t"data" : {\n\t\t"attributes" : {\n\t\t\t"status" : "ok"\n'
            )
            assert one.json == {
                "data": {
                    "attributes": {"status": "ok"},
                    "id": "1561370632713",
                    "meta": {"request_id": "1"},
                    "type": "dlr",
                }
            }
            server.settings = replace(server.settings, first_response_id=1561371433517)
            two = await _ask(server, TWO)
            assert [(entry["id"], entry["meta"]["request_id"]) for entry in two.json["data"]] == [
                ("1561371433517", "1"),
                ("1561371433518", "2"),
            ]
            error = await _ask(server, ONE.replace("PASSWORD", "other"))
            assert error.status == 401
            assert error.json == {
                "errors": [
                    {
                        "code": "authentication",
                        "detail": "Please check your login and password",
                        "title": "Authentication error",
                    }
                ]
            }
            assert list(server.record.targets) == [ONE, TWO, ONE.replace("PASSWORD", "other")]
            assert server.record.accepted == 2
            assert server.record.resends == 2

    asyncio.run(scenario())


def test_a_form_body_over_one_kept_connection() -> None:
    """Form bodies are taken, and a connection is kept for the next request, pipelined ones included."""

    async def scenario() -> None:
        async with Simulator() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with closing(writer):
                form = "Content-Type: application/x-www-form-urlencoded\r\n"
                body = f"message_id=a+b&message_state=expired&request_id=9&{CREDENTIALS}".encode()
                writer.write(_request("/api/dlr", headers=form, body=body) + _request(ONE))
                assert (await _read(reader)).json["data"]["meta"] == {"request_id": "9"}
                assert (await _read(reader)).json["data"]["meta"] == {"request_id": "1"}
                writer.write(_request(ONE, "PUT"))
                assert (await _read(reader)).status == 405
            assert server.record.final_states() == {
                "a b": [("expired", "9")],
                "1561370632513": [("delivered", "1")],
            }
            assert server.record.bodies[0] == body

    asyncio.run(scenario())


def test_expect_continue() -> None:
    """A client that waits for 100 Continue before its body gets it."""

    async def scenario() -> None:
        async with Simulator() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with closing(writer):
                body = f"message_id=a&message_state=expired&{CREDENTIALS}".encode()
                headers = "Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n"
                writer.write(_request("/api/dlr", headers=headers, body=body).removesuffix(body))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                writer.write(body)
                assert (await _read(reader)).status == 200

    asyncio.run(scenario())


def test_refusals_on_the_wire() -> None:
    """Wrong paths, methods and arguments get their status with JSON:API errors, and nothing is accepted."""

    async def scenario() -> None:
        async with Simulator() as server:
            replies = [
                await _ask(server, "/"),
                await _ask(server, ONE, "GET"),
                await _ask(server, ONE.replace("delivered", "sent")),
            ]
            assert [(reply.status, reply.json["errors"][0]["code"]) for reply in replies] == [
                (404, "not-found"),
                (405, "method"),
                (400, "argument"),
            ]
            assert server.record.accepted == 0
            assert server.record.outcomes == {"not-found": 1, "method": 1, "argument": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize("excess", [0, 1, 100_000, 2_000_000])
def test_the_request_line_has_a_limit(excess: int) -> None:
    """A request line of exactly the limit is read; a longer one, however long, gets 414."""

    async def scenario() -> None:
        async with Simulator(SimulatorSettings(max_request_line=1000)) as server:
            line = f"POST {ONE} HTTP/1.1"
            padding = "x" * (1000 - len(line) + excess)
            reply = await _ask(server, ONE.replace("message_id=", f"message_id={padding}"))
            assert reply.status == (414 if excess else 200)
            assert server.record.outcomes == {"request-line-too-long" if excess else "ok": 1}

    asyncio.run(scenario())


def test_an_oversized_body_is_refused() -> None:
    """A body beyond the limit gets 413, which even a client that sends all of it first can read."""

    def send_then_read(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(_request("/api/dlr", body=b"x" * 20_000_000))
            return connection.recv(65536)

    async def scenario() -> None:
        async with Simulator(SimulatorSettings(max_body=1000)) as server:
            answer = await asyncio.to_thread(send_then_read, server.port)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert server.record.outcomes == {"body-too-large": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n\r\n", b"POST / HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_gets_400(junk: bytes) -> None:
    """A TLS hello or a request without Host is answered 400 and counted, and the stand-in goes on."""

    async def scenario() -> None:
        async with Simulator() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with closing(writer):
                writer.write(junk)
                assert (await _read(reader)).status == 400
            assert server.record.outcomes == {"malformed": 1}
            assert (await _ask(server)).status == 200

    asyncio.run(scenario())


def test_a_client_that_goes_away_in_the_middle() -> None:
    """A request that is cut off counts as none."""

    async def scenario() -> None:
        async with Simulator() as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE, body=b"x" * 10)[:-5])
            writer.close()
            await writer.wait_closed()
            assert (await _ask(server)).status == 200
            assert server.record.requests == 1

    asyncio.run(scenario())


# -- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.RESET_AFTER])
def test_resets_are_resets(kind: FaultKind) -> None:
    """The client sees an RST instead of an answer; only the later kind has acted on the request."""

    async def scenario() -> None:
        async with Simulator(_fault(kind)) as server:
            with pytest.raises(ConnectionResetError):
                await _ask(server)
            acted = kind is FaultKind.RESET_AFTER
            assert server.record.accepted == acted
            assert server.record.acknowledged == 0
            server.settings = SimulatorSettings()
            assert (await _ask(server)).status == 200
            assert server.record.resends == 1
            assert server.record.final_states() == {"1561370632513": [("delivered", "1")]}

    asyncio.run(scenario())


def test_a_timeout_reads_and_never_answers() -> None:
    """The request is received, the client waits in vain, and its going away ends the exchange."""

    async def scenario() -> None:
        async with Simulator(_fault(FaultKind.TIMEOUT)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            await server.wait_for(lambda record: record.outcomes["timeout"] == 1)
            assert server.record.concurrent_requests == 1
            # Another connection is served meanwhile: by then an answer to the first would have come.
            server.settings = SimulatorSettings()
            assert (await _ask(server)).status == 200
            pending = asyncio.ensure_future(reader.read(1))
            await asyncio.wait([pending], timeout=0)
            assert not pending.done()
            pending.cancel()
            writer.close()
            await server.wait_for(lambda record: record.concurrent_requests == 0)

    asyncio.run(scenario())


def test_stop_ends_hanging_requests() -> None:
    """Stopping does not wait for requests that are never answered."""

    async def scenario() -> None:
        server = Simulator(_fault(FaultKind.TIMEOUT))
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(_request(ONE))
        await server.wait_for(lambda record: record.requests == 1)
        await server.stop()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    asyncio.run(scenario())


def test_a_truncated_answer_ends_early() -> None:
    """The declared length is longer than what comes before the close, though the receipt was accepted."""

    async def scenario() -> None:
        async with Simulator(_fault(FaultKind.TRUNCATED)) as server:
            with pytest.raises(asyncio.IncompleteReadError) as cut:
                await _ask(server)
            assert 0 < len(cut.value.partial) < (cut.value.expected or 0)
            assert server.record.accepted == 1

    asyncio.run(scenario())


def test_well_formed_faults_on_the_wire() -> None:
    """Each fault that is an answer arrives as HTTP, over a connection that stays usable."""
    expected = {
        FaultKind.ERROR_500: 500,
        FaultKind.ERROR_503: 503,
        FaultKind.HTML: 200,
        FaultKind.NOT_JSON: 200,
        FaultKind.ERRORS_INTERNAL: 200,
        FaultKind.REDIRECT: 302,
        FaultKind.PARTIAL: 200,
        FaultKind.WRONG_STATUS: 200,
        FaultKind.SOMEONE_ELSES: 200,
    }

    async def scenario() -> None:
        async with Simulator() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with closing(writer):
                for kind, status in expected.items():
                    server.settings = _fault(kind)
                    writer.write(_request(TWO))
                    reply = await _read(reader)
                    assert (kind, reply.status) == (kind, status)
                    assert server.record.outcomes[kind] == 1
                    assert ("retry-after" in reply.headers) == (kind is FaultKind.ERROR_503)
                    assert ("location" in reply.headers) == (kind is FaultKind.REDIRECT)
                    assert (reply.headers["content-type"] == "text/html") == (status > 200 or kind == "html")

    asyncio.run(scenario())


def test_always_a_status_without_a_body() -> None:
    """A 404 for everything is a well-formed answer with an empty body, and 204 has no length at all."""

    async def scenario() -> None:
        async with Simulator(SimulatorSettings(always_status=404)) as server:
            reply = await _ask(server)
            assert (reply.status, reply.body) == (404, b"")
            server.settings = SimulatorSettings(always_status=204, always_body=b"ignored")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with closing(writer):
                writer.write(_request(ONE, headers="Connection: close\r\n"))
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 204 ")
            assert answer.endswith(b"\r\n\r\n")
            assert b"content-length" not in answer.lower()

    asyncio.run(scenario())


def test_latency_comes_before_the_answer() -> None:
    """A slow answer is accepted at once and answered later; a client that leaves is not acknowledged."""

    async def scenario() -> None:
        async with Simulator(SimulatorSettings(latency=3600.0)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            await server.wait_for(lambda record: record.accepted == 1)
            assert server.record.concurrent_requests == 1
            writer.close()
            await server.wait_for(lambda record: record.concurrent_requests == 0)
            assert server.record.acknowledged == 0
            server.settings = SimulatorSettings(latency=0.001, latency_jitter=0.001)
            assert (await _ask(server)).status == 200
            assert server.record.acknowledged == 1

    asyncio.run(scenario())


def test_outages_on_the_wire() -> None:
    """During a window connections get 503, a reset, or are really refused; the port comes back after it."""

    async def scenario() -> None:
        async with Simulator() as server:
            port = server.port
            server.settings = SimulatorSettings(outages=(Outage(0, 3600),))
            assert (await _ask(server)).status == 503
            server.settings = SimulatorSettings(outages=(Outage(0, 3600, OutageKind.RESET),))
            with pytest.raises(ConnectionResetError):
                await _ask(server)
            server.settings = SimulatorSettings()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_request(ONE))
            assert (await _read(reader)).status == 200
            server.settings = SimulatorSettings(outages=(Outage(0, 3600, OutageKind.REFUSE),))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await _ask(server)
            server.settings = SimulatorSettings()
            assert server.port == port
            assert (await _ask(server)).status == 200

    asyncio.run(scenario())


def test_a_refusing_window_ends_by_itself() -> None:
    """The stand-in listens again when the window is over, without anybody's doing."""

    async def scenario() -> None:
        settings = SimulatorSettings(outages=(Outage(0, 0.05, OutageKind.REFUSE),))
        async with Simulator(settings) as server:
            # A blocking call: the window cannot end before it, as the event loop does not turn.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port))
            async with asyncio.timeout(10):
                while True:
                    with suppress(ConnectionRefusedError):
                        assert (await _ask(server)).status == 200
                        break

    asyncio.run(scenario())


# -- scripts ---------------------------------------------------------------------------------------------


def _scripted(answers: list[Answer | None]) -> Callable[[Request], Answer | None]:
    remaining = iter(answers)
    return lambda _: next(remaining)


def test_a_script_answers_first() -> None:
    """A script's answer replaces the usual one, and None leaves it; what it accepts is recorded."""

    async def scenario() -> None:
        teapot = Scripted(418, (("X-Kind", "tea"),), b"short and stout", accepts=True)
        script = _scripted([teapot, None, Drop(accepts=True), Scripted(close=True)])
        async with Simulator(_fault(FaultKind.ERROR_500), script=script) as server:
            reply = await _ask(server)
            assert (reply.status, reply.headers["x-kind"], reply.body) == (418, "tea", b"short and stout")
            assert server.record.accepted == 1
            assert (await _ask(server)).status == 500
            with pytest.raises(ConnectionResetError):
                await _ask(server, TWO)
            assert server.record.accepted == 2
            assert (await _ask(server)).headers["connection"] == "close"
            assert server.record.outcomes == {"scripted": 3, "error-500": 1}

    asyncio.run(scenario())


def test_a_script_sees_the_request() -> None:
    """A script is given number, headers, receipts and the raw target, whose repr hides the credentials."""
    seen: list[Request] = []

    async def scenario() -> None:
        async with Simulator(script=seen.append) as server:
            await _ask(server, TWO, headers="Accept: application/json\r\n")

    asyncio.run(scenario())
    (request,) = seen
    assert (request.number, request.method, request.path, request.target) == (1, "POST", "/api/dlr", TWO)
    assert request.header("accept") == "application/json"
    assert [receipt.request_id for receipt in request.receipts] == ["1", "2"]
    assert "LOGIN" not in repr(request)
    assert "PASSWORD" not in repr(request)


def test_a_script_can_wait() -> None:
    """A coroutine script holds requests back until a test lets them go, and concurrency is seen meanwhile."""

    async def scenario() -> None:
        gate = asyncio.Event()

        async def script(_: Request) -> None:
            await gate.wait()

        async with Simulator(script=script) as server:
            asking = [asyncio.create_task(_ask(server, ONE.replace("1561", str(n)))) for n in range(3)]
            await server.wait_for(lambda record: record.concurrent_requests == 3)
            gate.set()
            assert [reply.status for reply in await asyncio.gather(*asking)] == [200, 200, 200]
            assert server.record.max_concurrent_requests == 3

    asyncio.run(scenario())


def test_an_answer_to_nobody_acknowledges_nothing() -> None:
    """A client that left while its request was held back is not counted as having read the answer."""

    async def scenario() -> None:
        gate = asyncio.Event()

        async def script(request: Request) -> None:
            if request.number == 1:
                await gate.wait()

        async with Simulator(script=script) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            await server.wait_for(lambda record: record.requests == 1)
            writer.close()
            await writer.wait_closed()
            # By the time that a later connection is answered, the end of the first one has been read too.
            assert (await _ask(server)).status == 200
            assert server.record.acknowledged == 1
            gate.set()
            await server.wait_for(lambda record: record.concurrent_requests == 0)
            assert server.record.acknowledged == 1

    asyncio.run(scenario())


def test_raw_bytes_and_their_endings() -> None:
    """Raw pieces come exactly as given, and the connection ends as asked."""

    async def exchange(server: Simulator) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with closing(writer):
            writer.write(_request(ONE))
            return await reader.read()

    async def scenario() -> None:
        pieces = (b"HTTP/1.1 2", b"00 O", b"K\r\n")
        async with Simulator(script=lambda _: Raw(pieces, pause=0.001)) as server:
            assert await exchange(server) == b"HTTP/1.1 200 OK\r\n"
            server.script = lambda _: Raw(pieces, Ending.RESET)
            with pytest.raises(ConnectionResetError):
                await exchange(server)
            server.script = lambda _: Raw(pieces, Ending.HANG)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            assert await reader.readexactly(17) == b"HTTP/1.1 200 OK\r\n"
            assert server.record.concurrent_requests == 1
            writer.close()
            await server.wait_for(lambda record: record.concurrent_requests == 0)

    asyncio.run(scenario())


def test_an_endless_answer_stops_when_the_client_leaves() -> None:
    """Pieces without end are sent only as long as somebody reads them."""

    async def scenario() -> None:
        endless = Raw(repeat(b"x" * 65536))
        async with Simulator(script=lambda _: endless) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            assert len(await reader.readexactly(1_000_000)) == 1_000_000
            writer.transport.abort()
            await server.wait_for(lambda record: record.concurrent_requests == 0)

    asyncio.run(scenario())


def test_a_hanging_script_counts_what_it_accepts() -> None:
    """A request can be acted on and never answered: the ambiguous timeout."""

    async def scenario() -> None:
        async with Simulator(script=lambda _: Hang(accepts=True)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(_request(ONE))
            await server.wait_for(lambda record: record.accepted == 1)
            assert server.record.acknowledged == 0
            writer.close()

    asyncio.run(scenario())


def test_a_broken_script_is_told_at_the_end() -> None:
    """An exception of a script does not vanish: stopping raises it."""

    def script(_: Request) -> Answer:
        raise LookupError("the script is wrong")

    async def scenario() -> None:
        async with Simulator(script=script) as server:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await _ask(server)

    with pytest.raises(LookupError, match="the script is wrong"):
        asyncio.run(scenario())


# -- the record ------------------------------------------------------------------------------------------


def test_the_record_is_served_masked() -> None:
    """The record can be read over HTTP, is not counted itself, and shows no credential."""

    async def scenario() -> None:
        settings = SimulatorSettings(login="topsecret1", password="topsecret2")
        async with Simulator(settings) as server:
            quoted = ONE.replace("1561370632513", "a%2Fb%20%C3%A9")
            target = quoted.replace("LOGIN", "topsecret1").replace("PASSWORD", "topsecret2")
            assert (await _ask(server, target)).status == 200
            record = await _ask(server, "/_simulator/record", "GET")
            assert b"topsecret" not in record.body
            assert record.json["targets"] == [quoted.replace("LOGIN", "***").replace("PASSWORD", "***")]
            assert record.json["requests"] == record.json["accepted"] == record.json["acknowledged"] == 1
            message = await _ask(server, "/_simulator/messages/a%2Fb%20%C3%A9", "GET")
            assert message.json == {
                "message_id": "a/b é",
                "sightings": [{"state": "delivered", "request_id": "1", "accepted": True}],
            }
            assert (await _ask(server, "/_simulator/messages/other", "GET")).status == 404
            assert (await _ask(server, "/_simulator/record", "DELETE")).status == 405
            assert server.record.requests == 1

    asyncio.run(scenario())


def test_wait_for_tells_what_came_instead() -> None:
    """A condition that never holds ends in a TimeoutError with the counters, an error in it at once."""

    async def scenario() -> None:
        async with Simulator() as server:
            with pytest.raises(TimeoutError, match="'requests': 0"):
                await server.wait_for(lambda record: record.requests == 2, timeout=0.01)
            waiting = asyncio.ensure_future(server.wait_for(lambda record: 1 // (record.requests - 1) > 0))
            await asyncio.wait([waiting], timeout=0)
            await _ask(server)
            with pytest.raises(ZeroDivisionError):
                await waiting

    asyncio.run(scenario())


def test_exchanges_are_told() -> None:
    """Whoever prints is told number, receipts, outcome and status of every request."""
    told: list[Exchange] = []

    async def scenario() -> None:
        async with Simulator(on_exchange=told.append) as server:
            await _ask(server, TWO)
            server.settings = _fault(FaultKind.RESET)
            with pytest.raises(ConnectionResetError):
                await _ask(server)

    asyncio.run(scenario())
    assert [(e.number, len(e.receipts), e.outcome, e.status) for e in told] == [
        (1, 2, "ok", 200),
        (2, 1, "reset", None),
    ]


def test_loopback_only() -> None:
    """No address but a loopback one is taken, and the URL is the account's."""
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ValueError, match="loopback"):
            Simulator(host=host)

    async def scenario() -> None:
        async with Simulator(host="localhost") as server:
            assert server.url == f"http://127.0.0.1:{server.port}/api/dlr"

    asyncio.run(scenario())


# -- the command -----------------------------------------------------------------------------------------

_PROGRAM = (
    "import argparse, sys; from dlr_buffer.simulator import command; p = argparse.ArgumentParser(); "
    "command.add_arguments(p); sys.exit(command.run(p.parse_args()))"
)


@contextmanager
def _program(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a program of its own, killed at the end if it still runs."""
    command = [sys.executable, "-c", _PROGRAM, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline()


def _ask_port(port: int, target: str = ONE) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_request(target, headers="Connection: close\r\n"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_what_it_received(number: signal.Signals) -> None:
    """A line for each request, a table at the end, exit 0 on a signal, and no credential anywhere."""
    with _program("--listen", "127.0.0.1:0", "--latency", "1ms", "--refuse-id", "bad") as program:
        banner = _line(program)
        assert banner.startswith("listening on http://127.0.0.1:")
        port = int(banner.rstrip().removesuffix("/api/dlr").rpartition(":")[2])
        assert _ask_port(port, TWO).startswith(b"HTTP/1.1 200 OK")
        first = _line(program).split()
        assert first[1:] == ["2", "receipts", "200", "ok", "1561370632513", "1561370632522"]
        assert _ask_port(port, ONE.replace("1561370632513", "bad%1B")).startswith(b"HTTP/1.1 200")
        assert '"bad\\u001b"' in _line(program)
        assert b"unknown-message" in _ask_port(port, ONE.replace("1561370632513", "bad"))
        assert _line(program).split()[1:] == ["1", "receipt", "400", "unknown-message", "bad"]
        program.send_signal(number)
        output, errors = program.communicate(timeout=10)
    assert program.returncode == 0
    assert errors == ""
    rows = [line.rsplit(None, 1) for line in output.splitlines() if line]
    assert ["requests", "3"] in rows
    assert ["outcomes: unknown-message", "1"] in rows
    assert ["final states: delivered", "3"] in rows
    assert "LOGIN" not in banner + output
    assert "PASSWORD" not in banner + output


def test_the_command_in_json(tmp_path: Path) -> None:
    """With --json every line is JSON, and a password file, known ids and faults are honoured."""
    (tmp_path / "password").write_text("topsecret\n")
    (tmp_path / "ids").write_text("1561370632513\n")
    options = ["--listen", "127.0.0.1:0", "--json", "--login", "me", "--fault", "error-503=100%"]
    options += ["--password-file", str(tmp_path / "password"), "--known-ids", str(tmp_path / "ids")]
    with _program(*options) as program:
        url = json.loads(_line(program))["listening"]
        port = int(url.removesuffix("/api/dlr").rpartition(":")[2])
        assert _ask_port(port).startswith(b"HTTP/1.1 503")
        told = json.loads(_line(program))
        assert told.pop("at").endswith("Z")
        assert told == {
            "request": 1,
            "receipts": 1,
            "outcome": "error-503",
            "status": 503,
            "message_ids": ["1561370632513"],
        }
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=10)
    assert program.returncode == 0
    assert json.loads(output)["summary"]["outcomes"] == {"error-503": 1}
    with _program(*options[:5], *options[7:]) as program:
        port = int(json.loads(_line(program))["listening"].removesuffix("/api/dlr").rpartition(":")[2])
        target = ONE.replace("LOGIN", "me").replace("PASSWORD", "topsecret")
        assert _ask_port(port, target).startswith(b"HTTP/1.1 200")
        assert b"unknown-message" in _ask_port(port, target.replace("1561370632513", "other"))
        assert b"authentication" in _ask_port(port)


def test_the_command_can_be_quiet() -> None:
    """With --quiet only the address and the table are printed."""
    with _program("--listen", "127.0.0.1:0", "--quiet") as program:
        port = int(_line(program).rstrip().removesuffix("/api/dlr").rpartition(":")[2])
        assert _ask_port(port).startswith(b"HTTP/1.1 200")
        program.send_signal(signal.SIGINT)
        output, _ = program.communicate(timeout=10)
    assert "1561370632513" not in output
    assert "receipts" in output


def test_the_command_ends_when_nobody_reads() -> None:
    """A closed pipe behind the command ends it with exit 1 and no traceback."""
    with _program("--listen", "127.0.0.1:0") as program:
        port = int(_line(program).rstrip().removesuffix("/api/dlr").rpartition(":")[2])
        assert program.stdout is not None
        program.stdout.close()
        assert _ask_port(port).startswith(b"HTTP/1.1 200")
        assert program.wait(timeout=10) == 1
        assert program.stderr is not None
        assert program.stderr.read() == ""


def test_a_taken_port_is_told() -> None:
    """A port in use is exit 1 with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with _program("--listen", f"127.0.0.1:{port}") as program:
            output, errors = program.communicate(timeout=10)
    assert (program.returncode, output) == (1, "")
    assert f"port {port} of 127.0.0.1 is in use; choose another one with --listen" in errors


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--listen", "0.0.0.0:80"], 2, "not a loopback address"),
        (["--listen", "example.com:80"], 2, "not a loopback address"),
        (["--listen", "8080"], 2, "not HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], 2, "not HOST:PORT"),
        (["--latency", "20"], 2, "not a time"),
        (["--fault", "error-999=5%"], 2, "not a fault; choose from timeout"),
        (["--fault", "error-500=150%"], 2, "write error-500=5%"),
        (["--fault", "error-500"], 2, "write error-500=5%"),
        (["--fault", "reset=60%", "--fault", "html=0.6"], 2, "add up to 120%"),
        (["--outage", "10s"], 2, "not START-END"),
        (["--outage", "30s-10s"], 2, "has to end after it starts"),
        (["--outage", "1s-2s:flood"], 2, "not an outage"),
        (["--password-file", f"{os.sep}nowhere"], 1, "cannot read /nowhere: No such file"),
    ],
)
def test_wrong_options(options: list[str], code: int, problem: str) -> None:
    """Every wrong option is told in a sentence, with the exit code of its kind."""
    with _program(*options) as program:
        output, errors = program.communicate(timeout=10)
    assert (program.returncode, output) == (code, "")
    assert problem in errors
    assert "Traceback" not in errors
