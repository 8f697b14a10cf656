"""A wrong password: nothing is lost, the account is suspended, and a corrected one brings all through."""

from __future__ import annotations

from dlr_buffer.simulator import SimulatorSettings
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import PASSWORD, Site, StandIn

IDS = [f"m{number:03}" for number in range(300)]
CONCURRENCY = 4


class Watched(StandIn):
    """A stand-in that notes of each request how many receipts it carried and how many were on the wire."""

    def __init__(self) -> None:
        """Answer so slowly that requests at the same time would be seen as such."""
        super().__init__(SimulatorSettings(latency=0.1), script=self._note)
        self.requests: list[tuple[int, int]] = []

    def _note(self, request: Request) -> None:
        self.requests.append((len(request.receipts), self.simulator.record.concurrent_requests))


def fill(site: Site, url: str, auth_probe: str) -> None:
    """Start a daemon with a wrong password and all receipts waiting at once, then let it send."""
    site.configure(
        url,
        account={"concurrency": CONCURRENCY},
        batch={"max_receipts": 50},
        retry={"auth_probe": auth_probe},
        password="wrong password",
    )
    daemon = site.start()
    site.ask("POST", "/v1/accounts/default/pause")
    with site.client() as app:
        app.register_many(IDS)
        app.report_many([(message_id, "delivered") for message_id in IDS])
    site.ask("POST", "/v1/accounts/default/resume")
    site.wait_for_account(lambda account: account["health"] == "suspended")
    assert daemon.process.poll() is None


def check_waiting(site: Site) -> None:
    """Everything waits, and nobody is blamed."""
    account = site.account()
    assert account["health"] == "suspended"
    assert "authentication" in account["cause"]
    assert account["receipts"]["pending"] == len(IDS)
    assert account["receipts"]["dead"] == 0
    assert {receipt["refusals"] for receipt in site.pages("/v1/receipts")} == {0}


def correct(site: Site) -> None:
    """Correct the password file and send SIGHUP to the daemon, which stays the same process."""
    site.password_file().write_text(PASSWORD + "\n", encoding="utf-8")
    site.runs[-1].reload()


def check_through(site: Site, stand_in: StandIn) -> None:
    """All went through, each once, and the account is well."""
    account = site.wait_until_sent()
    assert account["receipts"]["acknowledged"] == len(IDS)
    assert account["receipts"]["dead"] == 0
    assert account["health"] == "open"
    finals = stand_in.look(lambda record: record.final_states())
    assert [len(finals[message_id]) for message_id in IDS] == [1] * len(IDS)


def test_one_probe_at_a_time(site: Site) -> None:
    """Suspended, the account asks with one receipt in one request at a time; SIGHUP mends it."""
    with Watched() as stand_in:
        fill(site, stand_in.url, "100ms")
        stand_in.wait_for(lambda record: record.requests >= CONCURRENCY + 8)
        probes = stand_in.look(lambda record: stand_in.requests[CONCURRENCY:])
        assert set(probes) == {(1, 1)}
        check_waiting(site)
        correct(site)
        check_through(site, stand_in)


def test_a_reload_probes_at_once(site: Site) -> None:
    """With an hour between probes, a reload with the right password does not wait for the next one."""
    with Watched() as stand_in:
        fill(site, stand_in.url, "1h")
        check_waiting(site)
        correct(site)
        check_through(site, stand_in)


def test_a_reload_with_another_wrong_password(site: Site) -> None:
    """SIGHUP with a password that is wrong too probes once, and changes nothing else: all waits."""
    with Watched() as stand_in:
        fill(site, stand_in.url, "1h")
        stand_in.wait_for(lambda record: record.concurrent_requests == 0)
        before = len(stand_in.requests)
        site.password_file().write_text("another wrong password\n", encoding="utf-8")
        site.runs[-1].reload()
        stand_in.wait_for(lambda record: record.requests > before)
        check_waiting(site)
        correct(site)
        check_through(site, stand_in)
