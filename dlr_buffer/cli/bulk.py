"""``register`` and ``report``: ids from the command line, or any number of lines from standard input.

Lines are sent in chunks of a thousand as they come, in constant memory; what is bad is printed with its line number
and stops nothing. What a registration or a report means is the daemon's to say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, assert_never

from dlr_buffer.cli import exits
from dlr_buffer.cli.connection import client_side
from dlr_buffer.cli.exits import UsageError
from dlr_buffer.cli.parser import STATES
from dlr_buffer.cli.text import printable
from dlr_buffer.client import CHUNK_ITEMS, BulkSummary
from dlr_buffer.errors import DlrBufferError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MAX_LINE_BYTES = 65_536
"""Longer lines are refused unread; an id has at most 255 bytes."""
_BLOCK = 65_536
_BLANKS = re.compile(r"[ \t]+")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Item:
    """One item for the daemon; ``origin`` is how the user knows it ("line 17")."""

    origin: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Faulty:
    """One item that cannot even be sent, and why."""

    origin: str
    problem: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input, its end cut off; ``content`` is None if it was too long to be kept."""

    number: int
    content: bytes | None


class Pause:
    """The input has nothing more at hand: send what there is before waiting for more."""


def register(args: argparse.Namespace) -> int:
    """Register the ids of the command line, or what standard input brings."""
    defaults = {"account": args.account, "validity_period": args.validity_period}

    def plain(words: str) -> dict[str, Any]:
        return {"message_id": _single(words)}

    if ids := _ids(args):
        items: Iterable[Item] = (Item(repr(name), _filled({"message_id": name}, defaults)) for name in ids)
        return _store(args, "registered", items, from_stdin=False)
    return _store(args, "registered", _from_stdin(plain, defaults), from_stdin=True)


def report(args: argparse.Namespace) -> int:
    """Report the state of the ids of the command line, or of what standard input brings."""
    defaults = {"account": args.account, "message_state": args.state}
    ids = _ids(args)
    if ids and args.state is None:
        if len(ids) != 2 or ids[1] not in STATES:  # noqa: PLR2004 - an id and a state
            raise UsageError(
                "write `report ID STATE`, or `report --state STATE ID...`; STATE is one of "
                + ", ".join(STATES)
            )
        ids, defaults["message_state"] = ids[:1], ids[1]

    def plain(words: str) -> dict[str, Any]:
        return {"message_id": _single(words)} if args.state else _with_state(words)

    if ids:
        items: Iterable[Item] = (Item(repr(name), _filled({"message_id": name}, defaults)) for name in ids)
        return _store(args, "queued", items, from_stdin=False)
    return _store(args, "queued", _from_stdin(plain, defaults), from_stdin=True)


def read_lines(stream: BinaryIO) -> Iterator[Line | Pause]:
    """Cut a stream into lines, numbered from 1, in constant memory; a Pause comes before a wait for more."""
    rest = b""
    number = 0
    too_long = False
    while True:
        if not _at_hand(stream):
            yield Pause()
        block = stream.read1(_BLOCK)  # type: ignore[attr-defined] # every buffered reader has it
        if not block:
            break
        *whole, rest = (rest + block).split(b"\n")
        for content in whole:
            number += 1
            yield Line(number, None if too_long or len(content) > MAX_LINE_BYTES else content)
            too_long = False
        if too_long or len(rest) > MAX_LINE_BYTES:
            too_long, rest = True, b""
    if rest or too_long:
        yield Line(number + 1, None if too_long else rest)


def parse_line(
    line: Line, plain: Callable[[str], dict[str, Any]], defaults: dict[str, Any]
) -> Item | Faulty | None:
    """Read one line: a JSON object, or what ``plain`` understands; None if it is blank."""
    origin = f"line {line.number}"
    if line.content is None:
        return Faulty(origin, f"longer than {MAX_LINE_BYTES:,} bytes")
    content = line.content.removeprefix(_BOM) if line.number == 1 else line.content
    try:
        words = content.decode().strip(" \t\r")
        if not words:
            return None
        fields = _json_object(words) if words.startswith("{") else plain(words)
    except UnicodeDecodeError:
        return Faulty(origin, "not UTF-8")
    except ValueError as error:
        return Faulty(origin, str(error))
    return Item(origin, _filled(fields, defaults))


def _ids(args: argparse.Namespace) -> list[str]:
    """Return the ids of the command line; none if lines are to be read."""
    ids: list[str] = args.ids
    if ids == ["-"]:
        return []
    if "-" in ids:
        raise UsageError("'-' (read lines from standard input) cannot stand beside ids")
    if not ids and sys.stdin.isatty():
        raise UsageError("name at least one id, or pipe lines into standard input ('-' reads them from here)")
    return ids


def _single(words: str) -> str:
    if _BLANKS.search(words):
        raise ValueError("one id without spaces is expected; an id that holds a space has to come as JSON")
    return words


