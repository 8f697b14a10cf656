"""Bad input of every kind: a clear message that says what to do, the documented status or exit code, nothing lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import DaemonProcess, Site, StandIn, eventually

NDJSON = "application/x-ndjson"
JSON = "application/json"
LONG_ID = "x" * 300


class UnixConnection(http.client.HTTPConnection):
    """Plain HTTP to a Unix socket, for what the client library would never send."""

    def __init__(self, site: Site) -> None:
        """Talk to the admin socket, which takes every call."""
        super().__init__("localhost", timeout=30)
        self._path = str(site.admin_socket)

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def post(
    site: Site, method: str, path: str, body: bytes, content_type: str
) -> tuple[int, str, dict[str, Any]]:
    """Send any body; returns status, content type and the decoded answer."""
    connection = UnixConnection(site)
    try:
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        return response.status, response.headers["Content-Type"], answer
    finally:
        connection.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    """A daemon with two accounts, and unknown messages rejected, for the whole module."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        site = Site(Path(name))
        site.configure(
            others={"two": {"url": "http://127.0.0.1:9/api/dlr"}},
            tables={"messages": {"unknown_messages": "reject"}},
        )
        site.start()
        # Nothing goes on the wire: what is in flight at that moment could not be deleted between two tests.
        for account in ("default", "two"):
            site.ask("POST", f"/v1/accounts/{account}/pause")
        try:
            yield site
        finally:
            site.close()


@pytest.fixture
def known(running: Site) -> Iterator[Site]:
    """The same; whatever the test does, one good message is there before and after, and nothing else."""
    running.ask("POST", "/v1/messages/delete", {"filter": {"all": True}})
    with running.client() as app:
        app.register("good")
    yield running
    assert [message["message_id"] for message in running.pages("/v1/messages")] == ["good"]
    assert running.pages("/v1/receipts") == []
    assert running.runs[0].process.poll() is None


