"""Outages of an account: backoff, probes, ramp, Retry-After, and that no row is rewritten (DESIGN §4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlr_buffer.flusher.judgement import outcome_of
from dlr_buffer.health import HealthState
from dlr_buffer.receipts import Receipt, ReceiptError, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer, TooLarge
from tests.integration.flusher.bench import (
    HOUR,
    MINUTE,
    SECOND,
    Bench,
    dump,
    entries,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
    wrong_password,
)
from tests.loops import on_loop


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the flusher logged."""
    return [each.getMessage() for each in caplog.records if each.name.startswith("dlr_buffer.flusher")]


async def cause_backing_off(bench: Bench) -> None:
    """Bring the account down and forget the requests that it took."""
    bench.upstream.answer = lambda _: outage()
    bench.flusher.wake()
    await bench.until(lambda: bench.state() is HealthState.BACKING_OFF)
    bench.upstream.requests.clear()
    bench.upstream.times.clear()


@on_loop
async def test_concurrency_outages_in_a_row_and_then_single_probes(path: Path) -> None:
    """An open account backs off after `concurrency` outages in a row.

    Then one receipt at a time probes, each time another one, with doubling waits up to `retry.max`.
    """
    async with flushing(path, flush_settings(concurrency=3, max_receipts=10)) as bench:
        bench.upstream.answer = lambda _: outage()
        bench.upstream.gate.clear()
        await bench.fill(100)
        await bench.idle()
        bench.upstream.gate.set()
        await bench.idle()
        assert bench.upstream.sizes == [10, 10, 10]
        assert bench.state() is HealthState.BACKING_OFF
        began = bench.clock.monotonic_ms()
        bench.upstream.requests.clear()
        bench.upstream.times.clear()
        await bench.pass_time(HOUR)
        waits = [
            later - earlier
            for earlier, later in zip([began, *bench.upstream.times], bench.upstream.times, strict=False)
        ]
        assert waits[:10] == [1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000, 256000, 512000]
        assert set(waits[10:]) == {10 * MINUTE}
        assert set(bench.upstream.sizes) == {1}
        probes = [each.message_id for request in bench.upstream.requests for each in request]
        assert len(set(probes)) == len(probes)


