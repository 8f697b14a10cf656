"""``retry``, ``hold``, ``release``, ``expire``, ``delete``, ``pause``, ``resume`` and ``expiry resume``.

What is meant is read from the command line and shown as a number before anything changes. What an action does to a
message or a receipt is decided by the daemon.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dlr_buffer.cli import exits
from dlr_buffer.cli.connection import admin_side
from dlr_buffer.cli.exits import UsageError
from dlr_buffer.cli.text import counted, printable
from dlr_buffer.client import Client

_REQUEST_ID = re.compile(r"[1-9][0-9]{0,18}")
EVERYTHING = "ALL"
IDS_PER_REQUEST = 10_000
"""The daemon takes 50,000."""
_DONE = {"retry": "retried", "hold": "held", "release": "released", "expire": "expired", "delete": "deleted"}


@dataclass(frozen=True, slots=True)
class Target:
    """What an action means: request bodies of the local API, of which each names a part."""

    bodies: tuple[dict[str, Any], ...]
    named: bool
    """Whether ids were given, so that finding none of them is a failure."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows an action changed (or would), skipped for their status, and left as they were in flight."""

    changed: int = 0
    skipped: int = 0
    in_flight: int = 0


def act(args: argparse.Namespace) -> int:
    """Run one action on receipts or messages, after a question unless ``--yes`` or ``--dry-run``."""
    target = read_target(args)
    if not (args.yes or args.dry_run or sys.stdin.isatty()):
        raise UsageError(
            "standard input is not a terminal, so nobody can be asked: add --yes to go on, or --dry-run to count"
        )
    noun = args.kind.removesuffix("s")
    path = f"/v1/{args.kind}/{args.action}"
    with admin_side(args) as client:
        if args.dry_run or not args.yes:
            would = _apply(client, path, target, dry_run=True)
            if args.dry_run:
                _print(args, would)
                return _code(target, would)
            print(f"{_worded(args, would, 'would be ')}.", file=sys.stderr)
            if not would.changed:
                return _code(target, would)
            question = f"{args.action.capitalize()} {counted(would.changed, noun)}? [y/N] "
            if not _confirmed(question):
                print("nothing was changed", file=sys.stderr)
                return exits.FAILED
        done = _apply(client, path, target, dry_run=False)
    _print(args, done)
    return _code(target, done)


def steer_account(args: argparse.Namespace) -> int:
    """Pause or resume an account."""
    with admin_side(args) as client:
        account = client.request("POST", f"/v1/accounts/{quote(args.account, safe='')}/{args.action}")
    if args.json:
        print(json.dumps(account))
    else:
        print(f"account {printable(account['name'])} is {printable(account['health'])}")
    return exits.OK


def resume_expiry(args: argparse.Namespace) -> int:
    """Let messages expire again after a clock alarm."""
    with admin_side(args) as client:
        expiry = client.request("POST", "/v1/expiry/resume")
    if args.json:
        print(json.dumps(expiry))
    elif expiry["stopped"]:
        print(f"expiry is still stopped: {printable(str(expiry['reason']))}")
    else:
        print("expiry runs")
    return exits.FAILED if expiry["stopped"] else exits.OK


def filters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the filter options that were given, by the local API's names."""
    names = ("account", "message_id", "state", "status", "waiting", "older_than", "newer_than", "error_code")
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def read_target(args: argparse.Namespace) -> Target:
    """Read what an action is to be applied to; raises UsageError unless it is exactly one of the three kinds."""
    ids: list[str] = args.targets
    narrow = filters(args)
    if EVERYTHING in ids:
        if len(ids) > 1 or narrow:
            raise UsageError(f"{EVERYTHING} means everything and cannot stand beside ids or filter options")
        return Target(({"filter": {"all": True}},), named=False)
    if not ids:
        if not narrow:
            raise UsageError(f"say what is meant: ids, filter options, or {EVERYTHING} in capitals")
        return Target(({"filter": narrow},), named=False)
    if args.kind == "receipts":
        if narrow:
            raise UsageError("give ids or filter options, not both")
        if bad := [text for text in ids if not _REQUEST_ID.fullmatch(text)]:
            raise UsageError(
                f"{bad[0]!r} is not a request id (a number from 1 on, see `dlr-buffer list receipts`)"
            )
        return Target(tuple({"request_ids": part} for part in _parts(ids)), named=True)
    account = {
        key: narrow.pop(key) for key in ("account",) if key in narrow
    }  # it is part of a message's name
    if narrow:
        raise UsageError("give ids or filter options, not both (only --account names the account of the ids)")
    return Target(tuple({"message_ids": part} | account for part in _parts(ids)), named=True)


def _parts(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + IDS_PER_REQUEST] for start in range(0, len(ids), IDS_PER_REQUEST)]


def _apply(client: Client, path: str, target: Target, *, dry_run: bool) -> Outcome:
    total = Outcome()
    for body in target.bodies:
        part = client.request("POST", path, body | {"dry_run": dry_run})
        total = Outcome(
            total.changed + part["changed"],
            total.skipped + part["skipped"],
            total.in_flight + part["in_flight"],
        )
    return total


def _worded(args: argparse.Namespace, outcome: Outcome, auxiliary: str = "") -> str:
    words = f"{counted(outcome.changed, args.kind.removesuffix('s'))} {auxiliary}{_DONE[args.action]}"
    if outcome.skipped:
        words += f", {outcome.skipped:,} skipped (unknown, or {args.action} does not apply to them)"
    if outcome.in_flight:
        words += f", {outcome.in_flight:,} left alone (in flight)"
    return words


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    if not args.json:
        print(_worded(args, outcome, "would be " if args.dry_run else ""))
        return
    facts = {
        "action": args.action,
        "kind": args.kind,
        "changed": outcome.changed,
        "skipped": outcome.skipped,
        "in_flight": outcome.in_flight,
        "dry_run": args.dry_run,
    }
    print(json.dumps(facts))


def _code(target: Target, outcome: Outcome) -> int:
    return exits.FAILED if target.named and not outcome.changed else exits.OK


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