REQUESTS: dict[str, tuple[str, bytes, str, int, str, str]] = {
    "cut JSON": ("/v1/messages", b'{"message_id": "a', JSON, 400, "malformed", ""),
    "no JSON at all": ("/v1/messages", b"message_id=a", JSON, 400, "malformed", "JSON object"),
    "empty": ("/v1/messages", b"", JSON, 400, "malformed", ""),
    "an array with a bad end": ("/v1/messages", b'[{"message_id":"a"},', JSON, 400, "malformed", ""),
    "not UTF-8": ("/v1/messages", b'{"message_id":"\xff"}', JSON, 400, "malformed", "UTF-8"),
    "a number for an id": ("/v1/messages", b'{"message_id":7}', JSON, 422, "invalid", "string"),
    "an empty id": ("/v1/messages", b'{"message_id":""}', JSON, 422, "invalid", "empty"),
    "a 300-byte id": (
        "/v1/messages",
        json.dumps({"message_id": LONG_ID}).encode(),
        JSON,
        422,
        "invalid",
        "255",
    ),
    "a 256-byte id of two-byte letters": (
        "/v1/messages",
        json.dumps({"message_id": "é" * 128}).encode(),
        JSON,
        422,
        "invalid",
        "255",
    ),
    "a control character": ("/v1/messages", b'{"message_id":"a\\u0007"}', JSON, 422, "invalid", "control"),
    "no id": ("/v1/messages", b"{}", JSON, 422, "invalid", "message_id"),
    "an unknown field": ("/v1/messages", b'{"message_id":"a","validty":3}', JSON, 422, "invalid", "validty"),
    "no time at all": (
        "/v1/messages",
        b'{"message_id":"a","validity_period":0}',
        JSON,
        422,
        "invalid",
        "second",
    ),
    "31 days": (
        "/v1/messages",
        b'{"message_id":"a","validity_period":2678400}',
        JSON,
        422,
        "invalid",
        "2592000",
    ),
    "an unknown account": (
        "/v1/messages",
        b'{"message_id":"a","account":"tow"}',
        JSON,
        422,
        "unknown-account",
        "default, two",
    ),
    "an unknown state": (
        "/v1/receipts",
        b'{"message_id":"good","message_state":"deliverd"}',
        JSON,
        422,
        "invalid",
        "undeliverable",
    ),
    "a message never registered": (
        "/v1/receipts",
        b'{"message_id":"a","message_state":"delivered"}',
        JSON,
        404,
        "not-found",
        "a",
    ),
    "too many items": (
        "/v1/messages",
        b"\n".join([b'{"message_id":"a"}'] * 50_001),
        NDJSON,
        413,
        "too-large",
        "50000",
    ),
    "too long a body": ("/v1/messages", b" " * (16 * 2**20 + 1), JSON, 413, "too-large", "16777216"),
    "another validity period": (
        "/v1/messages",
        b'{"message_id":"good","validity_period":60}',
        JSON,
        409,
        "conflict",
        "",
    ),
    "no such path": ("/v1/message", b"{}", JSON, 404, "not-found", ""),
    "an empty filter": ("/v1/receipts/delete", b'{"filter":{}}', JSON, 422, "invalid", "all"),
    "no selection": ("/v1/receipts/delete", b"{}", JSON, 422, "invalid", ""),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_bad_request(known: Site, kind: str) -> None:
    """A bad request gets a problem with the documented status and code and a sentence, and stores nothing."""
    path, body, content_type, status, code, words = REQUESTS[kind]
    answer = post(known, "POST", path, body, content_type)
    assert answer[:2] == (status, "application/problem+json"), answer
    problem = answer[2]
    assert (problem["status"], problem["code"]) == (status, code)
    assert len(problem["detail"]) > 20
    assert words in problem["detail"]


def test_a_wrong_method(known: Site) -> None:
    """PUT is answered with 405."""
    status, _, problem = post(known, "PUT", "/v1/messages", b"{}", JSON)
    assert (status, problem["code"]) == (405, "method")


def test_what_is_no_http(known: Site) -> None:
    """Garbage on the socket is answered with 400, and the next connection works."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        sock.connect(str(known.client_socket))
        sock.sendall(b"REGISTER good\n\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_the_good_lines_of_bad_ndjson(running: Site) -> None:
    """A bad line, a 300-byte id, a wrong state: each is told with its index, and the good ones are stored."""
    running.ask("POST", "/v1/messages/delete", {"filter": {"all": True}})
    lines = [
        b'{"message_id":"one"}',
        b'{"message_id":',
        b'{"message_id":"two"}',
        json.dumps({"message_id": LONG_ID}).encode(),
        b'{"message_id":"three","account":"two"}',
        b'{"message_id":"four","account":"tow"}',
    ]
    status, _, answer = post(running, "POST", "/v1/messages", b"\n".join(lines), NDJSON)
    assert status == 200
    assert (answer["registered"], answer["duplicates"]) == (3, 0)
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        (1, "malformed"),
        (3, "invalid"),
        (5, "unknown-account"),
    ]
    reports = b'{"message_id":"one","message_state":"gone"}\n{"message_id":"two","message_state":"delivered"}'
    status, _, answer = post(running, "POST", "/v1/receipts", reports, NDJSON)
    assert (status, answer["queued"], answer["errors"][0]["index"]) == (200, 1, 0)
    states = {message["message_id"]: message["state"] for message in running.pages("/v1/messages")}
    assert states == {"one": None, "two": "delivered", "three": None}
    running.ask("POST", "/v1/messages/delete", {"filter": {"all": True}})


COMMANDS: dict[str, tuple[list[str], str, int, str, str]] = {
    "a bad line": (["register"], 'n1\n{"message_id":\nn2\n', 1, "line 2", "2 registered"),
    "a line with spaces": (["register"], "n1\nn 2\nn3\n", 1, "line 2", "2 registered"),
    "a 300-byte id": (["register", "n1", LONG_ID], "", 1, "255", "1 registered"),
    "an unknown account": (["register", "n1", "--account", "tow"], "", 1, "default, two", "0 registered"),
    "an unknown state in a line": (["report"], "good deliverd\n", 1, "line 1", "0 queued"),
    "an unknown state": (["report", "good", "deliverd"], "", 2, "undeliverable", ""),
    "an unknown state with --state": (["report", "--state", "deliverd", "good"], "", 2, "undeliverable", ""),
    "an unknown message": (["report", "a", "delivered"], "", 1, "not-found", "0 queued"),
    "showing an unknown message": (["show", "a"], "", 1, "not-found", ""),
    "an unknown command": (["regster"], "", 2, "register", ""),
    "an unknown option": (["register", "--acount", "two", "n1"], "", 2, "--acount", ""),
    "a bad duration": (["register", "--validity-period", "3 days", "n1"], "", 2, "72h", ""),
    "no target": (["delete", "receipts"], "", 2, "ALL", ""),
    "nobody to ask": (["delete", "receipts", "ALL"], "", 2, "--yes", ""),
    "no such account": (["pause", "tow"], "", 1, "tow", ""),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_bad_command(running: Site, kind: str) -> None:
    """A bad command line or a bad line of input is told on stderr with the exit code; good lines are stored."""
    running.ask("POST", "/v1/messages/delete", {"filter": {"all": True}})
    with running.client() as app:
        app.register("good")
    arguments, stdin, code, words, said = COMMANDS[kind]
    done = running.command(*arguments, stdin=stdin)
    assert done.returncode == code, done
    assert words in done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stderr
    stored = {message["message_id"] for message in running.pages("/v1/messages")}
    good = {"n1", "n2"} if stdin.endswith("n2\n") else {"n1", "n3"} if "n 2" in stdin else set()
    assert stored == {"good"} | (good or ({"n1"} if said == "1 registered" else set()))


@pytest.mark.parametrize("arguments", [["register", "a"], ["status"], ["show", "a"]])
def test_no_daemon(site: Site, arguments: list[str]) -> None:
    """Without a daemon the exit code is 69, and the message names the socket and says what to look at."""
    site.configure()
    done = site.command(*arguments)
    assert done.returncode == 69
    assert str(site.folder) in done.stderr
    assert "running?" in done.stderr


def check_refused(site: Site, *words: str, check_config: bool = True) -> None:
    """``run`` (and ``check-config``) end with 1 and say the words, without a traceback; no socket is left."""
    for command in ("run", "check-config") if check_config else ("run",):
        done = site.command(command)
        assert done.returncode == 1, done
        for word in words:
            assert word in done.stderr
        assert "Traceback" not in done.stderr
    assert not site.client_socket.exists()


def test_an_unknown_key(site: Site) -> None:
    """An unknown key is an error that names the nearest one."""
    site.configure(account={"concurency": 3})
    check_refused(site, "accounts.default.concurency", "concurrency")


def test_no_configuration(site: Site) -> None:
    """A missing configuration says where it was looked for and what to do."""
    check_refused(site, str(site.config), "--config")


def test_a_directory_for_the_database(site: Site) -> None:
    """A directory where the database should be is refused, and what lies in it stays."""
    site.configure()
    site.database.mkdir()
    (site.database / "kept").write_text("kept")
    check_refused(site, "names a directory", "name a file in it")
    assert (site.database / "kept").read_text() == "kept"


def test_no_folder_for_the_database(site: Site) -> None:
    """A missing folder is refused with the word what to do."""
    site.configure(tables={"database": {"url": f"sqlite:///{site.folder}/missing/queue.db"}})
    check_refused(site, f"{site.folder}/missing", "create it", check_config=False)


def test_a_text_file_for_the_database(site: Site) -> None:
    """A file that is no database is refused and not touched."""
    site.configure()
    text = "These are my notes, not a database.\n" * 100
    site.database.write_text(text)
    check_refused(site, str(site.database), check_config=False)
    assert site.database.read_text() == text


def test_a_file_where_the_socket_should_be(site: Site) -> None:
    """A file that is no socket is refused and not removed."""
    site.configure()
    site.client_socket.write_text("kept")
    done = site.command("run")
    assert done.returncode == 1
    assert f"{site.client_socket} exists and is not a socket" in done.stderr
    assert site.client_socket.read_text() == "kept"


# Root may read everything but for these two capabilities (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH): a program that it
# starts without them in its bounding set (PR_CAPBSET_DROP) is refused as any user is.
_AS_ANY_USER = """
import ctypes, os, sys
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):
        assert libc.prctl(24, capability, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.executable, [sys.executable, "-m", "dlr_buffer", *sys.argv[1:]])
