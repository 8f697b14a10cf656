"""``run``, ``check-config``, ``simulate`` and ``demo``: commands that only call what lives elsewhere."""

from __future__ import annotations

import argparse
import os
import sys

from dlr_buffer.cli import exits


def run(args: argparse.Namespace) -> int:
    """Run the daemon until it is told to stop."""
    from dlr_buffer.daemon import run_daemon

    return run_daemon(args.config)


def check_config(args: argparse.Namespace) -> int:
    """Print the effective configuration without its secrets, or every problem, one a line."""
    from dlr_buffer import config

    try:
        configuration = config.load(args.config, os.environ)
    except config.ConfigurationError as error:
        for problem in error.problems:
            print(f"{problem.path}: {problem.detail}", file=sys.stderr)
        return exits.FAILED
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
