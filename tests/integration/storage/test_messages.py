"""The rules of a message on a real file: registering, reporting, what is final, and ids byte for byte."""

from __future__ import annotations

import asyncio
import random
import unicodedata
from pathlib import Path

import pytest

from dlr_buffer.errors import Conflict, MessageFinal, NotFound
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Registered, Reported
from tests.integration.storage.harness import (
    ACCEPTED,
    ACKNOWLEDGED,
    DELIVERED,
    ENROUTE,
    EXPIRED,
    HOUR,
    PENDING,
    SUPERSEDED,
    UNDELIVERABLE,
    UNKNOWN,
    VALIDITY,
    assert_counters,
    crash_copy,
    opened,
    rows,
)
from tests.loops import on_loop


@pytest.mark.parametrize("first", [None, *MessageState])
@on_loop
async def test_every_transition(path: Path, first: MessageState | None) -> None:
    """From each state, each report is news, a repetition or a 409, and only news makes a receipt."""
    async with opened(path) as queue:
        for reported in MessageState:
            name = f"to-{reported}"
            await queue.register(name)
            if first is not None:
                await queue.report((name, first))
            (outcome,) = await queue.report((name, reported))
            count = len((await queue.view(name)).receipts)
            before = int(first is not None)
            if first is reported:
                assert isinstance(outcome, Reported)
                assert outcome.receipt is None
                assert count == before
                assert outcome.message.state is reported
            elif first is not None and first.final:
                assert isinstance(outcome, MessageFinal)
                assert outcome.state == first.value
                assert count == before
                assert (await queue.message(name)).state is first
            else:
                assert isinstance(outcome, Reported)
                assert outcome.receipt is not None
                assert outcome.receipt.message_state is reported
                assert count == before + 1
                assert (await queue.message(name)).state is reported


@on_loop
async def test_a_b_a_are_three_receipts(path: Path) -> None:
    """Going back to an earlier intermediate state is news each time, and only the newest one waits."""
    async with opened(path) as queue:
        await queue.register("m")
        for state in (ENROUTE, ACCEPTED, ENROUTE, ENROUTE):
            await queue.report(("m", state))
        assert await queue.statuses("m") == [
            (ENROUTE, SUPERSEDED),
            (ACCEPTED, SUPERSEDED),
            (ENROUTE, PENDING),
        ]


@on_loop
async def test_the_first_final_state_wins(path: Path) -> None:
    """After a final state, others are refused and counted; the time it became final stays."""
    async with opened(path) as queue:
        await queue.register("m")
        queue.clock.advance(1000)
        await queue.report_one("m", DELIVERED)
        finalized = queue.clock.now_ms()
        queue.clock.advance(1000)
        outcomes = await queue.report(("m", UNDELIVERABLE), ("m", ENROUTE), ("m", EXPIRED), ("m", DELIVERED))
        assert [type(each) for each in outcomes] == [MessageFinal, MessageFinal, MessageFinal, Reported]
        assert queue.heard.events["late_reports"] == 3
        message = await queue.message("m")
        assert (message.state, message.finalized_at_ms) == (DELIVERED, finalized)
        assert await queue.acknowledge_all() == 1


@on_loop
async def test_a_group_is_judged_in_order(path: Path) -> None:
    """Of many final reports that come at once, the first submitted wins and every other gets 409."""
    async with opened(path) as queue:
        await queue.register("m")
        async with queue.hold_writer():
            states = [DELIVERED, UNDELIVERABLE, DELIVERED, EXPIRED]
            tasks = [asyncio.create_task(queue.report(("m", state))) for state in states]
        outcomes = [each for (each,) in await asyncio.gather(*tasks)]
        assert [type(each) for each in outcomes] == [Reported, MessageFinal, Reported, MessageFinal]
        assert await queue.statuses("m") == [(DELIVERED, PENDING)]


@on_loop
async def test_implicit_registration(path: Path) -> None:
    """A report registers an unknown message with the default validity counted from then, or is 404 if it may not."""
    async with opened(path) as queue:
        (refused,) = await queue.report(("m", ENROUTE), may_register=False)
        assert isinstance(refused, NotFound)
        assert await queue.gone("m")
        await queue.report_one("m", ENROUTE)
        message = await queue.message("m")
        assert message.registered_at_ms == queue.clock.now_ms()
        assert message.expires_at_ms == queue.clock.now_ms() + VALIDITY
        assert queue.heard.events["registered"] == 1


@on_loop
async def test_the_first_registration_adopts_its_validity(path: Path) -> None:
    """The registration after an implicit one brings its period, counted from the first contact; later ones cannot."""
    async with opened(path) as queue:
        first = queue.clock.now_ms()
        await queue.report_one("m", ENROUTE)
        queue.clock.advance(HOUR)
        (adopted,) = await queue.register("m", validity=7200)
        assert isinstance(adopted, Registered)
        assert not adopted.new
        assert adopted.message.expires_at_ms == first + 7_200_000
        (other,) = await queue.register("m", validity=7201)
        (same,) = await queue.register("m", validity=7200)
        (left_out,) = await queue.register("m")
        assert isinstance(other, Conflict)
        assert isinstance(same, Registered)
        assert isinstance(left_out, Registered)
        assert (await queue.message("m")).expires_at_ms == first + 7_200_000


@on_loop
async def test_adopting_without_a_period_settles_it(path: Path) -> None:
    """A first registration that leaves the period out takes the default, and a different one after it conflicts."""
    async with opened(path) as queue:
        await queue.report_one("m", ENROUTE)
        await queue.register("m")
        (other,) = await queue.register("m", validity=60)
        assert isinstance(other, Conflict)