"""


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_an_unreadable_password_file(site: Site, command: str) -> None:
    """A password file that may not be read is named, with the word what to do, and the exit code is 1."""
    site.configure()
    site.password_file().chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", _AS_ANY_USER, "--config", str(site.config), command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done
    assert str(site.password_file()) in done.stderr
    assert "may not be read" in done.stderr
    assert "mend its owner or mode" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_and_an_empty_password_file(site: Site) -> None:
    """So are a missing one and an empty one."""
    site.configure()
    site.password_file().unlink()
    check_refused(site, str(site.password_file()), "is missing")
    site.password_file().touch(0o600)
    check_refused(site, str(site.password_file()), "is empty")


def test_a_second_daemon(site: Site) -> None:
    """A second daemon on the same queue is refused with the first one's pid, which goes on undisturbed."""
    with StandIn(SimulatorSettings()) as stand_in:
        site.configure(stand_in.url)
        daemon = site.start()
        with site.client() as app:
            app.register("good")
        done = site.command("run")
        assert done.returncode == 1
        assert str(daemon.pid) in done.stderr
        assert "stop it first" in done.stderr
        assert "Traceback" not in done.stderr
        with site.client() as app:
            app.report("good", "delivered")
        assert site.wait_until_sent()["receipts"]["acknowledged"] == 1