def _with_state(words: str) -> dict[str, Any]:
    parts = _BLANKS.split(words)
    if len(parts) != 2:  # noqa: PLR2004 - an id and a state
        raise ValueError("a message id, a tab or space, and a state are expected")
    return {"message_id": parts[0], "message_state": parts[1]}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object: {error}") from None
    if not isinstance(value, dict):  # pragma: no cover - a text that begins with { is an object or no JSON
        raise ValueError("not a JSON object")  # noqa: TRY004 - the line's value is wrong, not ours
    return value


def _filled(fields: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if value is not None} | fields


def _from_stdin(
    plain: Callable[[str], dict[str, Any]], defaults: dict[str, Any]
) -> Iterator[Item | Faulty | Pause]:
    for line in read_lines(sys.stdin.buffer):
        if isinstance(line, Pause):
            yield line
        elif (item := parse_line(line, plain, defaults)) is not None:
            yield item


def _at_hand(stream: BinaryIO) -> bool:
    """Whether reading would return at once; a stream without a descriptor always does."""
    try:
        descriptor = stream.fileno()
    except OSError:
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(0))


@dataclass(slots=True)
class _Tally:
    """What became of the items so far."""

    stored: int = 0
    duplicates: int = 0
    errors: int = 0
    last: str = ""

    def add(self, chunk: list[Item], summary: BulkSummary) -> None:
        self.stored += summary.stored
        self.duplicates += summary.duplicates
        for error in summary.errors:
            self.complain(chunk[error.index].origin, f"{error.detail} ({error.code})")
        self.last = chunk[-1].origin

    def complain(self, origin: str, problem: str) -> None:
        self.errors += 1
        print(f"dlr-buffer: {printable(origin)}: {printable(problem)}", file=sys.stderr)


def _store(
    args: argparse.Namespace, verb: str, items: Iterable[Item | Faulty | Pause], *, from_stdin: bool
) -> int:
    """Send ``items`` in chunks, print what is bad and the sums; ``verb`` says what happens to good ones."""
    tally = _Tally()
    with client_side(args) as client, _Progress(verb, shown=from_stdin) as progress:
        call = client.register_many if verb == "registered" else client.report_many
        try:
            for chunk in _chunks(items, tally):
                tally.add(chunk, call([item.fields for item in chunk]))
                progress.advance(len(chunk))
        except (DlrBufferError, KeyboardInterrupt):
            if from_stdin:
                _print_broken_off(tally, verb)
            raise
    _print_sums(tally, verb, as_json=args.json)
    return exits.FAILED if tally.errors else exits.OK


def _chunks(items: Iterable[Item | Faulty | Pause], tally: _Tally) -> Iterator[list[Item]]:
    """Gather the items that can be sent, until there are enough or the input pauses; complain of the others."""
    chunk: list[Item] = []
    for item in items:
        match item:
            case Item():
                chunk.append(item)
            case Faulty():
                tally.complain(item.origin, item.problem)
            case Pause():
                pass
            case _:
                assert_never(item)
        if len(chunk) == CHUNK_ITEMS or (chunk and isinstance(item, Pause)):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _print_broken_off(tally: _Tally, verb: str) -> None:
    reached = f"broken off after {tally.last}" if tally.last else "broken off at the start"
    print(
        f"dlr-buffer: {reached}: {tally.stored:,} {verb}, {tally.duplicates:,} known already, {tally.errors:,} bad; "
        "repeat the whole input later, what is stored already counts as known",
        file=sys.stderr,
    )


def _print_sums(tally: _Tally, verb: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({verb: tally.stored, "duplicates": tally.duplicates, "errors": tally.errors}))
    else:
        bad = f", {tally.errors:,} bad" if tally.errors else ""
        print(f"{tally.stored:,} {verb}, {tally.duplicates:,} known already{bad}")


@dataclass(slots=True)
class _Progress:
    """A progress bar on a terminal's standard error, drawn once the first full chunk shows that the input is long."""

    verb: str
    shown: bool
    _count: int = 0
    _bar: Progress | None = None
    _task: TaskID | None = field(default=None)

    def __enter__(self) -> Self:
        self.shown = self.shown and sys.stderr.isatty()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, items: int) -> None:
        self._count += items
        if not self.shown or self._count < CHUNK_ITEMS:
            return
        if self._bar is None:
            self._start()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=_position(), items=f"{self._count:,}")

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.fields[items]} " + self.verb),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.verb, total=_length(), items="0")
        self._bar.start()


def _length() -> int | None:
    """Return the length of the input in bytes, None if it is not a file and so nobody knows."""
    facts = os.fstat(sys.stdin.fileno())
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _position() -> int:
    """Return how far the input is read, in bytes; 0 if it is not a file."""
    try:
        return os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR)
    except OSError:
        return 0
