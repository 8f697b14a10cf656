"""Exit codes of the command line, and the error for a command line that makes no sense. Nothing exits here."""

from __future__ import annotations

from dlr_buffer.errors import DlrBufferError

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 69
"""The daemon does not answer (EX_UNAVAILABLE of sysexits.h)."""
INTERRUPTED = 130
"""Ended by Ctrl-C (128 + SIGINT, as a shell shows it)."""
BROKEN_PIPE = 141
"""Whoever read the output went away (128 + SIGPIPE, as a shell shows it)."""


class NotReloaded(DlrBufferError):
    """The daemon did not take over its configuration; the text says why."""


class UsageError(DlrBufferError):
    """The command line asks for something that makes no sense; the text says what to write instead."""
