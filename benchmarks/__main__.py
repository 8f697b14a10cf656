"""Runs the benchmarks and writes their tables into docs/performance.md: ``python -m benchmarks [--full] [NAME …]``.

The short form takes under ten minutes on two cores, the full one hours of queues with millions of messages. Run it on
a machine that does nothing else; what it prints is what it wrote.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    against_peers,
    crowd,
    draining,
    end_to_end,
    flat,
    light,
    one_processor,
    outage,
    registering,
    reporting,
    shell,
)
from benchmarks.harness import machine
from benchmarks.harness.tables import Table, write_page

PROGRAMS: dict[str, Callable[[bool], list[Table]]] = {
    "registering": lambda full: registering.measure(9 if full else 5),
    "reporting": lambda full: reporting.measure(9 if full else 5),
    "draining": lambda full: draining.measure(9 if full else 5, 200_000 if full else 60_000),
    "end-to-end": lambda full: end_to_end.measure(full=full),
    "light": lambda full: light.measure(full=full),
    "one-processor": lambda full: one_processor.measure(9 if full else 3),
    "shell": lambda full: shell.measure(45 if full else 15),
    "flat": lambda full: flat.measure(full=full),
    "crowd": lambda full: crowd.measure(5 if full else 2),
    "outage": lambda full: outage.measure(5 if full else 2),
    "peers": lambda full: against_peers.measure(full=full),
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds, longer runs, ten million messages")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(PROGRAMS)}; all if left out"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in PROGRAMS]:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(PROGRAMS)}")
    logging.disable(logging.WARNING)
    here = str(machine.look(Path(tempfile.gettempdir())))
    print(f"On {here}.\n", flush=True)
    missing: list[str] = []
    for name in options.names or PROGRAMS:
        began = time.monotonic()
        tables = PROGRAMS[name](options.full)
        for table in tables:
            print(table, flush=True)
        missing += write_page(tables, here)
        print(f"({name} took {time.monotonic() - began:.0f} s)\n", flush=True)
    if missing:
        print(f"docs/performance.md has no place for {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
