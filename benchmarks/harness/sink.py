"""The server that drains go to: answers every receipt ok, as cheaply as Python can, so that it is not what is measured.

Run as a program of its own: ``python -m benchmarks.harness.sink --latency-ms 50``. It prints its port, serves until its
standard input ends, and then prints one line of JSON: how many requests and receipts came, CPU seconds, and when each
receipt of a message whose id ends with ``--watch`` was answered (CLOCK_MONOTONIC, seconds).

It reads no more of a request than it needs: neither credentials nor encoding are looked at. The stand-in for
Smartswitch that users get is `dlr-buffer simulate`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import sys
import time

HEAD_END = b"\r\n\r\n"
_ENTRY = b'{"attributes":{"status":"ok"},"id":"1561370632713","meta":{"request_id":"%b"},"type":"dlr"}'


class Tally:
    """What came so far."""

    def __init__(self, watch: bytes) -> None:
        """Note the times of messages whose id ends with ``watch`` (nothing: of none)."""
        self.watch = watch
        self.requests = 0
        self.receipts = 0
        self.answered_at: dict[str, float] = {}

    def count(self, target: bytes, request_ids: list[bytes]) -> None:
        """A request is answered now."""
        self.requests += 1
        self.receipts += len(request_ids)
        if self.watch:
            now = time.monotonic()
            for piece in target.split(b"message_id=")[1:]:
                message_id = piece.partition(b"&")[0]
                if message_id.endswith(self.watch):
                    self.answered_at[message_id.decode()] = now


class Sink(asyncio.Protocol):
    """One connection."""

    def __init__(self, tally: Tally, latency_s: float) -> None:
        """Answer ``latency_s`` after a request came."""
        self._tally = tally
        self._latency_s = latency_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember whom to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request; none has a body."""
        self._buffer += data
        while (end := self._buffer.find(HEAD_END)) >= 0:
            target = self._buffer[: self._buffer.index(b" HTTP/1.1")]
            self._buffer = self._buffer[end + len(HEAD_END) :]
            loop = asyncio.get_running_loop()
            ends_s = loop.time() + self._latency_s
            request_ids = [piece.partition(b"&")[0] for piece in target.split(b"request_id=")[1:]]
            answer = _answer(request_ids)
            if self._latency_s:
                loop.call_at(ends_s, self._write, target, request_ids, answer)
            else:
                self._write(target, request_ids, answer)

    def _write(self, target: bytes, request_ids: list[bytes], answer: bytes) -> None:
        self._tally.count(target, request_ids)
        assert self._transport is not None
        self._transport.write(answer)


def _answer(request_ids: list[bytes]) -> bytes:
    entries = b",".join([_ENTRY % request_id for request_id in request_ids])
    body = b'{"data":[%b]}' % entries if len(request_ids) > 1 else b'{"data":%b}' % entries
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.api+json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


async def serve(latency_s: float, watch: bytes) -> None:
    """Serve until standard input ends."""
    tally = Tally(watch)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(tally, latency_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "count":
            print(tally.receipts, flush=True)
    server.close()
    summary = {
        "requests": tally.requests,
        "receipts": tally.receipts,
        "cpu_s": time.process_time(),
        "answered_at": tally.answered_at,
    }
    print(json.dumps(summary), flush=True)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness.sink", description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--watch", default="")
    options = parser.parse_args()
    # epoll waits in whole milliseconds, rounded up: an upstream that takes 50 ms would take 51.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(options.latency_ms / 1000, options.watch.encode()))


if __name__ == "__main__":
    main()
