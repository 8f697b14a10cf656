"""What admins do to receipts and messages, on a real file."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from dlr_buffer.errors import MessageFinal, NotFound
from dlr_buffer.receipts import ReceiptAction, Reported, takes
from dlr_buffer.selection import ActionCount, MessageAction, MessageName
from tests.integration.storage.harness import (
    ACCEPTED,
    DAY,
    DEAD,
    DELIVERED,
    ENROUTE,
    EXPIRED,
    HELD,
    PENDING,
    SUPERSEDED,
    UNDELIVERABLE,
    UNKNOWN,
    Queue,
    assert_linked,
    opened,
    rows,
)
from tests.loops import on_loop

RETRY, HOLD = ReceiptAction.RETRY, ReceiptAction.HOLD
RELEASE, DELETE = ReceiptAction.RELEASE, ReceiptAction.DELETE


async def one_of_each(queue: Queue) -> dict[str, int]:
    """A receipt in every situation; returns their ids."""
    ids = {"dead": await queue.kill("dead"), "superseded": await queue.report_one("s", ENROUTE)}
    ids["newer"] = await queue.report_one("s", DELIVERED)
    ids["acknowledged"] = await queue.report_one("acknowledged", DELIVERED)
    assert set(await queue.claim()) == {ids["newer"], ids["acknowledged"]}
    await queue.settle(acknowledged=[ids["newer"], ids["acknowledged"]])
    ids["backing off"] = await queue.report_one("backing off", DELIVERED)
    await queue.claim()
    await queue.settle(refused=[ids["backing off"]])
    ids["held"] = await queue.report_one("held", DELIVERED)
    await queue.act(HOLD, ids["held"])
    ids["in flight"] = await queue.report_one("in flight", DELIVERED)
    await queue.claim()
    ids["pending"] = await queue.report_one("pending", DELIVERED)
    return ids


@pytest.mark.parametrize("action", list(ReceiptAction))
@on_loop
async def test_each_action_on_each_status(path: Path, action: ReceiptAction) -> None:
    """An action changes what it takes, skips the rest and leaves what is in flight; a dry run says so beforehand."""
    async with opened(path) as queue:
        ids = await one_of_each(queue)
        before = {name: await queue.receipt(each) for name, each in ids.items()}
        taken = {
            name for name, receipt in before.items() if name != "in flight" and takes(action, receipt.status)
        }
        asked = [*ids.values(), 4711]
        expected = (len(taken), len(asked) - len(taken) - 1, 1)
        commits = queue.store.facts().commits
        assert await queue.act(action, *asked, dry_run=True) == expected
        assert queue.store.facts().commits == commits
        assert {name: await queue.receipt(each) for name, each in ids.items()} == before
        assert await queue.act(action, *asked) == expected
        for name, each in ids.items():
            view = await queue.store.receipt(each)
            if name not in taken:
                assert view is not None
                assert view.receipt == before[name]
            elif action is DELETE:
                assert view is None
            else:
                assert view is not None
                assert view.receipt.status is (HELD if action is HOLD else PENDING)
                replayed = action is RETRY and name != "pending"
                assert view.receipt.next_attempt_at_ms == (queue.clock.now_ms() if replayed else None)
                assert "by an admin" in view.history[-1].detail
                assert (await queue.message(name)).state is DELIVERED
        if action in (RETRY, RELEASE):
            due = [*await queue.claim(), *await queue.claim_replays()]
            assert sorted(due) == sorted({ids[name] for name in taken} | {ids["pending"]})


@on_loop
async def test_retry_sends_the_same_id_with_refusals_zeroed(path: Path) -> None:
    """A dead letter comes back under its own request_id, due now, with a clean count."""
    async with opened(path) as queue:
        one = await queue.kill("m")
        queue.clock.advance(9 * DAY)
        assert await queue.act(RETRY, one) == (1, 0, 0)
        receipt = await queue.receipt(one)
        assert (receipt.status, receipt.refusals, receipt.attempts) == (PENDING, 0, 1)
        fresh = await queue.report_one("fresh", DELIVERED)
        assert await queue.claim() == [fresh], "it does not go before what came since"
        assert await queue.claim_replays() == [one]
        await queue.settle(refused=[one])
        assert await queue.status(one) is PENDING, "one refusal of three, and the lifetime restarted"
        await queue.act(RETRY, one)
        assert await queue.claim_replays() == [one], "due now, not after its backoff"


@on_loop
async def test_replays_go_together_and_refused_ones_alone(path: Path) -> None:
    """Due ones go in the order of their times: replays as many as fit, one that was refused by itself."""
    async with opened(path) as queue:
        refused = await queue.report_one("refused", DELIVERED)
        assert await queue.claim() == [refused]
        await queue.settle(refused=[refused])
        dead = [await queue.kill(f"dead{number}") for number in range(5)]
        await queue.act(RETRY, *dead[:3])
        queue.clock.advance(1000)
        await queue.act(RETRY, *dead[3:])
        assert await queue.claim_replays(limit=2) == dead[:2]
        assert await queue.claim_replays() == [dead[2]]
        assert await queue.claim_replays() == [refused]
        assert await queue.claim_replays() == dead[3:]
        assert await queue.claim_replays() == []


@on_loop
async def test_retry_of_an_overtaken_dead_letter(path: Path) -> None:
    """A dead intermediate receipt with a newer sibling becomes superseded instead of being sent after it."""
    async with opened(path) as queue:
        old = await queue.kill("m", ENROUTE)
        new = await queue.report_one("m", DELIVERED)
        assert await queue.status(old) is DEAD
        assert await queue.act(RETRY, old) == (1, 0, 0)
        assert await queue.status(old) is SUPERSEDED
        assert await queue.claim() == [new]


@on_loop
async def test_holding_and_killing_leave_the_message_final(path: Path) -> None:
    """A held, dead or deleted final receipt leaves the message final: repeated is known, anything else 409."""
    async with opened(path) as queue:
        held = await queue.report_one("held", DELIVERED)
        await queue.act(HOLD, held)
        await queue.kill("dead")
        deleted = await queue.report_one("deleted", DELIVERED)
        await queue.act(DELETE, deleted)
        for name in ("held", "dead", "deleted"):
            (again,) = await queue.report((name, DELIVERED))
            assert isinstance(again, Reported)
            assert again.receipt is None
            (other,) = await queue.report((name, UNDELIVERABLE))
            assert isinstance(other, MessageFinal)
            assert (await queue.register(name)) != []
        assert await queue.claim() == []
        assert await queue.expire() == 0


@on_loop
async def test_a_deleted_intermediate_state_is_known_still(path: Path) -> None:
    """Reporting the state whose receipt was deleted makes none anew, and another state goes on as ever."""
    async with opened(path) as queue:
        one = await queue.report_one("m", ENROUTE)
        await queue.act(DELETE, one)
        (again,) = await queue.report(("m", ENROUTE))
        assert isinstance(again, Reported)
        assert again.receipt is None
        assert await queue.report_one("m", ACCEPTED) == 2
        queue.clock.advance(4 * DAY)
        assert await queue.expire() == 1


@pytest.mark.parametrize(
    "doomed", [each for n in range(1, 4) for each in itertools.combinations(range(4), n)]
)
@on_loop
async def test_deletes_keep_the_chain_linked(path: Path, doomed: tuple[int, ...]) -> None:
    """Whichever of a message's receipts are deleted, the others are shown in order and more can follow."""
    async with opened(path) as queue:
        ids = [await queue.kill("m", state) for state in (ENROUTE, ACCEPTED, UNKNOWN, DELIVERED)]
        await queue.act(DELETE, *(ids[n] for n in doomed))
        left = [each for n, each in enumerate(ids) if n not in doomed]
        view = await queue.view("m")
        assert [each.receipt.request_id for each in view.receipts] == left
        assert view.message.state is DELIVERED
        assert_linked(path)


