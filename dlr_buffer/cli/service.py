"""``run``, ``check-config``, ``reload``, ``simulate``, ``demo``, ``bench``: what only calls what lives elsewhere."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dlr_buffer.cli import exits

_RELOADED_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.05


def run(args: argparse.Namespace) -> int:
    """Run the daemon until it is told to stop."""
    from dlr_buffer.daemon.running import run_daemon

    return run_daemon(args.config)


def check_config(args: argparse.Namespace) -> int:
    """Print the effective configuration without its secrets, or every problem, one a line.

    What will need care soon (a certificate that ends) is said as a warning, and what only root can read.
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
    for detail in _closed_to_the_service(args.config):
        print(f"warning: {detail}", file=sys.stderr)
    print(config.describe(configuration).rstrip("\n"))
    for name in ("client", "admin"):
        if keys := config.left_to_socket_units(configuration.api, name):
            unit = f"dlr-buffer-{name}.socket"
            print(
                f"# {', '.join(keys)}: no effect where {unit} makes the socket; set SocketMode=, SocketGroup= there"
            )
    return exits.OK


def _closed_to_the_service(config: Path | None) -> Iterator[str]:
    """Say which files root, who checks them for the service, can read and the service's user can't."""
    if os.geteuid() != 0:
        return
    from dlr_buffer.config import survey
    from dlr_buffer.doctor import access, configuration, groups

    if (daemon := access.identity_of(groups.SERVICE_USER)) is None:
        return
    # What systemd hands over has its own ways of being read, and is there for the service anyway.
    handed_over = os.environ.get("CREDENTIALS_DIRECTORY") or "/run/credentials"
    found = survey(config, os.environ)
    files = {found.path: True}
    for key, path in found.files.items():
        if not path.is_relative_to(handed_over):
            files[path] = not key.endswith("ca_file")
    for path, secret in files.items():
        with suppress(OSError):  # exchanged since it was read
            if (closed := configuration.closed_finding(path, daemon, secret=secret)) is not None:
                yield f"{closed.what}; the service can't start with it: {closed.remedy}"


def reload(args: argparse.Namespace) -> int:
    """Have the daemon take over its configuration, and wait until it has; tell what is wrong otherwise.

    It alone can say: only the daemon itself has what systemd's LoadCredential= hands over.
    """
    from dlr_buffer.cli.connection import ConfigurationUnusable, admin_side
    from dlr_buffer.client import DaemonUnreachable

    try:
        client = admin_side(args)
    except ConfigurationUnusable as error:
        if args.pid is None:
            raise
        # The daemon finds the same, and says so in its log and its status until a reload succeeds.
        _hang_up(args.pid)
        raise exits.NotReloaded(f"the configuration before holds: {error}") from None
    except DaemonUnreachable:
        if args.pid is None:
            raise
        # It may not be ours to ask, but we were told whom to tell.
        _hang_up(args.pid)
        print("dlr-buffer: the daemon was told to reload; whether it did is in its log", file=sys.stderr)
        return exits.OK
    with client:
        status = client.request("GET", "/v1/status")
        before = status["configuration"]["reloads"]
        _hang_up(args.pid if args.pid is not None else _here(status["pid"]))
        ends = time.monotonic() + _RELOADED_WITHIN_S
        while True:
            told = client.request("GET", "/v1/status")["configuration"]
            if told["reloads"] != before:
                break
            if time.monotonic() > ends:
                raise exits.NotReloaded(
                    f"the daemon has not reloaded for {_RELOADED_WITHIN_S:g} s; its log tells more"
                )
            time.sleep(_LOOK_EVERY_S)
    if told["error"] is not None:
        raise exits.NotReloaded(f"the configuration before holds: {told['error']}")
    print("reloaded: the daemon goes by the configuration as it is now")
    return exits.OK


def _hang_up(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise exits.NotReloaded(
            f"process {pid} can't be told to reload: {error.strerror}; ask as root"
        ) from None


def _here(pid: int) -> int:
    """Return ``pid`` if it is a daemon's on this side: one in a container gives its number in there."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        command = b""
    if b"dlr-buffer" not in command and b"dlr_buffer" not in command:
        raise exits.NotReloaded(f"no process {pid} here is a daemon; name it with --pid")
    return pid


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
