"""Each account's server: whether its name can be resolved, it can be connected to, and its certificate is good.

Nothing is sent over the connection, neither login nor password; `probe` alone sends something, and is for whoever asks
for it by name.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, assert_never
from urllib.parse import urlsplit

from dlr_buffer.clock import SystemClock
from dlr_buffer.config import AccountSettings, SystemTrust
from dlr_buffer.daemon.provision import trust_for, upstream_settings
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Receipt, ReceiptStatus
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    Outage,
    RequestRefused,
    TooLarge,
)
from dlr_buffer.smartswitch.client import SmartswitchClient
from dlr_buffer.smartswitch.reachability import Reached

PATIENCE_MS: Final = 5_000
"""How long each step may take."""
SOON_MS: Final = 21 * 86_400_000
"""A certificate that ends within three weeks was not renewed as it should have been (most are at 30 days)."""
PROBE_REQUEST_ID: Final = 0
"""Never given to a receipt of the queue: those begin at 1."""
_DAY_MS: Final = 86_400_000

Connect = Callable[[AccountSettings], SmartswitchClient]


def client_of(account: AccountSettings) -> SmartswitchClient:
    """Make the client that the daemon would make for the account, but for its patience."""
    context, _ = trust_for(account, SystemTrust())
    settings = replace(upstream_settings(account), timeout_ms=PATIENCE_MS)
    return SmartswitchClient(settings, SystemClock(), context)


async def reach_all(
    accounts: Sequence[AccountSettings], now_ms: int, connect: Connect = client_of
) -> list[list[Finding]]:
    """Try every account at once; the findings are in their order."""
    return await asyncio.gather(*(reach(account, now_ms, connect) for account in accounts))


async def reach(account: AccountSettings, now_ms: int, connect: Connect = client_of) -> list[Finding]:
    """Resolve the name of the account's server, connect, shake hands, and close; nothing else.

    Through a proxy it is the proxy's name that has to be resolved here.
    """
    host = urlsplit(account.proxy or account.url).hostname or ""
    resolved = await resolve(host)
    if isinstance(resolved, str):
        return [
            error(
                "upstream-dns",
                f"account {account.name}: the name {host} can't be resolved: {resolved}",
                f"check the account's url, and the name servers: getent ahosts {host}",
            )
        ]
    client = connect(account)
    try:
        reached = await client.reach()
    finally:
        await client.aclose()
    found = list(connection_findings(account, reached, now_ms))
    if resolved != (host,):  # an address needs no name server
        found.insert(0, ok("upstream-dns", f"account {account.name}: {host} is {', '.join(resolved)}"))
    return found


async def resolve(host: str, patience_ms: int = PATIENCE_MS) -> tuple[str, ...] | str:
    """Return the addresses of ``host``, or why there are none."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[str, ...] | str] = loop.create_future()

    def settle(result: tuple[str, ...] | str) -> None:
        if not found.done():
            found.set_result(result)

    def look_up() -> None:
        result: tuple[str, ...] | str
        try:
            addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = tuple(dict.fromkeys(str(address[4][0]) for address in addresses))
        except OSError as problem:
            result = problem.strerror or "no address"
        except UnicodeError:
            result = "this is no host name"
        with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any longer
            loop.call_soon_threadsafe(settle, result)

    # A resolver can't be interrupted: a thread of its own, which the end of the program does not wait for.
    threading.Thread(target=look_up, daemon=True).start()
    try:
        async with asyncio.timeout(patience_ms / 1000):
            return await found
    except TimeoutError:
        return f"no answer within {patience_ms / 1000:g} s"


