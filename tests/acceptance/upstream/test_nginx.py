"""The daemon and a real nginx with TLS in front of the stand-in: its limits, its reloads, and what it demands."""

from __future__ import annotations

import re
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from dlr_buffer.simulator import SimulatorSettings
from dlr_buffer.simulator.settings import Outage, OutageKind
from tests.acceptance.harness import Site, StandIn, eventually
from tests.acceptance.upstream.nginx import Nginx, absent

pytestmark = pytest.mark.skipif(absent() is not None, reason=absent() or "")

MANY = [f"15613706{number:05}" for number in range(1500)]
SHORT_LIVED = ("keepalive_requests 3;",)


@contextmanager
def nginx_before(stand_in: StandIn, *directives: str) -> Iterator[Nginx]:
    """Run nginx in front of the stand-in."""
    with (
        tempfile.TemporaryDirectory(prefix="nginx") as folder,
        Nginx(Path(folder), stand_in.simulator.port, *directives) as nginx,
    ):
        yield nginx


def configure(site: Site, nginx: Nginx, *, batch: dict[str, object] | None = None, **tls: object) -> None:
    """Write the daemon's configuration, with further keys of the table ``tls``."""
    site.configure(nginx.url, batch=batch, tables={"accounts.default.tls": {**nginx.tls, **tls}})


def report(site: Site, message_ids: Sequence[str]) -> None:
    """Report them as delivered."""
    with site.client() as app:
        app.report_many([(message_id, "delivered") for message_id in message_ids])


def outcomes(site: Site) -> Counter[str]:
    """How the daemon's requests ended."""
    text = str(site.ask("GET", "/metrics"))
    found = re.findall(
        r'dlr_buffer_upstream_requests_total\{account="default",outcome="([^"]*)"\} ([0-9.]+)', text
    )
    return Counter({outcome: int(float(number)) for outcome, number in found})


def check_each_once(stand_in: StandIn, message_ids: Sequence[str]) -> None:
    """Smartswitch has each final state, and got each receipt once."""
    finals = stand_in.look(lambda record: record.final_states())
    assert {message_id: len(finals[message_id]) for message_id in message_ids} == dict.fromkeys(
        message_ids, 1
    )
    assert stand_in.look(lambda record: (record.resends, record.after_final)) == (0, 0)


def test_the_defaults_fit_each_other(site: Site) -> None:
    """Batches of any ids stay below nginx's 8 KiB for a request line, over few connections."""
    ids = [f"a long id, with spaces and ümläuts {number:05}" for number in range(600)]
    with StandIn() as stand_in, nginx_before(stand_in) as nginx:
        configure(site, nginx)
        site.start()
        report(site, MANY)
        report(site, ids)
        site.wait_until_sent()
        check_each_once(stand_in, [*MANY, *ids])
        seen = nginx.requests()
        assert {each.status for each in seen} == {200}
        assert {each.protocol for each in seen} <= {"TLSv1.2", "TLSv1.3"}  # by nginx's version
        assert max(each.length for each in seen) > 7000
        assert len({each.connection for each in seen}) < len(seen) / 2
        assert set(outcomes(site)) == {"acknowledged"}


def test_a_request_line_that_is_too_long(site: Site) -> None:
    """With batches that nginx does not take, it says 414, they are halved, and everything arrives; nobody is blamed."""
    with StandIn() as stand_in, nginx_before(stand_in) as nginx:
        configure(site, nginx, batch={"max_receipts": 400, "max_url_bytes": 40_000})
        site.start()
        site.ask("POST", "/v1/accounts/default/pause")
        report(site, MANY)
        site.ask("POST", "/v1/accounts/default/resume")
        account = site.wait_until_sent()
        check_each_once(stand_in, MANY)
        statuses = Counter(each.status for each in nginx.requests())
        assert set(statuses) == {200, 414}
        assert statuses[414] >= 2
        assert account["receipts"]["dead"] == 0
        assert account["health"] == "open"
        assert {receipt["refusals"] for receipt in site.pages("/v1/receipts")} == {0}


