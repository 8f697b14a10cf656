"""The apps of a benchmark, over a real socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from dlr_buffer.bench import load
from tests.loops import on_loop

GOOD = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def sock() -> Iterator[str]:
    """A path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        yield str(Path(name) / "s")


@asynccontextmanager
async def server(sock: str, answers: list[bytes]) -> AsyncIterator[list[bytes]]:
    """Answer requests with ``answers``, in their order, and end a connection when none is left; gives what came."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.split(b"content-length: ")[1].split(b"\r")[0])
            came.append(await reader.readexactly(length))
            if not answers:
                break
            answer = answers.pop(0)
            writer.write(answer[:10])
            await writer.drain()
            writer.write(answer[10:])
        writer.close()

    ended: list[asyncio.Future[None]] = []

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.get_running_loop().create_future())
        end = ended[-1]
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await serve(reader, writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            end.set_result(None)

    listening = await asyncio.start_unix_server(quietly, sock)
    async with listening:
        yield came
        await asyncio.gather(*ended)


@on_loop
async def test_each_request_is_sent_once(sock: str) -> None:
    """All requests are answered over the connections there are, and refusals are counted."""
    async with server(sock, [GOOD, BAD, GOOD, GOOD, GOOD]) as came:
        taken = await asyncio.to_thread(
            load.run, sock, [load.registration(f"m{number}") for number in range(5)], 2
        )
    assert sorted(came) == [b'{"message_id":"m%d"}' % number for number in range(5)]
    assert (taken.requests, taken.failed, len(taken.latencies_s)) == (5, 1, 5)
    assert taken.rate > 0


@on_loop
async def test_nothing_to_send(sock: str) -> None:
    """More connections than requests, or no request at all, is over at once."""
    async with server(sock, [GOOD]):
        assert (await asyncio.to_thread(load.run, sock, [load.reports(["m"])], 3)).requests == 1
        assert (await asyncio.to_thread(load.run, sock, [], 3)).requests == 0


@on_loop
async def test_an_end_without_an_answer(sock: str) -> None:
    """If the daemon ends, so does the load, with an error."""
    async with server(sock, [GOOD]):
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(load.run, sock, [load.registrations(["m", "n"])] * 3, 1)
