"""``status``, ``list`` and ``show``: what lies in the queue, and how the daemon is doing.

Everything is asked of the daemon and only laid out here. What comes next for a message is said by `next_step`, from the
resources of the local API.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from dlr_buffer.cli import exits
from dlr_buffer.cli.connection import admin_side, client_side, find_sockets
from dlr_buffer.cli.exits import UsageError
from dlr_buffer.cli.text import age, ahead, counted, moment, moment_ms, printable, size, span
from dlr_buffer.client import ApiError, Client, DaemonUnreachable

Resource = Mapping[str, Any]
"""A JSON object of the local API."""

_PAGE = 1000
_HEALTH_STYLES = {"open": "green", "paused": "yellow", "backing-off": "yellow"}
_STATUS_STYLES = {
    "dead": "red",
    "held": "yellow",
    "pending": "",
    "acknowledged": "green",
    "superseded": "dim",
}
_INTERMEDIATE = ("waiting", "enroute", "accepted", "unknown")
_FINAL = ("delivered", "expired", "undeliverable", "rejected")


def status(args: argparse.Namespace) -> int:
    """Show the daemon, its accounts and what is wrong."""
    with admin_side(args) as client:
        found = client.request("GET", "/v1/status")
    if args.json:
        print(json.dumps(found))
        return exits.OK
    _print_status(found, _now_ms())
    return exits.OK


def listing(args: argparse.Namespace) -> int:
    """List messages or receipts, page by page as they come."""
    from dlr_buffer.cli.steering import filters

    with admin_side(args) as client:
        pages = _pages(client, args.kind, filters(args), args.limit)
        if args.json:
            for page in pages:
                for item in page:
                    print(json.dumps(item))
            return exits.OK
        return _print_list(pages, args.kind)


def show(args: argparse.Namespace) -> int:
    """Show one message, its receipts, its history, and what comes next."""
    if not args.message_id:
        raise UsageError("the message id is empty")
    with client_side(args) as client:
        message = client.message(args.message_id, args.account)
    if args.json:
        print(json.dumps(message))
        return exits.OK
    _print_message(message, _account_of(args, message["account"]), _now_ms())
    return exits.OK


def next_step(message: Resource, account: Resource | None, now_ms: int) -> str:
    """Say in one sentence what will happen to a message next.

    ``account`` is its account's resource, None if only an admin may see that.
    """
    receipts = message["receipts"]
    final = message["state"] in _FINAL
    deadline = f"the wait for a final state ends {ahead(message['expires_at'], now_ms)}"
    open_receipts = [receipt for receipt in receipts if receipt["status"] in ("pending", "held")]
    if open_receipts:
        flying = next((receipt for receipt in open_receipts if receipt["in_flight"]), None)
        sentence = _next_for_receipt(flying or open_receipts[-1], account, now_ms)
        return f"{sentence}." if final else f"{sentence}; {deadline}."
    dead = next((receipt for receipt in reversed(receipts) if receipt["status"] == "dead"), None)
    if dead is not None and (final or dead is receipts[-1]):
        sentence = (
            f"Receipt {dead['request_id']} ({dead['message_state']}) is a dead letter: "
            f"`dlr-buffer retry {dead['request_id']}` sends it again"
        )
        return f"{sentence}." if final else f"{sentence}; {deadline}."
    if not final:
        expiry = ahead(message["expires_at"], now_ms)
        return f"It waits for a final state: if none is reported, it is reported as expired {expiry}."
    if receipts and receipts[-1]["status"] == "acknowledged":
        return f"Nothing: Smartswitch confirmed that it is {message['state']}; it is purged after the retention period."
    return f"Nothing: it is {message['state']}, and no receipt about that is left to send."


def _next_for_receipt(receipt: Resource, account: Resource | None, now_ms: int) -> str:
    name = f"Receipt {receipt['request_id']} ({receipt['message_state']})"
    if receipt["in_flight"]:
        return f"{name} is on the wire"
    if receipt["status"] == "held":
        return f"{name} is held until `dlr-buffer release {receipt['request_id']}`"
    health = "open" if account is None else account["health"]
    if health == "paused":
        return f"{name} waits until `dlr-buffer resume {receipt['account']}`"
    if health == "unconfigured":
        return f"{name} waits until the account {receipt['account']} is configured again"
    again = receipt["next_attempt_at"]
    if again is not None and moment_ms(again) > now_ms:
        return f"{name} was refused {counted(receipt['refusals'], 'time')} and is sent again {ahead(again, now_ms)}"
    if health != "open" and account is not None:
        probe = ahead(account["next_probe_at"], now_ms).replace("-", "soon")
        return (
            f"{name} waits for the account {receipt['account']}, which is {health} and is tried again {probe}"
        )
    return f"{name} is sent with one of the next batches"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _account_of(args: argparse.Namespace, name: str) -> Resource | None:
    """Return the account's resource, None if the admin socket is not for this user."""
    admin = Client(find_sockets(args, os.environ).admin, retry_for_s=0)
    try:
        with admin:
            accounts: list[Resource] = admin.request("GET", "/v1/accounts")["items"]
    except (DaemonUnreachable, ApiError):
        return None
    return next((account for account in accounts if account["name"] == name), None)


