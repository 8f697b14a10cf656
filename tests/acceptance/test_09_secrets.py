"""Login and password are canaries: whatever goes wrong, they are on the wire and nowhere else."""

from __future__ import annotations

import base64
import html
import json
import random
import resource
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import psutil  # type: ignore[import-untyped] # publishes no types
import pytest
import trustme

from dlr_buffer.client import ApiError
from dlr_buffer.config import load
from dlr_buffer.daemon import Daemon
from dlr_buffer.simulator import Answer, FaultKind, Raw, Scripted, SimulatorSettings
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import Site, StandIn, eventually

TOKEN = b"kanari"
"""Part of both credentials, plain in every encoding but base64: wherever it is, something has leaked."""
LOGIN = "kanari7f3a lög/in&"
PASSWORD = "p%ss=Kanari9c1e wörd+"
IDS = [f"m{number:03}" for number in range(400)]
# One fault a request, every kind as often as the others, and most requests well: half of these are echoes too.
FAULTS = {kind: 0.04 for kind in FaultKind if kind is not FaultKind.TIMEOUT} | {FaultKind.TIMEOUT: 0.02}


def check_clean(what: str, content: str | bytes) -> None:
    """Fail, naming the place but not the credential's owner, if a canary is in there in any encoding."""
    found = content.encode() if isinstance(content, str) else content
    low = found.lower()
    assert TOKEN not in low, f"{what}: …{low[max(0, low.find(TOKEN) - 200) : low.find(TOKEN) + 50]!r}…"
    for secret in (LOGIN, PASSWORD):
        assert base64.b64encode(secret.encode())[:12] not in found, what


def echoes() -> Iterator[object]:
    """Ways in which a careless server repeats the request, credentials and all."""
    yield lambda target: Scripted(400, (), f"bad request: {target}".encode())
    yield lambda target: Scripted(
        404, (("Content-Type", "text/html"),), html.escape(unquote(target)).encode()
    )
    yield lambda target: Scripted(302, (("Location", f"http://127.0.0.1:9{target}"),))
    yield lambda target: Scripted(500, (), unquote(target).encode())
    yield lambda target: Scripted(403, (), f"denied: {quote(target)}".encode())
    yield lambda target: Scripted(413, (), target.encode())
    yield lambda target: Scripted(200, (), target.encode())
    yield lambda target: Raw((f"HTTP/1.1 599 {target}\r\nContent-Length: 0\r\n\r\n".encode(),))
    yield lambda target: Raw((f"{target}\r\n\r\n".encode(),))
    for code in ("internal", "authentication", unquote(LOGIN), PASSWORD):
        yield lambda target, code=code: Scripted(
            200,
            (),
            json.dumps({"errors": [{"code": code, "title": unquote(target), "detail": target}]}).encode(),
        )