@on_loop
async def test_an_adopted_period_may_be_over_already(path: Path) -> None:
    """A period that ended between the first contact and the registration expires the message at the next sweep."""
    async with opened(path) as queue:
        await queue.report_one("m", ENROUTE)
        queue.clock.advance(HOUR)
        await queue.register("other", validity=1)
        queue.clock.advance(2000)
        assert await queue.expire() == 1
        await queue.register("m", validity=60)
        assert await queue.expire() == 1
        assert (await queue.message("m")).state is EXPIRED


@on_loop
async def test_registering_a_final_message_is_a_success(path: Path) -> None:
    """Once a message is final no period matters: registering again succeeds and changes nothing."""
    async with opened(path) as queue:
        await queue.report_one("implicit", DELIVERED)
        await queue.register("explicit", validity=60)
        await queue.report_one("explicit", DELIVERED)
        for name in ("implicit", "explicit"):
            before = await queue.message(name)
            (outcome,) = await queue.register(name, validity=61)
            assert isinstance(outcome, Registered)
            assert not outcome.new
            assert await queue.message(name) == before


@on_loop
async def test_duplicates_within_one_request(path: Path) -> None:
    """Items act in order as if sent singly: the second of two equal ones is a duplicate, a third period a conflict."""
    async with opened(path) as queue:
        outcomes = await queue.register("a", "b", "a", "a")
        assert [each.new for each in outcomes if isinstance(each, Registered)] == [True, True, False, False]
        outcomes2 = await queue.report(
            ("a", ENROUTE),
            ("a", ENROUTE),
            ("new", ACCEPTED),
            ("a", DELIVERED),
            ("a", ENROUTE),
            ("new", UNKNOWN),
        )
        made = [each.receipt is not None if isinstance(each, Reported) else None for each in outcomes2]
        assert made == [True, False, True, True, None, True]
        assert await queue.statuses("a") == [(ENROUTE, SUPERSEDED), (DELIVERED, PENDING)]
        assert await queue.statuses("new") == [(ACCEPTED, SUPERSEDED), (UNKNOWN, PENDING)]
        assert queue.heard.fresh == {"default": 2}
        assert await queue.acknowledge_all() == 2


@on_loop
async def test_ids_are_kept_byte_for_byte(path: Path) -> None:
    """Ids that look like numbers, differ in case or in normal form are different messages, and come back unchanged."""
    ids = [
        "007",
        "7",
        "7.0",
        " 7",
        "0x7",
        "0xAb",
        "0xab",
        "1e3",
        "1000",
        "é",
        "e\u0301",
        "日本",
        "😀",
        '"',
        "\\u0037",
    ]
    ids += ["null", "'; --", "%41", "A", "a b", "x" * 255]
    assert unicodedata.normalize("NFC", "e\u0301") == "é"
    async with opened(path) as queue:
        outcomes = await queue.register(*ids)
        assert all(isinstance(each, Registered) and each.new for each in outcomes)
        await queue.report(*((each, ENROUTE) for each in ids))
        claim = await queue.store.claim_these("default", list(range(1, len(ids) + 1)))
        assert [each.receipt.message_id for each in claim.claimed] == ids
        for message_id in ids:
            assert (await queue.message(message_id)).message_id == message_id
        assert [row[0] for row in rows(path, "SELECT message_id FROM messages ORDER BY id")] == ids


@on_loop
async def test_accounts_do_not_share_messages(path: Path) -> None:
    """The same id in two accounts is two messages with lives of their own."""
    async with opened(path, accounts=["a", "b"]) as queue:
        await queue.register("m", account="a")
        await queue.register("m", account="b", validity=60)
        await queue.report_one("m", DELIVERED, "a")
        await queue.report_one("m", UNDELIVERABLE, "b")
        assert (await queue.message("m", "a")).state is DELIVERED
        assert (await queue.message("m", "b")).state is UNDELIVERABLE
        assert await queue.acknowledge_all("a") == 1
        assert (await queue.view("m", "b")).receipts[0].receipt.status is PENDING


@on_loop
async def test_bulk_equals_singles(tmp_path: Path, path: Path) -> None:
    """The same items in one request, in groups and one by one end in the same messages and receipts."""
    dice = random.Random(5)
    items = [(f"m{dice.randrange(30)}", dice.choice(list(MessageState))) for _ in range(400)]
    views = []
    for mode in ("bulk", "group", "singles"):
        copy = crash_copy(path, tmp_path / f"{mode}.db")
        async with opened(copy) as queue:
            if mode == "bulk":
                await queue.report(*items)
            elif mode == "group":
                async with queue.hold_writer():
                    tasks = [asyncio.create_task(queue.report(item)) for item in items]
                await asyncio.gather(*tasks)
            else:
                for item in items:
                    await queue.report(item)
            views.append([(await queue.view(name)) for name in sorted({name for name, _ in items})])
    assert views[0] == views[1] == views[2]


@on_loop
async def test_answered_means_stored(path: Path, tmp_path: Path) -> None:
    """What was answered is on the disk at that moment: a copy of the files, as after a crash, has it all."""
    async with opened(path) as queue:
        for n in range(30):
            await queue.register(f"m{n}")
            await queue.report((f"m{n}", DELIVERED))
            if n % 10 == 0:
                (tmp_path / str(n)).mkdir()
                copy = crash_copy(path, tmp_path / str(n) / "copy.db")
                assert rows(copy, "SELECT count(*) FROM messages WHERE state = 6") == [(n + 1,)]
                assert_counters(copy)
        assert await queue.acknowledge_all() == 30
        assert [each for each, _ in await queue.statuses("m3")] == [DELIVERED]
        assert (await queue.view("m3")).receipts[0].receipt.status is ACKNOWLEDGED
