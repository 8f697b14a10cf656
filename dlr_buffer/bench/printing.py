"""What ``dlr-buffer bench`` prints: a line for each figure as it comes, and then what limits this machine."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

from dlr_buffer.bench.limits import Figure, limits
from dlr_buffer.bench.measuring import BULK, DRAIN, SINGLES, SYNCS, measure, workplace
from dlr_buffer.storage.file_systems import file_system
from dlr_buffer.throwaway import sigterm_interrupts


def run_bench(parent: Path, *, seconds: float, as_json: bool = False) -> int:
    """Measure the disk under ``parent``, ``seconds`` for each figure, and print it; returns 0.

    ``as_json`` prints an object a line: the place, each figure, and the limits. Raises BenchFailed, and
    KeyboardInterrupt on SIGINT or SIGTERM, after everything is stopped and removed.
    """
    figures: dict[str, Figure] = {}
    with sigterm_interrupts(), workplace(parent) as place:
        where = file_system(parent)
        cores = len(os.sched_getaffinity(0))
        free = shutil.disk_usage(parent).free
        if as_json:
            _line(
                {
                    "folder": str(parent),
                    "file_system": where.kind,
                    "source": where.source,
                    "options": list(where.options),
                    "free_bytes": free,
                    "cores": cores,
                    "sqlite": sqlite3.sqlite_version,
                    "seconds": seconds,
                }
            )
        else:
            print(
                f"Measuring {parent} ({where}, {free / 2**30:,.0f} GiB free), {cores} cores, SQLite"
                f" {sqlite3.sqlite_version}, {seconds:g} s for each line.",
                flush=True,
            )
        for figure in measure(place, seconds):
            figures[figure.name] = figure
            _line(_resource(figure)) if as_json else print(_words(figure), flush=True)
    preloaded = os.environ.get("LD_PRELOAD", "")
    sentences = limits(
        where,
        sync=figures[SYNCS],
        singles=figures[SINGLES],
        bulk=figures[BULK],
        drain=figures[DRAIN],
        preloaded=preloaded,
    )
    if as_json:
        _line({"limits": sentences})
    else:
        print()
        for sentence in sentences:
            print(f"- {sentence}")
    return 0


def _words(figure: Figure) -> str:
    words = f"{figure.name:<46} {figure.rate:>10,.0f} a second"
    if figure.median_s is not None and figure.p99_s is not None:
        words += f"   median {figure.median_s * 1000:>6.3f} ms, 99% within {figure.p99_s * 1000:>7.3f} ms"
    if figure.cores is not None:
        words += f"   the daemon took {figure.cores:.0%} of a core"
    return words


def _resource(figure: Figure) -> dict[str, object]:
    return {
        "figure": figure.name,
        "per_second": round(figure.rate, 1),
        "median_ms": None if figure.median_s is None else round(figure.median_s * 1000, 4),
        "p99_ms": None if figure.p99_s is None else round(figure.p99_s * 1000, 4),
        "daemon_cores": None if figure.cores is None else round(figure.cores, 3),
    }


def _line(resource: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(resource) + "\n")
    sys.stdout.flush()