@on_loop
async def test_the_batch_size_restarts_at_one_and_doubles(path: Path) -> None:
    """After the probe that succeeds, batches carry 1, 2, 4, … receipts up to the configured size."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        await bench.fill(600)
        await cause_backing_off(bench)
        bench.upstream.answer = ok
        await bench.drained()
        assert bench.upstream.sizes == [1, 1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100, 72]
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 600


@pytest.mark.parametrize(
    ("asked_ms", "waited_ms"), [(90 * SECOND, 90 * SECOND), (HOUR, 10 * MINUTE), (1, SECOND)]
)
@on_loop
async def test_retry_after_is_honoured_up_to_retry_max(path: Path, asked_ms: int, waited_ms: int) -> None:
    """One answer with Retry-After is enough to wait, for as long as it says but at most `retry.max`.

    At least the account's own backoff.
    """
    async with flushing(path, flush_settings(max_receipts=100)) as bench:
        bench.upstream.answer = lambda _: outage(retry_after_ms=asked_ms)
        await bench.fill(5)
        await bench.idle()
        assert bench.state() is HealthState.BACKING_OFF
        assert bench.flusher.view().backoff_ms == waited_ms
        bench.upstream.answer = ok
        await bench.pass_time(waited_ms - 1)
        assert len(bench.upstream.requests) == 1
        await bench.pass_time(1)
        assert len(bench.upstream.requests) > 1
        assert bench.pending() == 0


@on_loop
async def test_the_longest_retry_after_of_requests_under_way_counts(path: Path) -> None:
    """When several requests under way come back with Retry-After, the longest is honoured."""
    async with flushing(path, flush_settings(concurrency=3, max_receipts=1)) as bench:
        asked = {1: 5 * SECOND, 2: 60 * SECOND, 3: 20 * SECOND}
        bench.upstream.answer = lambda receipts: outage(retry_after_ms=asked[receipts[0].request_id])
        bench.upstream.gate.clear()
        await bench.fill(3)
        await bench.idle()
        bench.upstream.gate.set()
        await bench.idle()
        assert bench.flusher.view().backoff_ms == 60 * SECOND


@on_loop
async def test_an_outage_with_ten_thousand_pending_rewrites_no_row(path: Path) -> None:
    """An hour of outage leaves the database byte for byte as it was.

    The attempts are counted all the same, and written with the acknowledgement.
    """
    async with flushing(path, flush_settings(concurrency=2)) as bench:
        bench.upstream.answer = lambda _: outage("timeout")
        ids = await bench.fill(10_000)
        before = dump(path)
        commits = bench.queue.store.facts().commits
        await bench.pass_time(HOUR)
        assert bench.queue.store.facts().commits == commits
        assert dump(path) == before
        sent = [each.request_id for request in bench.upstream.requests for each in request]
        for request_id in {sent[0], sent[150], sent[-1]}:
            assert (await bench.queue.receipt(request_id)).attempts == sent.count(request_id)
        bench.upstream.answer = ok
        await bench.drained()
        sent = [each.request_id for request in bench.upstream.requests for each in request]
        assert (await bench.queue.receipt(ids[0])).attempts == sent.count(ids[0])
        assert bench.metrics.totals()["sent"] == len(sent)
        assert bench.metrics.totals()["resent"] == len(sent) - 10_000


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (outage("http-503"), "http-503"),
        (wrong_password(), "authentication"),
        (refused(), "bad-message"),
    ],
    ids=["outage", "password", "rejected"],
)
@on_loop
async def test_one_log_line_a_minute_for_each_cause(
    path: Path, caplog: pytest.LogCaptureFixture, answer: Answer, code: str
) -> None:
    """However many requests fail, an account says so at most once a minute for each cause."""
    caplog.set_level(logging.INFO, "dlr_buffer.flusher")
    settings = flush_settings(concurrency=4, max_receipts=1, auth_probe_ms=SECOND)
    async with flushing(path, settings) as bench:
        bench.upstream.answer = lambda _: answer
        await bench.fill(50)
        began = bench.clock.monotonic_ms()
        await bench.idle()
        while bench.clock.monotonic_ms() < began + 59 * SECOND:
            bench.flusher.resume()  # an admin who is impatient
            await bench.pass_time(SECOND)
        assert len(bench.upstream.requests) > 30
        (line,) = said(caplog)
        assert line.startswith("account default: ")
        assert code in line or "HTTP 503" in line
        await bench.pass_time(SECOND)
        bench.flusher.resume()
        await bench.pass_time(SECOND)
        assert said(caplog) == [line, line]


@on_loop
async def test_an_account_that_comes_and_goes_does_not_flood_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An account that falls and recovers every second writes at most one line a minute of each kind."""
    caplog.set_level(logging.INFO, "dlr_buffer.flusher")
    async with flushing(path, flush_settings(concurrency=1, max_receipts=1)) as bench:
        await bench.fill(200)
        bench.upstream.answer = lambda receipts: (
            ok(receipts) if len(bench.upstream.requests) % 2 else outage()
        )
        bench.flusher.wake()
        await bench.pass_time(55 * SECOND)
        assert len(bench.upstream.requests) > 50
        assert len(said(caplog)) == 2, said(caplog)


@on_loop
async def test_an_outage_in_the_middle_of_a_bisection_is_no_evidence(path: Path) -> None:
    """An outage during a bisection blames nobody: the suspect groups are followed on afterwards."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        down = False

        def answer(receipts: Sequence[Receipt]) -> Answer:
            if down:
                return outage()
            bad = any(each.message_id == "m77" for each in receipts)
            return refused() if bad else ok(receipts)

        bench.upstream.answer = answer
        await bench.fill(5, "proof")
        await bench.drained()
        await bench.fill(100)
        await bench.until(lambda: len(bench.upstream.requests) >= 3)
        down = True
        await bench.until(lambda: bench.state() is HealthState.BACKING_OFF)
        await bench.pass_time(10 * SECOND)
        suspects = bench.flusher.view().set_aside
        down = False
        await bench.drained()
        assert suspects > 0
        assert bench.counted(ReceiptStatus.DEAD) == 1
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 104
        bad = [each for request in bench.upstream.requests for each in request if each.message_id == "m77"]
        assert (await bench.queue.receipt(bad[0].request_id)).attempts == len(bad)


@on_loop
async def test_a_bisection_whose_half_became_too_large_goes_on(path: Path) -> None:
    """413 for a suspect group does not send the same group for ever: it is cut smaller."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:

        def answer(receipts: Sequence[Receipt]) -> Answer:
            size = len(receipts)
            if len(bench.upstream.requests) > 1 and size > 10:
                return TooLarge(413)
            bad = any(each.message_id == "m77" for each in receipts)
            return refused() if bad else ok(receipts)

        bench.upstream.answer = answer
        await bench.fill(100)
        await bench.drained(within_ms=HOUR)
        assert bench.counted(ReceiptStatus.DEAD) == 1
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 99
        assert len(bench.upstream.requests) < 60