@pytest.mark.parametrize(
    "directives",
    [(*SHORT_LIVED, "keepalive_timeout 5ms;"), ("keepalive_timeout 0;",)],
    ids=["soon", "at once"],
)
def test_connections_that_do_not_live_long(site: Site, directives: tuple[str, ...]) -> None:
    """Nginx closes them after some requests, after some time or at once: no outage is counted, nothing sent twice."""
    with StandIn() as stand_in, nginx_before(stand_in, *directives) as nginx:
        configure(site, nginx, batch={"max_receipts": 5, "linger": "0s"})
        site.start()
        ids = MANY[:400]
        # One after another, each when the one before has arrived: connections become idle again and again.
        for message_id in ids[:60]:
            report(site, [message_id])
            stand_in.wait_for(lambda record, wanted=message_id: wanted in record)  # type: ignore[misc] # mypy can't infer lambdas with defaults
        report(site, ids[60:])
        account = site.wait_until_sent()
        check_each_once(stand_in, ids)
        assert set(outcomes(site)) == {"acknowledged"}
        assert (account["health"], account["failures"]) == ("open", 0)
        assert len({each.connection for each in nginx.requests()}) > len(nginx.requests()) / 5


def test_reloads_in_mid_load(site: Site) -> None:
    """Nginx reloads while receipts stream: no outage is counted, none is lost, and none sent twice."""
    with StandIn(SimulatorSettings(latency=0.005)) as stand_in, nginx_before(stand_in) as nginx:
        configure(site, nginx, batch={"max_receipts": 5, "linger": "0s"})
        site.start()
        report(site, MANY)
        for number in range(6):
            before = stand_in.look(lambda record: record.requests)
            stand_in.wait_for(lambda record, least=before: record.requests > least + 5)  # type: ignore[misc] # as above
            nginx.reload(*(SHORT_LIVED if number % 2 else ()))
        assert site.account()["receipts"]["pending"] > 0, "the load was over before the reloads were"
        account = site.wait_until_sent()
        check_each_once(stand_in, MANY)
        assert set(outcomes(site)) == {"acknowledged"}
        assert (account["health"], account["failures"]) == ("open", 0)


def test_nothing_behind_it(site: Site) -> None:
    """What nginx says for a server that is gone, or silent, is an outage of the account; then everything arrives."""
    gone = SimulatorSettings(outages=(Outage(0, 1e9, OutageKind.REFUSE),))
    silent = SimulatorSettings(latency=60)
    with StandIn() as stand_in, nginx_before(stand_in, "proxy_read_timeout 200ms;") as nginx:
        configure(site, nginx)
        site.start()
        for number, (settings, cause) in enumerate(((gone, "http-502"), (silent, "http-504"))):
            stand_in.behave(settings)
            report(site, MANY[number * 50 : number * 50 + 50])
            account = site.wait_for_account(lambda account, cause=cause: cause in str(account["cause"]))  # type: ignore[misc] # as above
            assert account["receipts"]["dead"] == 0
            stand_in.behave(SimulatorSettings())
            account = site.wait_until_sent()
            assert account["receipts"]["acknowledged"] == number * 50 + 50
        finals = stand_in.look(lambda record: record.final_states())
        assert [len(finals[message_id]) for message_id in MANY[:100]] == [1] * 100


def demanding(authority: Path) -> tuple[str, ...]:
    """Let nginx demand a client's certificate."""
    return (f"ssl_client_certificate {authority};", "ssl_verify_client on;")


