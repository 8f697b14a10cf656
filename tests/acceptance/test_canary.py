"""A canary's login, password, proxy credentials and private key: they are on the wire, and nowhere that anybody looks.

`test_09_secrets` lets everything go wrong that can; here everything is run and looked at that there is: every command
of the program, every path of the API that its description names, every file, the process as the system shows it, and
its last words. Neither list is kept by hand, so that a new command or path is looked at from its first day.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import trustme

from dlr_buffer.cli import main
from dlr_buffer.cli.parser import build_parser
from dlr_buffer.simulator import FaultKind, SimulatorSettings
from tests.acceptance.harness import DaemonProcess, Fixed, Site, StandIn, eventually

LOGIN = "ca/nary+7f3a lög&in"
PASSWORD = 'ca%nary "9c1e" wö=rd+'
PROXY = "proxy-ca/nary:p&ss wörd+4d2b"
KEY = trustme.CA().issue_cert("supplier.example.com")
SECRETS = (LOGIN, PASSWORD, *PROXY.split(":"), PROXY)
REFUSED_BY_PROXY = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
)
IDS = [f"c{number:03}" for number in range(100)]
STREAM_S = 1.0
"""How long an answer without an end is read."""
ENDLESS_S = 5.0
"""How long a command that may be without an end is run."""
PATIENCE_S = 60.0


def spellings(secret: str) -> Iterator[bytes]:
    """Every way in which a secret may be written by accident."""
    raw = secret.encode()
    for text in (
        secret,
        html.escape(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    ):
        yield text.encode()
    for text in (
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
    ):
        yield text.encode()
        yield text.lower().encode()
    yield repr(raw)[2:-1].encode()
    yield raw.hex().encode()
    for before in range(3):
        # Of base64 that has it somewhere within, the characters that do not depend on what stands beside it.
        encoded = base64.b64encode(b"\0" * before + raw)
        middle = encoded[(before * 8 + 5) // 6 : (before * 8 + 8 * len(raw)) // 6]
        yield middle
        yield middle.replace(b"+", b"-").replace(b"/", b"_")


CANARIES = sorted({spelled for secret in SECRETS for spelled in spellings(secret)}) + [
    line for line in KEY.private_key_pem.bytes().splitlines() if not line.startswith(b"---")
]


def check_clean(what: str, content: str | bytes) -> None:
    """Fail, with the place but not the secret, if there is one in it."""
    found = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    for canary in CANARIES:
        at = found.find(canary)
        assert at < 0, f"{what}: after …{found[max(0, at - 200) : at]!r}"


def write(path: Path, content: bytes) -> str:
    """Write a secret as an admin should; returns the path."""
    path.touch(0o600)
    path.write_bytes(content)
    return str(path)


def configure(site: Site, stand_in: StandIn, proxy: str) -> None:
    """An account for each way to send, with each kind of secret in a file: the configuration itself holds none."""
    secrets = site.folder / "secrets"
    secrets.mkdir(0o700)
    login = write(secrets / "login", LOGIN.encode())
    password = write(secrets / "password", PASSWORD.encode())
    certificate = write(secrets / "client.pem", KEY.private_key_and_cert_chain_pem.bytes())
    base = stand_in.simulator.base_url
    accounts: dict[str, dict[str, object]] = {
        "form": {"url": f"{base}/api/dlr", "parameters": "form"},
        "lost": {"url": f"{base}/lost"},
        "proxied": {
            "url": "https://smartswitch.invalid/api/dlr",
            "proxy": proxy,
            "proxy_credentials_file": write(secrets / "proxy", PROXY.encode()),
        },
        "tls": {"url": f"https://127.0.0.1:{stand_in.simulator.port}/api/dlr"},
    }
    site.configure(
        stand_in.url,
        others=accounts,
        retry={"max": "100ms"},
        tables={"log": {"level": "debug"}, "accounts.tls.tls": {"client_cert": certificate}},
    )
    text = site.config.read_text("utf-8").replace('login = "LOGIN"', f'login_file = "{login}"')
    for name in ("default", *accounts):
        text = text.replace(str(site.password_file(name)), password)
        site.password_file(name).unlink()
    site.config.write_text(text, encoding="utf-8")


# --- what there is to look at


ARGUMENTS: dict[str, list[list[str]]] = {
    "run": [[]],  # a second daemon on the queue
    "register": [["one"]],
    "report": [["one", "--state", "delivered"]],
    "show": [["one"], [IDS[0]], ["p0", "--account", "proxied"]],
    "list": [["messages"], ["receipts"], ["receipts", "--status", "dead"]],
    "retry": [["ALL", "--yes"]],
    "hold": [["ALL", "--yes"]],
    "release": [["ALL", "--yes"]],
    "expire": [["ALL", "--dry-run"]],
    "delete": [["receipts", "ALL", "--dry-run"], ["messages", "ALL", "--dry-run"]],
    "pause": [["form"]],
    "resume": [["form"]],
    "expiry": [["resume"]],
    "backup": [["BACKUP"]],
    "check-db": [[], ["BACKUP"]],
    "simulate": [["--help"]],
    "demo": [["--help"]],
    "bench": [["--help"]],
}
"""What each command is given; one that is not here is run as it is."""


def commands(site: Site) -> Iterator[list[str]]:
    """Each command that the program has, with its arguments."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                for arguments in ARGUMENTS.get(name, [[]]):
                    for further in ([], ["--json"]):
                        backup = str(site.folder / f"backup{len(further)}.db")
                        yield [name, *(backup if each == "BACKUP" else each for each in arguments), *further]