def test_a_second_daemon_on_the_same_sockets(site: Site) -> None:
    """A daemon with another queue but the sockets of a living one is refused, and takes nothing from it."""
    site.configure()
    site.start()
    site.configure(tables={"database": {"url": f"sqlite:///{site.folder}/other.db"}})
    done = site.command("run")
    assert done.returncode == 1
    assert "another daemon answers" in done.stderr
    with site.client() as app:
        assert app.register("good")["message_id"] == "good"


def test_a_stale_socket_is_replaced(site: Site) -> None:
    """What a killed daemon left behind does not keep the next one from starting."""
    site.configure()
    site.start().kill()
    assert site.client_socket.exists()
    site.start()
    with site.client() as app:
        app.register("good")


def hang_up(daemon: DaemonProcess) -> None:
    """Send SIGHUP, without waiting."""
    os.kill(daemon.pid, signal.SIGHUP)


def test_a_bad_reload(site: Site) -> None:
    """SIGHUP with a bad configuration changes nothing: it is told in the log, and the old one stays in force."""
    with StandIn(SimulatorSettings()) as stand_in:
        site.configure(stand_in.url)
        daemon = site.start()
        good = site.config.read_text()
        site.config.write_text(good.replace("url =", "ulr =", 2))
        hang_up(daemon)
        eventually(site.log.read_text, lambda log: "not reloaded" in log)
        assert "ulr" in site.log.read_text()
        with site.client() as app:
            app.report("good", "delivered")
        assert site.wait_until_sent()["receipts"]["acknowledged"] == 1
        site.config.write_text(good)
        daemon.reload()
        assert daemon.terminate() == 0