@on_loop
async def test_deleting_the_newer_while_the_older_is_in_flight(path: Path) -> None:
    """If the newer receipt is deleted while the older is on the wire, the older ends and nothing dangles."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        await queue.claim()
        new = await queue.report_one("m", ACCEPTED)
        assert await queue.act(DELETE, new, old) == (1, 0, 1)
        await queue.settle(returned=[old])
        assert await queue.status(old) is SUPERSEDED
        newest = await queue.report_one("m", DELIVERED)
        assert await queue.claim() == [newest]
        assert not queue.store._writer.claims._newer


@on_loop
async def test_expiring_messages(path: Path) -> None:
    """Expire takes what is not final, whatever its deadline, and supersedes what waited; others are skipped."""
    async with opened(path) as queue:
        await queue.register("waits", "flies")
        held = await queue.report_one("held", ENROUTE)
        await queue.act(HOLD, held)
        flying = await queue.report_one("flies", ENROUTE)
        await queue.claim()
        await queue.report_one("final", DELIVERED)
        names = ["waits", "held", "flies", "final", "unknown"]
        expire = MessageAction.EXPIRE
        commits = queue.store.facts().commits
        assert await queue.act_on_messages(expire, *names, dry_run=True) == (3, 2, 0)
        assert queue.store.facts().commits == commits
        assert (await queue.message("waits")).state is None
        assert await queue.act_on_messages(expire, *names) == (3, 2, 0)
        assert await queue.statuses("waits") == [(EXPIRED, PENDING)]
        assert await queue.statuses("held") == [(ENROUTE, SUPERSEDED), (EXPIRED, PENDING)]
        assert await queue.statuses("flies") == [(ENROUTE, PENDING), (EXPIRED, PENDING)]
        await queue.settle(refused=[flying])
        assert await queue.statuses("flies") == [(ENROUTE, SUPERSEDED), (EXPIRED, PENDING)]
        queue.clock.advance(30 * DAY)
        assert await queue.expire() == 0


@on_loop
async def test_deleting_messages(path: Path) -> None:
    """Delete removes a message with all its receipts; one in flight stays; afterwards the id is new."""
    async with opened(path) as queue:
        await queue.register("waits")
        await queue.kill("dead", ENROUTE)
        await queue.report_one("dead", DELIVERED)
        bereft = await queue.report_one("bereft", DELIVERED)
        await queue.act(DELETE, bereft)
        await queue.report_one("flies", DELIVERED)
        assert len(await queue.claim()) == 2
        await queue.settle(returned=[2])
        names = ["waits", "dead", "bereft", "flies", "unknown"]
        delete = MessageAction.DELETE
        commits = queue.store.facts().commits
        assert await queue.act_on_messages(delete, *names, dry_run=True) == (3, 1, 1)
        assert queue.store.facts().commits == commits
        assert await queue.act_on_messages(delete, *names) == (3, 1, 1)
        assert [await queue.gone(name) for name in names] == [True, True, True, False, True]
        assert rows(path, "SELECT count(*) FROM receipts") == [(1,)]
        assert await queue.report_one("dead", ENROUTE) == 5


@on_loop
async def test_unknown_accounts_are_skipped(path: Path) -> None:
    """Messages of accounts that the database does not know are skipped, pausing one is NotFound."""
    async with opened(path) as queue:
        names = [MessageName("nobody", "m"), MessageName("default", "m")]
        count = await queue.store.steer_messages(
            MessageAction.DELETE, names, now_ms=queue.clock.now_ms(), dry_run=False
        )
        assert count == ActionCount(0, 2, 0)
        with pytest.raises(NotFound):
            await queue.store.set_paused("nobody", paused=True)
        assert await queue.store.message(names[0]) is None
        assert await queue.store.receipt(2**64) is None


@on_loop
async def test_a_dry_run_does_not_wait_for_the_writer(path: Path) -> None:
    """What an action would do is counted on a reader, while the writer is busy."""
    async with opened(path) as queue:
        one = await queue.report_one("m", DELIVERED)
        async with queue.hold_writer(), asyncio.timeout(30):
            assert await queue.act(HOLD, one, 4711, dry_run=True) == (1, 1, 0)
            assert await queue.act_on_messages(MessageAction.DELETE, "m", dry_run=True) == (1, 0, 0)
            assert await queue.act_on_messages(MessageAction.EXPIRE, "m", dry_run=True) == (0, 1, 0)


@on_loop
async def test_ids_of_nineteen_digits(path: Path) -> None:
    """Request ids up to the largest that the database holds are found and acted on; larger ones are unknown."""
    first = 10**18
    async with opened(path, first_request_id=first) as queue:
        assert await queue.report_one("m", DELIVERED) == first
        assert (await queue.receipt(first)).message_id == "m"
        assert await queue.act(HOLD, first, first + 1, 2**63, 10**19 - 1) == (1, 3, 0)
        assert await queue.status(first) is HELD
        assert await queue.act(RELEASE, first) == (1, 0, 0)
        for unknown in (2**63 - 1, 2**63, 10**19 - 1):
            assert await queue.store.receipt(unknown) is None
        assert await queue.acknowledge_all() == 1