def connection_findings(
    account: AccountSettings, reached: Reached | Outage, now_ms: int
) -> Iterator[Finding]:
    """Judge what a connection with the account's server showed."""
    about = f"account {account.name}"
    if isinstance(reached, Outage):
        yield error(
            "upstream-tls" if reached.cause == "tls" else "upstream-connect",
            f"{about}: {reached.detail}",
            _ADVICE.get(reached.cause, _ADVICE["unreachable"]),
        )
        return
    where = reached.address if account.proxy is None else f"its server through the proxy {reached.address}"
    if reached.encryption is None:
        if account.allow_http:
            yield warning(
                "upstream-tls",
                f"{about}: connected to {where} without TLS (allow_http): login and password can be read on"
                " the way",
                "use an https:// url, and remove allow_http",
            )
        else:
            yield ok("upstream-tls", f"{about}: connected to {where}, on this machine and without TLS")
        return
    encryption = reached.encryption
    yield ok("upstream-tls", f"{about}: connected to {where}, {encryption.protocol}, {encryption.cipher}")
    names = ", ".join(encryption.names)
    if encryption.ends_ms is None:
        return
    left_ms = encryption.ends_ms - now_ms
    days = left_ms // _DAY_MS
    words = f"{about}: the certificate for {names}, from {encryption.issuer}, is good for {days} more days"
    if left_ms < SOON_MS:
        yield warning(
            "upstream-certificate",
            words,
            "ask whoever runs the server to renew it: after that nothing is delivered",
        )
    else:
        yield ok("upstream-certificate", words)


_ADVICE: Final = {
    "dns": "check the account's url, and the name servers: resolvectl status",
    "refused": "check host and port of the account's url; ask whoever runs the server, or its firewall",
    "reset": "ask whoever runs the server: it takes connections and breaks them off",
    "timeout": "a firewall on the way drops the packets, or the server hangs: try it with curl from here",
    "proxy": "check the account's proxy, and ask whoever runs it whether it lets this host through",
    "tls": "check the account's url, this machine's trust store and its clock; else ask whoever runs the server",
    "unreachable": "check this machine's network: ip route; ip addr",
}


async def probe(account: AccountSettings, connect: Connect = client_of) -> Finding:
    """Send one receipt for a message that never was, with login and password, and say what came of it.

    Smartswitch gets ``enroute``, an intermediate state, for a made-up message id, under the request_id 0, which the
    queue never uses.
    """
    receipt = Receipt(
        request_id=PROBE_REQUEST_ID,
        account=account.name,
        message_id=f"dlr-buffer-doctor-{secrets.token_hex(8)}",
        message_state=MessageState.ENROUTE,
        status=ReceiptStatus.PENDING,
        attempts=0,
        refusals=0,
        created_at_ms=0,
    )
    client = connect(account)
    try:
        answer = await client.send([receipt])
    finally:
        await client.aclose()
    return probe_finding(account.name, answer)


def probe_finding(name: str, answer: Answer) -> Finding:
    """Judge Smartswitch's answer to a probe."""
    about = f"account {name}"
    match answer:
        case AuthenticationFailed():
            return error(
                "upstream-probe",
                f"{about}: Smartswitch refuses login or password ({answer.error.code}: {answer.error.title})",
                "correct login and password_file, then: sudo systemctl reload dlr-buffer",
            )
        case Answered(acknowledged=acknowledged) if acknowledged:
            return ok(
                "upstream-probe",
                f"{about}: Smartswitch takes login and password (and any message id: it said ok)",
            )
        case Answered() | RequestRefused():
            said = (
                answer.error.code
                if isinstance(answer, RequestRefused)
                else "a refusal of the made-up message"
            )
            return ok(
                "upstream-probe",
                f"{about}: Smartswitch did not complain of login and password; its answer to a message that never was:"
                f" {said}",
            )
        case TooLarge():
            return error(
                "upstream-probe",
                f"{about}: the server refuses even one receipt as too long (HTTP {answer.status})",
                "check the account's url, and what stands in front of the server",
            )
        case Outage():
            return error(
                "upstream-probe",
                f"{about}: no answer that says anything: {answer.detail}",
                "check the account's url: it has to end with the path of the API",
            )
        case _:
            assert_never(answer)


def left_out_finding(accounts: Sequence[AccountSettings]) -> Finding:
    """Say that the network was not asked for."""
    return note(
        "upstream",
        f"not looked at: the servers of {', '.join(each.name for each in accounts)} (--no-network)",
    )