def test_a_client_certificate(site: Site) -> None:
    """Without one, or with a stranger's, nginx refuses and nothing is lost; one that is right is taken by a reload."""
    with StandIn() as stand_in, nginx_before(stand_in) as nginx:
        nginx.reload(*demanding(nginx.authority))
        configure(site, nginx)
        daemon = site.start()
        report(site, MANY[:50])
        site.wait_for_account(lambda account: account["health"] == "rejecting")
        stranger = nginx.certificate("stranger", authority=trustme.CA())
        configure(site, nginx, client_cert=str(stranger))
        daemon.reload()
        refused = "client SSL certificate verify error"
        eventually(nginx.errors, lambda errors: refused in errors)
        assert "No required SSL certificate was sent" in site.log.read_text("utf-8")
        assert not stand_in.look(lambda record: record.requests)
        configure(site, nginx, client_cert=str(nginx.certificate("supplier")))
        daemon.reload()
        account = site.wait_until_sent()
        assert (account["receipts"]["acknowledged"], account["receipts"]["dead"]) == (50, 0)
        check_each_once(stand_in, MANY[:50])

        # One that can't be used changes nothing.
        certificate = nginx.certificate("supplier")
        certificate.chmod(0o644)
        daemon.process.send_signal(signal.SIGHUP)
        kept = "not reloaded, the old configuration stays"
        eventually(lambda: site.log.read_text("utf-8"), lambda log: kept in log)
        assert f"{certificate} may be read by everybody (mode 0644): run " in site.log.read_text("utf-8")
        report(site, MANY[50:100])
        site.wait_until_sent()
        check_each_once(stand_in, MANY[:100])
        for command in ("check-config", "run"):
            done = site.command(command)
            assert done.returncode == 1
            assert "may be read by everybody" in done.stderr


def test_a_certificate_is_renewed_in_mid_load(site: Site) -> None:
    """The renewed one is taken over by a reload: what is under way ends over the old one, and nothing is sent twice."""
    with StandIn(SimulatorSettings(latency=0.005)) as stand_in, nginx_before(stand_in) as nginx:
        nginx.reload(*demanding(nginx.authority))
        certificate = nginx.certificate("supplier")
        configure(site, nginx, client_cert=str(certificate), batch={"max_receipts": 5, "linger": "0s"})
        daemon = site.start()
        report(site, MANY)
        connections = set()
        for _ in range(4):
            before = stand_in.look(lambda record: record.requests)
            stand_in.wait_for(lambda record, least=before: record.requests > least + 5)  # type: ignore[misc] # as above
            connections.add(max(each.connection for each in nginx.requests()))
            nginx.certificate("supplier")
            daemon.reload()
        assert site.account()["receipts"]["pending"] > 0, "the load was over before the reloads were"
        site.wait_until_sent()
        check_each_once(stand_in, MANY)
        assert set(outcomes(site)) == {"acknowledged"}
        assert len(connections) == 4, "each reload has to make new connections"


@pytest.mark.parametrize(
    ("theirs", "ours", "protocol"),
    [
        ("ssl_protocols TLSv1.3;", "1.3", "TLSv1.3"),
        ("ssl_protocols TLSv1.2;", "1.3", None),
        ("ssl_protocols TLSv1.1; ssl_ciphers ALL:@SECLEVEL=0;", "1.2", None),
    ],
)
def test_versions_of_tls(site: Site, theirs: str, ours: str, protocol: str | None) -> None:
    """The newest that both speak; with a server that is too old it is an outage, and nothing is sent."""
    with StandIn() as stand_in, nginx_before(stand_in, theirs) as nginx:
        configure(site, nginx, min_version=ours)
        site.start()
        report(site, MANY[:10])
        if protocol is None:
            account = site.wait_for_account(lambda account: account["health"] == "backing-off")
            assert account["cause"].startswith("tls")
            assert "see tls.min_version" in site.log.read_text("utf-8")
            assert not stand_in.look(lambda record: record.requests)
            nginx.reload("ssl_protocols TLSv1.2 TLSv1.3;")
        site.wait_until_sent()
        check_each_once(stand_in, MANY[:10])
        assert {each.protocol for each in nginx.requests()} == {protocol or "TLSv1.3"}