def run(site: Site, arguments: list[str]) -> tuple[int, bytes]:
    """Run a command as a user would; one that never ends is ended after a while."""
    known = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NOTIFY_SOCKET", "DLR_BUFFER_CONFIG")
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dlr_buffer", "--config", str(site.config), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=known,
            timeout=ENDLESS_S,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        return 0, stopped.output or b""
    return done.returncode, done.stdout


def run_here(site: Site, arguments: list[str], shown: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that is known to end in this process, which takes a fraction of the time."""
    shown.readouterr()
    try:
        code = main(["--config", str(site.config), *arguments])
    except SystemExit as ended:  # argparse's, for --help
        code = int(ended.code or 0)
    said = shown.readouterr()
    return code, said.out + said.err


def answers(site: Site) -> Iterator[tuple[str, bytes]]:
    """What each path that the API describes says, head and body."""
    description = site.ask("GET", "/openapi.json")
    paths = {path for path, methods in description["paths"].items() if "get" in methods}
    assert {"/v1/status", "/metrics", "/v1/messages/{message_id}"} <= paths
    for path in sorted(paths | {"/openapi.json", "/nowhere"}):
        target = path.replace("{message_id}", IDS[0]).replace("{request_id}", "1")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(site.admin_socket))
            asking.settimeout(STREAM_S)
            asking.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = bytearray()
            try:
                while piece := asking.recv(65536):
                    answer += piece
            except TimeoutError:
                pass  # a stream of events has no end
        assert answer, path
        yield path, bytes(answer)


def shown_by_the_system(daemon: DaemonProcess) -> Iterator[tuple[str, bytes]]:
    """The process as `/proc` has it."""
    folder = Path(f"/proc/{daemon.pid}")
    for name in ("cmdline", "environ", "status", "maps", "mountinfo"):
        yield name, (folder / name).read_bytes()
    for title in folder.glob("task/*/comm"):
        yield str(title), title.read_bytes()
    for opened in (folder / "fd").iterdir():
        try:
            yield f"fd/{opened.name}", os.fsencode(opened.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile


# --- tests


def test_every_spelling_is_found() -> None:
    """The search itself finds what it is to find, wherever it stands."""
    for secret in SECRETS:
        for shown in (
            f"password={secret}!",
            f"?_password={quote(secret, safe='')}&",
            json.dumps({"password": secret}),
            f"Authorization: Basic {base64.b64encode(f'user:{secret}'.encode()).decode()}",
            base64.b64encode(f"{secret}x".encode()).decode(),
            repr(secret.encode()),
        ):
            with pytest.raises(AssertionError):
                check_clean("here", shown)
    check_clean("here", "no secret at all")


def test_the_canaries_are_nowhere(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Run everything, with faults and at level debug; then a crash: they were sent, and can be found in nothing."""
    faults = {FaultKind.RESET: 0.1, FaultKind.ERROR_500: 0.1, FaultKind.NOT_JSON: 0.1}
    settings = SimulatorSettings(login=LOGIN, password=PASSWORD, faults=faults)
    with StandIn(settings) as stand_in, Fixed(*[REFUSED_BY_PROXY] * 1000) as proxy:
        configure(site, stand_in, proxy.url.removesuffix("/api/dlr"))
        daemon = site.start(PYTHONDEVMODE="1", PYTHONASYNCIODEBUG="1", PYTHONFAULTHANDLER="1")
        with site.client() as app:
            app.report_many([(message_id, "delivered") for message_id in IDS])
            app.report_many(
                [
                    {"message_id": f"{name[0]}{number}", "message_state": "delivered", "account": name}
                    for name in ("form", "lost", "proxied", "tls")
                    for number in range(5)
                ]
            )
        for name, cause in (("proxied", "proxy"), ("tls", "tls")):
            site.wait_for_account(lambda account, cause=cause: cause in str(account["cause"]), name)  # type: ignore[misc] # mypy can't infer lambdas with defaults
        site.wait_until_sent()
        targets = stand_in.look(lambda record: [*record.targets])
        assert any(quote(PASSWORD, safe="") in target for target in targets)
        assert base64.b64encode(PROXY.encode()) in proxy.requests[0]

        for path, answer in answers(site):
            check_clean(path, answer)
        for name, content in shown_by_the_system(daemon):
            check_clean(name, content)
        for arguments in commands(site):
            if arguments[0] in ARGUMENTS and arguments[0] != "run":
                code, said = run_here(site, arguments, capsys)
                assert code != 2, (arguments, said)
            else:
                said = run(site, arguments)[1].decode()
            assert "Traceback" not in said, (arguments, said)
            check_clean(" ".join(arguments), said)
        daemon.reload()
        _refused_reloads(site, daemon, capsys)

        # What it says when it is killed by a fault of its own.
        daemon.process.send_signal(signal.SIGABRT)
        daemon.process.wait(PATIENCE_S)
    assert "Fatal Python error: Aborted" in site.log.read_text("utf-8")
    assert "the proxy 127.0.0.1:" in site.log.read_text("utf-8")
    files = [path for path in site.folder.iterdir() if path.is_file() and not path.is_socket()]
    assert {"queue.db", "backup0.db", "daemon.log", "config.toml"} <= {path.name for path in files}
    for file in files:
        check_clean(file.name, file.read_bytes())


def _refused_reloads(site: Site, daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Have reloads refused, for a secret in a wrong place, or one that others may read; check-config says the same."""
    good = site.config.read_text("utf-8")
    refused = "not reloaded, the old configuration stays"
    for number, wrong in enumerate(
        (
            f"password = {json.dumps(PASSWORD)}\n",
            f"proxy = {json.dumps('http://' + quote(PROXY, safe=':') + '@127.0.0.1:1')}\n",
            f"= {PASSWORD}\n",
        )
    ):
        site.config.write_text(f"{good}\n[accounts.x]\n{wrong}", encoding="utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: site.log.read_text("utf-8").count(refused),
            lambda count, least=number: count > least,  # type: ignore[misc] # as above
        )
        code, output = run_here(site, ["check-config"], capsys)
        assert code == 1
        check_clean("check-config", output)
    site.config.write_text(good, encoding="utf-8")


def test_no_core_dump_is_left(site: Site) -> None:
    """The daemon may leave no core dump, and what a handler would get all the same has no memory in it."""
    site.configure()
    daemon = site.start()
    assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (0, 0)
    assert int(Path(f"/proc/{daemon.pid}/coredump_filter").read_text(), 16) == 0


_DIES = """
import os, resource, sys
from dlr_buffer.daemon.running import leave_no_core
secret = "".join(["ca", "nary-", str(4711 * 4711)])
_, most = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
# As where the kernel pipes dumps into a program, which the limit does not concern.
resource.setrlimit = lambda _limit, _values: None
if sys.argv[1] == "kept":
    leave_no_core()
os.abort()
"""


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text().strip() not in ("core", "core.%p"),
    reason="this machine does not leave core dumps where a test finds them",
)
def test_what_a_core_dump_would_hold(tmp_path: Path) -> None:
    """Where no limit holds, a dump has the secret in it, and after the daemon's own precaution it has not."""
    found = {}
    for kind in ("bare", "kept"):
        folder = tmp_path / kind
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _DIES, kind], cwd=folder, capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGABRT, done
        dumps = [path.read_bytes() for path in folder.iterdir()]
        if kind == "bare" and not dumps:
            pytest.skip("no core dump is left here")
        found[kind] = any(b"canary-" + str(4711 * 4711).encode() in dump for dump in dumps)
    assert found == {"bare": True, "kept": False}
