"""``run``, ``check-config``, ``simulate``, ``demo`` and ``bench``: commands that only call what lives elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from dlr_buffer.cli import exits


def run(args: argparse.Namespace) -> int:
    """Run the daemon until it is told to stop."""
    from dlr_buffer.daemon import run_daemon

    return run_daemon(args.config)


def check_config(args: argparse.Namespace) -> int:
    """Print the effective configuration without its secrets, or every problem, one a line.

    What will need care soon (a certificate that ends) is said as a warning.
    """
    from dlr_buffer import config

    try:
        configuration = config.load(args.config, os.environ)
    except config.ConfigurationError as error:
        for problem in error.problems:
            print(f"{problem.path}: {problem.detail}", file=sys.stderr)
        return exits.FAILED
    for problem in config.certificate_warnings(configuration, time.time_ns() // 1_000_000):
        print(f"warning: {problem.path}: {problem.detail}", file=sys.stderr)
    print(config.describe(configuration).rstrip("\n"))
    return exits.OK


def simulate(args: argparse.Namespace) -> int:
    """Run the Smartswitch stand-in."""
    from dlr_buffer.simulator.command import run as run_simulator

    return run_simulator(args)


def demo(args: argparse.Namespace) -> int:
    """Show the whole job."""
    from dlr_buffer.demo import run_demo

    return run_demo(messages=args.messages, faults=not args.no_faults, keep=args.keep, as_json=args.json)


def bench(args: argparse.Namespace) -> int:
    """Measure this machine, on the disk of the configured queue if nothing else is named."""
    from dlr_buffer.bench.printing import run_bench

    return run_bench(args.folder or _place_of_the_queue(args), seconds=args.seconds, as_json=args.json)


def _place_of_the_queue(args: argparse.Namespace) -> Path:
    """Return the folder of the configured queue; the current one if there is none that may be written to."""
    from dlr_buffer.cli.connection import ConfigurationUnusable
    from dlr_buffer.cli.database import find_database

    try:
        folder = find_database(args, os.environ).parent
    except ConfigurationUnusable:
        if args.config is not None:
            raise
        return Path.cwd()
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path.cwd()