def _pages(client: Client, kind: str, narrow: Mapping[str, Any], limit: int) -> Iterator[list[Resource]]:
    """Yield the pages of a list until ``limit`` rows (0: all)."""
    query = {name: "true" if value is True else value for name, value in narrow.items()}
    left = limit
    while True:
        rows = min(left, _PAGE) if limit else _PAGE
        answer = client.request(
            "GET", f"/v1/{kind}?{urlencode(query | {'limit': rows}, errors='surrogatepass')}"
        )
        yield answer["items"]
        left -= len(answer["items"])
        if answer["next_cursor"] is None or (limit and left <= 0):
            return
        query = {"cursor": answer["next_cursor"]}


def _print_list(pages: Iterator[list[Resource]], kind: str) -> int:
    from dlr_buffer.cli.tables import Column, output_console, table

    console = output_console()
    now_ms = _now_ms()
    # Least widths keep the pages of a long list aligned; what varies most stands last.
    if kind == "messages":
        columns = [
            Column("STATE", 13),
            Column("REGISTERED", 19),
            Column("EXPIRES", 12),
            Column("FINAL SINCE", 19),
            Column("ACCOUNT", 8),
            Column("MESSAGE ID"),
        ]
    else:
        columns = [
            Column("REQUEST ID", 10, number=True),
            Column("STATUS", 12),
            Column("STATE", 13),
            Column("AGE", 7, number=True),
            Column("TRIED", 5, number=True),
            Column("REFUSED", 7, number=True),
            Column("NEXT TRY", 10),
            Column("ERROR", 14),
            Column("ACCOUNT", 8),
            Column("MESSAGE ID"),
        ]
    row = _message_row if kind == "messages" else _receipt_row
    printed = 0
    for page in pages:
        if page:
            rows = [row(item, now_ms) for item in page]
            console.print(table(columns, rows, header=printed == 0))
            printed += len(page)
    if not printed:
        print(f"no such {kind}", file=sys.stderr)
    return exits.OK


def _message_row(message: Resource, now_ms: int) -> list[Any]:
    final = message["finalized_at"] is not None
    return [
        message["state"] or ("waiting", "dim"),
        moment(message["registered_at"]),
        "-" if final else ahead(message["expires_at"], now_ms),
        moment(message["finalized_at"]),
        message["account"],
        message["message_id"],
    ]


def _receipt_row(receipt: Resource, now_ms: int) -> list[Any]:
    error = receipt["error"]
    return [
        receipt["request_id"],
        (_status_word(receipt), _STATUS_STYLES[receipt["status"]]),
        receipt["message_state"],
        age(receipt["created_at"], now_ms),
        str(receipt["attempts"]),
        str(receipt["refusals"]),
        ahead(receipt["next_attempt_at"], now_ms),
        "-" if error is None else error["code"],
        receipt["account"],
        receipt["message_id"],
    ]


def _status_word(receipt: Resource) -> str:
    return "in flight" if receipt["in_flight"] else str(receipt["status"])


