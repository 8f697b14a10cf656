"""Account health: each event of DESIGN §4, and what always holds whatever comes in whatever order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dlr_buffer.health import AccountHealth, HealthSettings, HealthState, Probe, Send, Wait

MINUTE = 60_000
NOW = 1_800_000_000_000


def settings(concurrency: int = 4, max_receipts: int = 100) -> HealthSettings:
    """An account with a backoff of 1 s, doubled, at most 10 min."""
    return HealthSettings(
        concurrency, max_receipts, 10 * MINUTE, 5 * MINUTE, lambda n: min(10 * MINUTE, 1000 << min(n - 1, 20))
    )


def down(
    account: AccountHealth, *, sent: int = 10, probe: bool = False, asked: int | None = None
) -> AccountHealth:
    """One outage answer."""
    return account.outage(
        settings(), cause="http-503", sent=sent, probe=probe, retry_after_ms=asked, now_ms=NOW
    )


def backing_off() -> AccountHealth:
    """An account after four outages in a row."""
    account = AccountHealth()
    for _ in range(4):
        account = down(account)
    return account


def test_open_until_concurrency_outages_in_a_row() -> None:
    """Three outages leave an account with concurrency 4 open, the fourth makes it back off for a second."""
    account = down(down(down(AccountHealth())))
    assert account.state is HealthState.OPEN
    account = down(account)
    assert account.state is HealthState.BACKING_OFF
    assert (account.failures, account.probe_at_ms, account.cause) == (1, NOW + 1000, "http-503")


def test_an_acknowledgement_breaks_the_row() -> None:
    """Outages count only in a row."""
    account = down(down(down(AccountHealth()))).acknowledged(settings(), NOW)
    assert down(down(down(account))).state is HealthState.OPEN
    assert account.cause is None


def test_each_failed_probe_doubles_the_wait_up_to_the_maximum() -> None:
    """The backoff grows with failed probes and is capped."""
    account, waits = backing_off(), []
    for _ in range(12):
        account = down(account, sent=1, probe=True)
        assert account.probe_at_ms is not None
        waits.append(account.probe_at_ms - NOW)
    assert waits[:4] == [2000, 4000, 8000, 16000]
    assert waits[-1] == 10 * MINUTE


def test_answers_of_earlier_requests_do_not_lengthen_the_backoff() -> None:
    """Only probes count once an account backs off; but what one of them asks for by Retry-After is honoured."""
    account = backing_off()
    assert down(account) == account
    assert down(account, asked=30_000).probe_at_ms == NOW + 30_000
    assert down(account, asked=24 * 60 * MINUTE).probe_at_ms == NOW + 10 * MINUTE
    assert down(down(account, asked=30_000), asked=5000).probe_at_ms == NOW + 30_000


def test_since_is_when_the_state_was_entered() -> None:
    """A failed probe does not look like a new trouble."""
    account = backing_off()
    later = account.outage(
        settings(), cause="timeout", sent=1, probe=True, retry_after_ms=None, now_ms=NOW + MINUTE
    )
    assert (later.since_ms, later.cause) == (NOW, "timeout")
    assert later.acknowledged(settings(), NOW + 2 * MINUTE).since_ms == NOW + 2 * MINUTE


def test_the_ramp_after_an_outage() -> None:
    """After the probe batches carry 1, 2, 4, … receipts, and all that may be at the end."""
    account, limits = backing_off().acknowledged(settings(), NOW), []
    while account.ramp is not None:
        limits.append(account.batch_limit(settings()))
        account = account.acknowledged(settings(), NOW)
    assert limits == [1, 2, 4, 8, 16, 32, 64]
    assert account.batch_limit(settings()) == 100


def test_no_ramp_after_mere_refusals() -> None:
    """A server that refused everything was not overloaded: once mended it gets whole batches at once."""
    account = AccountHealth().rejected(settings(), cause="http-404: Not Found", now_ms=NOW)
    assert account.state is HealthState.REJECTING
    assert account.acknowledged(settings(), NOW).batch_limit(settings()) == 100


def test_too_large_halves_what_was_sent_and_grows_by_one() -> None:
    """413 halves the batch that was sent, again and again, down to one; each acknowledgement gives one back."""
    account = AccountHealth().too_large(100)
    assert account.batch_limit(settings()) == 50
    account = account.too_large(50).too_large(25)
    assert account.batch_limit(settings()) == 12
    for expected in range(13, 101):
        account = account.acknowledged(settings(), NOW)
        assert account.batch_limit(settings()) == expected
    assert account.ceiling is None
    assert AccountHealth().too_large(1).batch_limit(settings()) == 1


def test_a_ceiling_outlives_an_outage() -> None:
    """What a server takes at most is not forgotten because it was down."""
    account = AccountHealth().too_large(20)
    for _ in range(4):
        account = down(account)
    account = account.acknowledged(settings(), NOW)
    assert account.batch_limit(settings()) == 1
    for _ in range(6):
        account = account.acknowledged(settings(), NOW)
    assert account.batch_limit(settings()) == 10 + 6


def test_suspension_probes_at_its_own_pace() -> None:
    """Wrong credentials are tried every `auth_probe`, however often they failed; a nudge tries them at once."""
    account = AccountHealth()
    for _ in range(5):
        account = account.authentication_failed(settings(), cause="authentication", now_ms=NOW)
        assert account.state is HealthState.SUSPENDED
        assert account.probe_at_ms == NOW + 5 * MINUTE
    assert account.permit(settings(), in_flight=0, now_ms=NOW) == Wait(NOW + 5 * MINUTE)
    assert account.nudged(NOW).permit(settings(), in_flight=0, now_ms=NOW) == Probe()


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_probe_is_alone_on_the_wire(in_flight: int) -> None:
    """While anything is under way an account that is not open sends nothing, however long the probe is due."""
    account = backing_off()
    assert account.permit(settings(), in_flight=in_flight, now_ms=NOW + MINUTE) == Wait(None)
    assert account.permit(settings(), in_flight=0, now_ms=NOW + MINUTE) == Probe()


def test_a_clock_set_back_does_not_put_off_the_probe() -> None:
    """A probe that lies further ahead than any wait can be is due."""
    account = backing_off()
    assert account.permit(settings(), in_flight=0, now_ms=NOW - 24 * 60 * MINUTE) == Probe()
    assert account.permit(settings(), in_flight=0, now_ms=NOW - MINUTE) == Wait(NOW + 1000)


class Life(RuleBasedStateMachine):
    """Any events in any order, with a clock that goes on and leaps."""

    @initialize(
        concurrency=st.integers(1, 8),
        max_receipts=st.integers(1, 200),
        retry_max=st.integers(1, 10**6),
        auth_probe=st.integers(1, 10**6),
    )
    def begin(self, concurrency: int, max_receipts: int, retry_max: int, auth_probe: int) -> None:
        """Configure an account."""
        self.settings = HealthSettings(
            concurrency, max_receipts, retry_max, auth_probe, lambda n: min(retry_max, 1 << min(n, 40))
        )
        self.account = AccountHealth(since_ms=NOW)
        self.now = NOW
        self.in_flight: list[tuple[int, bool]] = []

    @rule()
    def send(self) -> None:
        """Send what the account permits."""
        match self.account.permit(self.settings, in_flight=len(self.in_flight), now_ms=self.now):
            case Send(limit):
                assert self.account.state is HealthState.OPEN
                assert 1 <= limit <= self.settings.max_receipts
                self.in_flight.append((limit, False))
                assert len(self.in_flight) <= self.settings.concurrency
            case Probe():
                assert self.account.state is not HealthState.OPEN
                assert not self.in_flight, "a probe is alone"
                self.in_flight.append((1, True))
            case Wait(until):
                assert until is None or until > self.now

    @precondition(lambda self: self.in_flight)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["ok", "outage", "password", "rejected", "too-large", "refused"]),
        asked=st.none() | st.integers(0, 10**7),
    )
    def answer(self, data: st.DataObject, kind: str, asked: int | None) -> None:
        """One of the requests under way is answered."""
        sent, probe = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        before = self.account
        match kind:
            case "ok":
                self.account = before.acknowledged(self.settings, self.now)
                assert self.account.state is HealthState.OPEN
            case "outage":
                self.account = before.outage(
                    self.settings, cause="x", sent=sent, probe=probe, retry_after_ms=asked, now_ms=self.now
                )
                if probe or asked:
                    assert self.account.state is not HealthState.OPEN
                if asked and self.account.state is HealthState.BACKING_OFF:
                    assert self.account.probe_at_ms is not None
                    assert self.account.probe_at_ms >= self.now + min(asked, self.settings.retry_max_ms)
            case "password":
                self.account = before.authentication_failed(self.settings, cause="x", now_ms=self.now)
                assert self.account.state is HealthState.SUSPENDED
            case "rejected":
                self.account = before.rejected(self.settings, cause="x", now_ms=self.now)
                assert self.account.state is HealthState.REJECTING
            case "too-large":
                self.account = before.too_large(sent)
                assert self.account.batch_limit(self.settings) <= max(1, sent // 2)
            case _:
                pass

    @rule()
    def nudge(self) -> None:
        """An admin resumes, or credentials change."""
        self.account = self.account.nudged(self.now)
        if not self.in_flight:
            permit = self.account.permit(self.settings, in_flight=0, now_ms=self.now)
            assert isinstance(permit, Send | Probe)

    @rule(by=st.integers(1, 10**7))
    def wait(self, by: int) -> None:
        """Time passes."""
        self.now += by

    @rule(by=st.integers(-(10**10), 10**10))
    def leap(self, by: int) -> None:
        """The wall clock is set."""
        self.now += by

    @rule(max_receipts=st.integers(1, 200), concurrency=st.integers(1, 8))
    def reload(self, max_receipts: int, concurrency: int) -> None:
        """The configuration changes under way."""
        self.in_flight = self.in_flight[:concurrency]
        self.settings = msgspec.structs.replace(
            self.settings, max_receipts=max_receipts, concurrency=concurrency
        )

    @invariant()
    def batches_have_a_size(self) -> None:
        """A batch may always carry one receipt, and never more than configured."""
        if hasattr(self, "account"):
            assert 1 <= self.account.batch_limit(self.settings) <= self.settings.max_receipts

    @invariant()
    def something_may_go_in_the_end(self) -> None:
        """With nothing under way something may go now, or after the longest wait, whatever the clock did."""
        if hasattr(self, "account"):
            permit = self.account.permit(self.settings, in_flight=0, now_ms=self.now)
            if isinstance(permit, Wait):
                assert permit.until_ms is not None
                longest = max(self.settings.retry_max_ms, self.settings.auth_probe_ms)
                assert permit.until_ms <= self.now + longest
                later = self.account.permit(self.settings, in_flight=0, now_ms=permit.until_ms)
                assert isinstance(later, Probe)

    @invariant()
    def only_an_open_account_sends_batches(self) -> None:
        """An account that is not open has a cause and a time for its probe."""
        if hasattr(self, "account") and self.account.state is not HealthState.OPEN:
            assert self.account.cause is not None
            assert self.account.probe_at_ms is not None
            assert self.account.failures >= 1


Life.TestCase.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
