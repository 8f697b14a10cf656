"""`register` and `report` reading lines of any bytes: exit codes, sums and complaints are as documented."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlr_buffer.cli import main
from dlr_buffer.cli.bulk import MAX_LINE_BYTES
from tests.acceptance.harness import PASSWORD, Site

EXAMPLES = 120
_settings = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# Lines that are nearly right find more than random bytes do; both are mixed.
PIECES = st.sampled_from(
    [
        b"n1",
        b"n1 delivered",
        b"n1\tdelivered",
        b"n1 deliverd",
        b"a b c",
        b"",
        b" ",
        b"\r",
        b"\xef\xbb\xbfn1",
        b"\xff\xfe",
        b'{"message_id":"n2"}',
        b'{"message_id":"n2","message_state":"enroute"}',
        b'{"message_id":7}',
        b'{"message_id":"\\ud800"}',
        b'{"message_id":"x","account":"nobody"}',
        b'{"message_id":NaN}',
        b'{"message_id":' + b"9" * 5000 + b"}",
        b'{"a":' * 3000,
        b"{",
        b"{}",
        b"[]",
        b"x" * 256,
        b"x" * (MAX_LINE_BYTES + 1),
        b"\x1b[31mred",
        b"\x00",
        b"\xe2\x80\xa8",
    ]
)
LINES = st.lists(PIECES | st.binary(max_size=30), max_size=12).map(b"\n".join)


def run(site: Site, *arguments: str, lines: bytes) -> tuple[int, dict[str, int], list[str]]:
    """Run the command in this process; returns the exit code, the sums and the complaints."""
    out, err = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(lines))
    with patch.object(sys, "stdin", stdin), redirect_stdout(out), redirect_stderr(err):
        code = main(["--config", str(site.config), "--json", *arguments])
    assert PASSWORD not in out.getvalue() + err.getvalue()
    return code, json.loads(out.getvalue()), err.getvalue().splitlines()


def check(site: Site, command: str, word: str, lines: bytes) -> None:
    """Everything is either stored, known or complained of, by its line; the exit code says whether all was good."""
    code, sums, complaints = run(site, command, "--account", "default", lines=lines)
    given_lines = lines.split(b"\n")
    items = [line for number, line in enumerate(given_lines) if _counts(line, first=number == 0)]
    assert sums[word] + sums["duplicates"] + sums["errors"] == len(items)
    assert code == (1 if sums["errors"] else 0)
    assert len(complaints) == sums["errors"]
    for complaint in complaints:
        assert complaint.startswith("dlr-buffer: line ")
        number = int(complaint.removeprefix("dlr-buffer: line ").partition(":")[0])
        assert 1 <= number <= len(given_lines)
        assert complaint.isprintable()


def _counts(line: bytes, *, first: bool) -> bool:
    """Whether a line is an item: blank ones, and a byte order mark at the beginning, are none."""
    return bool((line.removeprefix(b"\xef\xbb\xbf") if first else line).strip(b" \t\r"))


@_settings
@given(lines=LINES)
@example(lines=b"n1\n" * 2500 + b"bad line\n" + b"n1\n" * 10)
def test_any_lines_to_register(running: Site, lines: bytes) -> None:
    """Lines of any bytes to `register`: no traceback, no lost line, the documented exit code."""
    check(running, "register", "registered", lines)


@_settings
@given(lines=LINES)
@example(lines=b"n1 delivered\n" * 2500 + b"n1\n")
def test_any_lines_to_report(running: Site, lines: bytes) -> None:
    """Lines of any bytes to `report`."""
    check(running, "report", "queued", lines)