def _print_status(found: Resource, now_ms: int) -> None:
    from dlr_buffer.cli.tables import Column, output_console, styled, table

    console = output_console()
    console.print(
        styled((f"dlr-buffer {found['version']}", "bold")),
        styled(f"up {span(found['uptime'] * 1000)}, process {found['pid']}"),
    )
    database = found["database"]
    console.print(
        styled(
            f"database {database['path']}: {size(database['size_bytes'])}, log {size(database['wal_bytes'])}, "
            f"{size(database['free_bytes'])} free on the disk (SQLite {database['sqlite_version']})"
        )
    )
    expiry = found["expiry"]
    if expiry["stopped"]:
        console.print(
            styled(
                (
                    f"expiry is stopped: {expiry['reason']}; `dlr-buffer expiry resume` lets it go on",
                    "bold red",
                )
            )
        )
    for alarm in found["alarms"]:
        console.print(styled((f"alarm: {alarm}", "bold red")))
    console.print()
    columns = [
        Column("ACCOUNT"),
        Column("HEALTH"),
        *(
            Column(title, number=True)
            for title in ("WAITING", "PENDING", "IN FLIGHT", "HELD", "DEAD", "OLDEST PENDING", "NEXT PROBE")
        ),
        Column("CAUSE"),
    ]
    console.print(
        table(columns, [_account_row(account, now_ms) for account in found["accounts"]], lined=True)
    )
    if rates := found["rates"]:
        words = ", ".join(f"{name.replace('_', ' ')} {rate:,.1f}" for name, rate in rates.items())
        console.print(styled(f"each second, over the last minute: {words}"))


def _account_row(account: Resource, now_ms: int) -> list[Any]:
    receipts = account["receipts"]
    dead = receipts.get("dead", 0)
    health = account["health"]
    return [
        account["name"],
        (health, _HEALTH_STYLES.get(health, "red")),
        f"{sum(account['messages'].get(state, 0) for state in _INTERMEDIATE):,}",
        f"{receipts.get('pending', 0):,}",
        f"{account['in_flight_receipts']:,}",
        f"{receipts.get('held', 0):,}",
        (f"{dead:,}", "red" if dead else ""),
        age(account["oldest_pending_at"], now_ms),
        ahead(account["next_probe_at"], now_ms),
        "-" if account["cause"] is None else f"{account['cause']} (since {age(account['since'], now_ms)})",
    ]


def _print_message(message: Resource, account: Resource | None, now_ms: int) -> None:
    from dlr_buffer.cli.tables import Column, output_console, styled, table

    console = output_console()
    console.print(
        styled((f"message {message['message_id']}", "bold")), styled(f"of account {message['account']}")
    )
    console.print(styled(f"state    {message['state'] or 'none reported yet'}"))
    console.print()
    columns = [Column("TIME (UTC)"), Column("RECEIPT", number=True), Column("EVENT"), Column("DETAIL")]
    console.print(table(columns, [row for _, row in sorted(_history(message), key=lambda pair: pair[0])]))
    console.print()
    if message["receipts"]:
        columns = [
            Column("RECEIPT", number=True),
            Column("STATUS"),
            Column("STATE"),
            Column("TRIED", number=True),
            Column("REFUSED", number=True),
            Column("LAST ERROR"),
        ]
        console.print(table(columns, [_own_receipt_row(receipt) for receipt in message["receipts"]]))
        console.print()
    print(f"next: {printable(next_step(message, account, now_ms))}")


def _own_receipt_row(receipt: Resource) -> list[Any]:
    error = receipt["error"]
    return [
        receipt["request_id"],
        (_status_word(receipt), _STATUS_STYLES[receipt["status"]]),
        receipt["message_state"],
        str(receipt["attempts"]),
        str(receipt["refusals"]),
        "-" if error is None else f"{error['code']}: {error['title']}: {error['detail']}",
    ]


def _history(message: Resource) -> Iterator[tuple[str, list[Any]]]:
    """Yield what happened to a message and its receipts, each with its time, in no order."""
    registered = message["registered_at"]
    valid = f"valid until {moment(message['expires_at'])}"
    yield registered, [moment(registered), "", "registered", valid]
    for receipt in message["receipts"]:
        for event in receipt["history"]:
            row = [moment(event["at"]), receipt["request_id"], event["event"], event["detail"]]
            yield event["at"], row