def echoing(every: int) -> object:
    """A script that lets every so-manieth request be answered by the next echo."""
    ways = list(echoes())

    def script(request: Request) -> Answer | None:
        if request.number % every:
            return None
        way = ways[request.number // every % len(ways)]
        answer: Answer = way(request.target)  # type: ignore[operator]
        return answer

    return script


@contextmanager
def watching_ps(site: Site) -> Iterator[list[str]]:
    """Look at command lines, titles and environments of the daemon and its children, again and again."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.02):
            for process in me.children(recursive=True):
                try:
                    seen.update(process.cmdline())
                    seen.update(process.environ().values())
                    seen.add(process.name())
                    seen.update(each.read_text() for each in Path(f"/proc/{process.pid}/task").glob("*/comm"))
                except (psutil.Error, OSError):
                    continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found: list[str] = []
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found += sorted(seen)


@contextmanager
def untrusted_tls(stand_in: StandIn) -> Iterator[str]:
    """A TLS server with a certificate of an authority that nobody knows; yields an account's url."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with stand_in.listening_tls(context) as port:
        yield f"https://127.0.0.1:{port}/api/dlr"


def everything_said(site: Site) -> Iterator[tuple[str, str]]:
    """What the daemon shows to apps and admins, by API and by command line."""
    with site.admin() as admin:
        for path in (
            "/v1/status",
            "/v1/accounts",
            "/metrics",
            "/healthz",
            "/openapi.json",
            "/v1/receipts?limit=1000",
            "/v1/messages?limit=1000",
            *(f"/v1/receipts/{number}" for number in range(1, 500, 7)),
            "/v1/receipts/99999",
            "/nowhere",
        ):
            try:
                yield path, json.dumps(admin.request("GET", path), ensure_ascii=False)
            except ApiError as error:
                yield path, json.dumps(error.problem, ensure_ascii=False)
    for arguments in (
        ["status"],
        ["--json", "status"],
        ["list", "receipts"],
        ["show", IDS[0]],
        ["show", "w0", "--account", "wrong"],
        ["check-config"],
        ["pause", "wrong"],
    ):
        done = site.command(*arguments)
        yield " ".join(arguments), done.stdout + done.stderr


def test_no_credential_anywhere(site: Site) -> None:
    """With faults of every kind, wrong URLs and failing TLS, at level debug: the canaries show up nowhere."""
    settings = SimulatorSettings(login=LOGIN, password=PASSWORD, faults=FAULTS, random_seed=3)
    with StandIn(settings, script=echoing(5)) as stand_in, untrusted_tls(stand_in) as tls_url:  # type: ignore[arg-type]
        base = stand_in.simulator.base_url
        urls = {
            "wrong": f"{base}/wrong/path",
            "plain": f"https://127.0.0.1:{stand_in.simulator.port}/api/dlr",
            "tls": tls_url,
            "refused": "http://127.0.0.1:1/api/dlr",
            "nowhere": "https://smartswitch.invalid/api/dlr",
            "form": f"{base}/api/dlr",
        }
        others: dict[str, dict[str, object]] = {name: {"url": url} for name, url in urls.items()}
        others["form"]["parameters"] = "form"
        site.configure(
            stand_in.url,
            account={"timeout": "300ms"},
            batch={"max_receipts": 4},
            retry={"auth_probe": "100ms", "max": "100ms"},
            others=others,
            tables={"log": {"level": "debug"}},
            login=LOGIN,
            password=PASSWORD,
        )
        with watching_ps(site) as shown_by_ps:
            daemon = site.start(PYTHONDEVMODE="1")
            with site.client() as app:
                app.report_many([(message_id, "delivered") for message_id in IDS])
                app.report_many(
                    [
                        {"message_id": f"{name[0]}{number}", "message_state": "delivered", "account": name}
                        for name in urls
                        for number in range(10)
                    ]
                )
            stand_in.wait_for(lambda record: record.requests > 400)
            eventually(
                lambda: [site.account(name)["health"] for name in urls if name != "form"],
                lambda found: "open" not in found,
            )
            said = list(everything_said(site))
            daemon.reload()
        targets = stand_in.look(lambda record: [*record.targets])
        bodies = stand_in.look(lambda record: [*record.bodies])

        # They were on the wire, in the query and in a body, and what went wrong was told.
        assert any(TOKEN.decode() in target.lower() for target in targets)
        assert any(TOKEN in body.lower() for body in bodies)
        log = site.log.read_text("utf-8")
        for words in (
            "HTTP 500",
            "TLS with",
            "refused the connection",
            "not followed",
            "not JSON",
            "login or password",
        ):
            assert words in log, words

        # The last words of a crash, too.
        resource.prlimit(daemon.pid, resource.RLIMIT_CORE, (0, 0))
        daemon.process.send_signal(signal.SIGABRT)
        daemon.process.wait(30)
    assert "Fatal Python error: Aborted" in site.log.read_text("utf-8")
    for what, content in said:
        check_clean(what, content)
    assert any("dlr_buffer" in each for each in shown_by_ps)
    for each in shown_by_ps:
        check_clean("ps", each)
    for path in site.folder.iterdir():
        if path.is_file() and path != site.config and path.suffix != ".password":
            check_clean(path.name, path.read_bytes())


MISTAKES: dict[str, tuple[dict[str, object], str]] = {
    "a password in the url": ({"url": f"https://user:{quote(PASSWORD)}@example.com/api/dlr"}, "password"),
    "a login in the url": ({"url": f"https://example.com/api/dlr?_login={quote(LOGIN)}"}, "query"),
    "a password in the configuration": ({"password": PASSWORD}, "password_file"),
    "a misspelt key": ({"logn": LOGIN}, "login"),
    "a login that is a list": ({"login": [LOGIN]}, "login"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_credential_in_what_is_said_of_a_configuration(site: Site, mistake: str) -> None:
    """A credential in the wrong place of the configuration is refused without being repeated."""
    wrong, wanted = MISTAKES[mistake]
    site.configure(account=wrong, login=LOGIN, password=PASSWORD)
    for command in ("check-config", "run"):
        done = site.command(command)
        assert done.returncode == 1
        assert wanted in done.stderr
        check_clean(command, done.stdout + done.stderr)


def test_no_credential_in_a_broken_configuration(site: Site) -> None:
    """A configuration that is not TOML, or not UTF-8, is refused without being quoted."""
    for content in (
        f'[accounts.default]\nlogin = "{LOGIN}\n'.encode(),
        f'login = "{LOGIN}"\n\xff'.encode("latin-1"),
    ):
        site.config.write_bytes(content)
        for command in ("check-config", "run", "status"):
            done = site.command(command)
            assert done.returncode in (1, 69)
            check_clean(command, done.stdout + done.stderr)


def test_no_credential_in_a_repr(site: Site) -> None:
    """Whatever object of the daemon is printed, none shows a credential."""
    site.configure(login=LOGIN, password=PASSWORD)
    configuration = load(site.config, {})
    check_clean("repr", f"{configuration!r} {configuration}")

    class Unpaused:
        """Stands for the opened queue in `Daemon._plan`, which only asks it this."""

        def paused(self, _account: str) -> bool:
            return False

    daemon = Daemon(configuration, rng=random.Random(1), environ={})
    daemon.store = Unpaused()  # type: ignore[assignment]
    plans = daemon._plans(configuration)
    check_clean("repr", f"{plans!r} {plans}")
    upstream = plans["default"].connect()
    check_clean("repr", f"{upstream!r} {vars(daemon)!r}")
