"""Programs that put receipts into a peer's queue, as the apps of a supplier would.

Run as a program of its own: ``python -m benchmarks.peers.producer MODULE FUNCTION THREADS FIRST COUNT AT_ONCE``. It
prints a line when it is ready, begins when it reads one, and prints one line of JSON at its end: when it began and
ended (CLOCK_MONOTONIC), its CPU seconds between, and how long each call took.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from benchmarks.harness import ids
from benchmarks.peers.receipt import Put


def _produce(
    putting: Callable[[], AbstractContextManager[Put]],
    calls: Sequence[Sequence[str]],
    began: threading.Barrier,
    took: list[float],
) -> None:
    with putting() as put:
        began.wait()
        for message_ids in calls:
            one = time.monotonic()
            put(message_ids)
            took.append(time.monotonic() - one)


def main() -> None:
    """Run the program."""
    module, function, *numbers = sys.argv[1:]
    threads, first, count, at_once = map(int, numbers)
    putting = getattr(importlib.import_module(module), function)
    names = ids.in_order(count, first)
    calls = [names[start : start + at_once] for start in range(0, count, at_once)]
    began = threading.Barrier(threads + 1)
    took: list[float] = []
    running = [
        threading.Thread(target=_produce, args=(putting, calls[number::threads], began, took))
        for number in range(threads)
    ]
    for each in running:
        each.start()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, start = time.process_time(), time.monotonic()
    began.wait()
    for each in running:
        each.join()
    end = time.monotonic()
    summary = {"began": start, "ended": end, "cpu_s": time.process_time() - cpu, "took_s": took}
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