@on_loop
async def test_wrong_password_suspends_and_blames_nobody(path: Path) -> None:
    """Authentication errors suspend the account.

    One receipt every `auth_probe`, each time another one, nothing refused; a reload with new credentials probes
    at once.
    """
    async with flushing(path, flush_settings(concurrency=4, max_receipts=10)) as bench:
        bench.upstream.answer = lambda _: wrong_password()
        await bench.fill(100)
        await bench.idle()
        assert bench.state() is HealthState.SUSPENDED
        before = dump(path)
        bench.upstream.requests.clear()
        await bench.pass_time(HOUR)
        assert bench.upstream.sizes == [1] * 12
        assert len({each[0].request_id for each in bench.upstream.requests}) == 12
        assert dump(path) == before
        old, bench.upstream.answer = bench.upstream, ok
        fresh = type(old)(bench.clock)
        bench.flusher.replace(bench.flusher.settings, fresh)
        await bench.idle()
        assert fresh.sizes[0] == 1
        assert bench.pending() == 0
        assert bench.state() is HealthState.OPEN
        assert old.is_closed(), "the connection with the old password is not needed any more"
        bench.upstream = fresh


@on_loop
async def test_an_old_connection_is_closed_even_if_the_account_is_never_idle(path: Path) -> None:
    """A retired connection is closed when its last request ends, though others are under way on the new one."""
    async with flushing(path, flush_settings(concurrency=2, max_receipts=1)) as bench:
        old, fresh = bench.upstream, type(bench.upstream)(bench.clock)
        old.gate.clear()
        fresh.gate.clear()
        await bench.fill(1)
        await bench.idle()
        bench.flusher.replace(bench.flusher.settings, fresh)
        bench.upstream = fresh
        await bench.fill(1, "n")
        await bench.idle()
        assert (old.in_flight, fresh.in_flight) == (1, 1)
        assert not old.is_closed()
        old.gate.set()
        await bench.idle()
        assert old.is_closed()
        assert not fresh.is_closed()


@on_loop
async def test_partial_answers_count_only_with_evidence(path: Path) -> None:
    """What an answer leaves out, or gives another status, is refused on the evidence of the rest of it.

    Sent again alone after its own backoff, and dead after `max_refusals`.
    """
    async with flushing(path, flush_settings(max_refusals=3)) as bench:
        faults = {
            "m1": ReceiptError("missing-entry", "Not in the answer", ""),
            "m2": ReceiptError("missing-status", "The answer gives no status", ""),
            "m3": ReceiptError("contradictory", "The answer contradicts itself", ""),
            "m4": ReceiptError("status", "failed", ""),
        }
        bench.upstream.answer = lambda receipts: entries(receipts, lambda each: faults.get(each.message_id))
        ids = await bench.fill(10)
        await bench.idle()
        assert bench.upstream.sizes == [10]
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 6
        for position, error in ((1, faults["m1"]), (4, faults["m4"])):
            receipt = await bench.queue.receipt(ids[position])
            assert (receipt.refusals, receipt.error) == (1, error)
        faults.pop("m1")
        await bench.drained()
        assert await bench.queue.status(ids[1]) is ReceiptStatus.ACKNOWLEDGED
        assert bench.counted(ReceiptStatus.DEAD) == 3
        assert set(bench.upstream.sizes[1:]) == {1}
        assert (await bench.queue.receipt(ids[1])).error is None


@on_loop
async def test_an_answer_without_any_good_entry_is_one_failure(path: Path) -> None:
    """A hundred faulty entries in one answer make the account rejecting once: its first backoff, not the longest."""
    async with flushing(path) as bench:
        bench.upstream.answer = lambda receipts: entries(
            receipts, lambda _: ReceiptError("missing-status", "The answer gives no status", "")
        )
        await bench.fill(100)
        await bench.idle()
        view = bench.flusher.view()
        assert view.health is HealthState.REJECTING
        assert (view.failures, view.backoff_ms) == (1, SECOND)
        bench.upstream.answer = ok
        await bench.drained(within_ms=HOUR)
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 100


def test_every_answer_has_a_word_for_metrics() -> None:
    """Each kind of answer is counted under a short stable word."""
    assert outcome_of(ok([])) == "acknowledged"
    assert outcome_of(outage("reset")) == "reset"
    assert outcome_of(refused()) == "refused"
    assert outcome_of(wrong_password()) == "authentication"
    assert outcome_of(TooLarge(413)) == "too-large"
