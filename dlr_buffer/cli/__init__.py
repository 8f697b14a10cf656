"""The command line: ``dlr-buffer COMMAND`` (DESIGN §6).

`main` parses, runs one command and turns errors into exit codes. `parser` is the grammar, `connection` finds the
daemon's sockets, `text` words numbers and times, `tables` draws; the commands are in `bulk` (register, report),
`inspection` (status, list, show), `steering` (retry to resume), `database` (backup, check-db), `doctor` and `service`
(run, check-config, simulate, demo, bench), each imported only when it is run, so that a command starts without what the
others need.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from dlr_buffer.cli import exits
from dlr_buffer.cli.parser import build_parser
from dlr_buffer.errors import DlrBufferError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code (see `exits`)."""
    if argv is not None:
        return _run(list(argv))
    code = _run(sys.argv[1:])
    # The process ends now. Python would first look through everything for cycles, which takes as long as rich's import.
    gc.freeze()
    return code


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ids may hold what the terminal's encoding lacks
    try:
        args = build_parser(simulate="simulate" in arguments).parse_args(arguments)
        code: int = args.command(args)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: --help, --version, a usage error
        return stop.code if isinstance(stop.code, int) else exits.USAGE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; keep the interpreter from failing again at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.BROKEN_PIPE
    except DlrBufferError as error:
        return _explained(error)
    return code


def _explained(error: DlrBufferError) -> int:
    """Print what went wrong and return the exit code for it."""
    from dlr_buffer.client import DaemonUnreachable

    hint = None
    match error:
        case exits.UsageError():
            code, hint = exits.USAGE, "dlr-buffer --help and dlr-buffer COMMAND --help tell more"
        case DaemonUnreachable():
            from dlr_buffer.cli.connection import unreachable_hint

            code, hint = exits.UNREACHABLE, unreachable_hint(error)
        case _:
            code = exits.FAILED
    from dlr_buffer.cli.text import printable

    for line in str(error).splitlines():
        print(f"dlr-buffer: {printable(line)}", file=sys.stderr)
    if hint is not None:
        print(f"dlr-buffer: {hint}", file=sys.stderr)
    return code
