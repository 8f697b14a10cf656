"""`dlr-buffer simulate`: the stand-in as a program, for a person who tries things out.

It reads the command line, prints a line for each request and a table at the end. The server and its behaviour
are elsewhere in this package.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dlr_buffer.simulator.settings import FaultKind, Outage, OutageKind, SimulatorSettings

if TYPE_CHECKING:
    from dlr_buffer.simulator.server import Exchange, Simulator

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SHOWN_IDS = 3
_FAILED = 1
_USAGE = 2


_LAST_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `dlr-buffer simulate` to its parser; `run` reads them."""
    parser.description = (
        "Run a Smartswitch stand-in on loopback: it takes receipts at /api/dlr, prints what it received, "
        "and can be told to misbehave. GET /_simulator/record and /_simulator/messages/ID serve the same as "
        "JSON. Stop it with Ctrl-C."
    )
    add = parser.add_argument
    add(
        "--listen",
        type=_address,
        default=("127.0.0.1", 8080),
        metavar="HOST:PORT",
        help="default 127.0.0.1:8080",
    )
    add("--login", default="LOGIN", help="the login to expect (default LOGIN, as in the seed)")
    add(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="file with the password to expect (default: PASSWORD)",
    )
    add("--latency", type=_duration, default=0.0, metavar="TIME", help="wait before every answer, e.g. 20ms")
    add("--jitter", type=_duration, default=0.0, metavar="TIME", help="wait up to so much longer, at random")
    add(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="KIND=RATE",
        help="share of requests to spoil, e.g. error-500=5%%; repeatable; kinds: " + ", ".join(FaultKind),
    )
    add(
        "--outage",
        type=_outage,
        action="append",
        default=[],
        metavar="START-END[:KIND]",
        help="window since the start, e.g. 10s-30s:refuse; repeatable; kinds: " + ", ".join(OutageKind),
    )
    add(
        "--refuse-id",
        action="append",
        default=[],
        metavar="ID",
        help="answer errors to requests with this message",
    )
    add(
        "--fail-id",
        action="append",
        default=[],
        metavar="ID",
        help="answer 500 to requests with this message",
    )
    add("--known-ids", type=Path, metavar="FILE", help="refuse all messages but these, one id a line")
    add(
        "--random-seed",
        type=int,
        default=0,
        metavar="N",
        help="the same seed draws the same faults (default 0)",
    )
    add("--quiet", action="store_true", help="print no line for each request")
    add("--json", action="store_true", help="print JSON lines")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return 0, 1 (cannot listen or read a file) or 2 (usage)."""
    try:
        settings = _settings(args)
    except OSError as error:
        return _fail(f"cannot read {error.filename}: {error.strerror}", _FAILED)
    except UnicodeDecodeError:
        return _fail("the files given with --password-file and --known-ids have to be UTF-8 text", _FAILED)
    except ValueError as error:
        return _fail(str(error), _USAGE)
    try:
        return asyncio.run(_serve(args, settings))
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from failing once more while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _settings(args: argparse.Namespace) -> SimulatorSettings:
    faults: dict[FaultKind, float] = dict(args.fault)
    password = "PASSWORD"  # noqa: S105 - the seed's own example
    if args.password_file is not None:
        password = args.password_file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    known = None
    if args.known_ids is not None:
        known = frozenset(line for line in args.known_ids.read_text(encoding="utf-8").splitlines() if line)
    return SimulatorSettings(
        login=args.login,
        password=password,
        random_seed=args.random_seed,
        latency=args.latency,
        latency_jitter=args.jitter,
        faults=faults,
        outages=tuple(args.outage),
        refuse_message_ids=frozenset(args.refuse_id),
        fail_message_ids=frozenset(args.fail_id),
        known_ids=known,
        unknown_ids="accept" if known is None else "refuse",
    )


async def _serve(args: argparse.Namespace, settings: SimulatorSettings) -> int:
    from dlr_buffer.simulator.server import Simulator

    host, port = args.listen
    stop = asyncio.Event()
    simulator = Simulator(settings, host=host, port=port)
    if not args.quiet:
        simulator.on_exchange = _printer(stop, as_json=args.json)
    try:
        await simulator.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = (
                f"port {port} of {host} is in use; choose another one with --listen {host}:PORT (0: any free)"
            )
        else:
            problem = f"cannot listen on {host}:{port}: {error.strerror}"
        return _fail(problem, _FAILED)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        print(
            json.dumps({"listening": simulator.url}) if args.json else f"listening on {simulator.url}",
            flush=True,
        )
        await stop.wait()
    finally:
        await simulator.stop()
    _print_summary(simulator, as_json=args.json)
    return 0


def _printer(stop: asyncio.Event, *, as_json: bool) -> Callable[[Exchange], None]:
    """Return what prints one line for a request, and ends the program once nobody reads its output."""
    show = _json_line if as_json else _text_line

    def print_exchange(exchange: Exchange) -> None:
        try:
            print(show(exchange), flush=True)
        except BrokenPipeError:
            stop.set()

    return print_exchange


def _json_line(exchange: Exchange) -> str:
    return json.dumps(
        {
            "at": _time(exchange.at),
            "request": exchange.number,
            "receipts": len(exchange.receipts),
            "outcome": exchange.outcome,
            "status": exchange.status,
            "message_ids": [receipt.message_id for receipt in exchange.receipts[:_SHOWN_IDS]],
        }
    )


def _text_line(exchange: Exchange) -> str:
    count = len(exchange.receipts)
    ids = " ".join(_printable(receipt.message_id) for receipt in exchange.receipts[:_SHOWN_IDS])
    more = " …" if count > _SHOWN_IDS else ""
    status = exchange.status or "-"
    noun = "receipt " if count == 1 else "receipts"
    return (
        f"{_time(exchange.at)}  {count:4} {noun}  {status!s:3}  {exchange.outcome:15}  {ids}{more}".rstrip()
    )


def _printable(text: str) -> str:
    """Keep an id from a client from writing control sequences to a terminal."""
    return text if text.isprintable() else json.dumps(text)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _print_summary(simulator: Simulator, *, as_json: bool) -> None:
    summary = simulator.record.summary()
    if as_json:
        print(json.dumps({"summary": summary}), flush=True)
        return
    rows: list[tuple[str, int]] = []
    for name, value in summary.items():
        if isinstance(value, dict):
            rows += [(f"{name.replace('_', ' ')}: {key}", number) for key, number in value.items()]
        else:
            rows.append((name.replace("_", " "), value))
    width = max(len(name) for name, _ in rows)
    print("\n".join(["", *(f"{name:{width}}  {number:>10,}" for name, number in rows)]), flush=True)


def _fail(problem: str, code: int) -> int:
    print(f"dlr-buffer simulate: {problem}", file=sys.stderr)
    return code


def _address(text: str) -> tuple[str, int]:
    host, colon, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not digits.isascii() or not digits.isdecimal() or int(digits) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, e.g. 127.0.0.1:8080")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise argparse.ArgumentTypeError(
            f"{host!r} is not a loopback address; the stand-in takes only 127.0.0.1, [::1] or localhost"
        )
    return host, int(digits)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, e.g. 20ms, 1.5s or 2m")
    return float(match[1]) * _UNITS_S[match[2]]


def _fault(text: str) -> tuple[FaultKind, float]:
    name, _, share = text.partition("=")
    if name not in list(FaultKind):
        raise argparse.ArgumentTypeError(f"{name!r} is not a fault; choose from " + ", ".join(FaultKind))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", share, re.ASCII)
    rate = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"{share!r} is not a rate; write {name}=5% or {name}=0.05")
    return FaultKind(name), rate


def _outage(text: str) -> Outage:
    window, _, kind = text.partition(":")
    start, dash, end = window.partition("-")
    if not dash:
        raise argparse.ArgumentTypeError(f"{text!r} is not START-END[:KIND], e.g. 10s-30s:reset")
    if kind and kind not in list(OutageKind):
        raise argparse.ArgumentTypeError(f"{kind!r} is not an outage; choose from " + ", ".join(OutageKind))
    try:
        return Outage(_duration(start), _duration(end), OutageKind(kind or OutageKind.ERROR_503))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
