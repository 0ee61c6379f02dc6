"""Elections and semaphores of tasks: the same as those of threads, with which they share names and lines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import dlm
from dlm.aio.doorbell import bells_of
from dlm.recipes import Leader
from tests.in_loop import in_loop, turns

LONG_S = 20.0
Check = Callable[[dlm.Client, str], None]


async def until(condition: Callable[[], Any], what: str) -> None:
    """Poll a condition that is a coroutine function."""
    async with asyncio.timeout(LONG_S):
        while not await condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def clients(three: Any, *names: str) -> AsyncIterator[list[dlm.AsyncClient]]:
    """A client of each node."""
    opened = [await dlm.AsyncClient(three.nodes[name]).open() for name in names]
    try:
        yield opened
    finally:
        for client in opened:
            await client.close()


def session(client: dlm.AsyncClient) -> int:
    number: int = client.session.channel.welcome["session"]
    return number


async def waiting(client: dlm.AsyncClient, name: str, count: int) -> None:
    async def so_many() -> bool:
        return len(await client.election(name).candidates()) == count

    await until(so_many, f"{count} candidates")


# -- election


@in_loop
async def _one_leads(three: Any, name: str) -> None:
    threaded = three.client("c").election(name, "threaded")
    async with clients(three, "a", "b") as (a, b):
        first, second = a.election(name, "a"), b.election(name, "b")
        assert await second.leader() is None
        term = await first.campaign(LONG_S)
        assert term.valid
        assert await second.leader() == Leader("a", term.fence, 1, session(a))
        assert await asyncio.to_thread(threaded.leader) == await first.leader()
        later = asyncio.create_task(second.campaign())
        await waiting(a, name, 1)
        last = asyncio.create_task(asyncio.to_thread(threaded.campaign, LONG_S))
        await waiting(a, name, 2)
        assert [candidate.node for candidate in await first.candidates()] == [2, 3]
        assert repr(term).endswith("leading>")
        await term.resign()
        await term.resign()  # once is enough
        assert await term.lost == "resigned"
        async with await later as next_term:
            next_term.check()
            assert next_term.fence > term.fence
            assert await term.lost.wait(0)
            assert not await next_term.lost.wait(0)
        with pytest.raises(dlm.NotHeld):
            async with next_term:
                pytest.fail("it is over")
        threaded_term = await last
        assert threaded_term.fence > next_term.fence
        assert (await first.leader()).identity == "threaded"  # type: ignore[union-attr]
        await asyncio.to_thread(threaded_term.resign)
        with pytest.raises(dlm.LockTimeout):
            async with await first.campaign(0), await second.campaign(0.02):
                pytest.fail("two leaders")


def test_one_leads_and_the_next_in_line_follows(three: Any, name: str, nothing_left: Check) -> None:
    _one_leads(three, name)
    nothing_left(three.client("a"), name)


@in_loop
async def _loops(three: Any, name: str) -> None:
    async with clients(three, "a", "b") as (a, b):
        one, two = a.election(name, "one"), b.election(name, "two")
        go_on = {"one": asyncio.Event(), "two": asyncio.Event()}
        terms: list[Any] = []

        async def run(election: Any) -> str:
            async for term in election:
                terms.append(term)
                await go_on[election.identity].wait()
                go_on[election.identity].clear()
            return "ended"

        first = asyncio.create_task(run(one))
        while not terms:
            await asyncio.sleep(0.002)
        second = asyncio.create_task(run(two))
        await waiting(a, name, 1)
        for identity, count in (("one", 2), ("two", 3)):
            go_on[identity].set()
            while len(terms) < count:
                await asyncio.sleep(0.002)
            assert terms[-2].lost.reason == "resigned"
            await waiting(a, name, 1)  # behind
        assert [term.identity for term in terms] == ["one", "two", "one"]
        assert [term.fence for term in terms] == sorted(term.fence for term in terms)
        await two.resign()  # while it waits
        assert await second == "ended"
        await one.resign()  # while it leads
        assert terms[-1].lost.reason == "resigned"
        go_on["one"].set()
        assert await first == "ended"
        assert await two.leader() is None


def test_the_loop_is_entered_as_leader_and_goes_on(three: Any, name: str, nothing_left: Check) -> None:
    _loops(three, name)
    nothing_left(three.client("a"), name)


@in_loop
async def _endings(three: Any, name: str) -> None:
    async with clients(three, "a") as (locks,):
        election = locks.election(name)
        async for term in election:
            assert term.valid
            break
        assert term.lost.reason == "resigned"  # at once, and not when the loop of events comes round to it
        terms = []
        with pytest.raises(KeyError):
            async for term in election:
                terms.append(term)
                raise KeyError("the body's own")
        assert terms[0].lost.reason == "resigned"

        async def led(inside: asyncio.Event) -> None:
            async for _ in election:
                inside.set()
                await asyncio.Event().wait()

        for _ in range(3):
            inside = asyncio.Event()
            task = asyncio.create_task(led(inside))
            await inside.wait()
            other = asyncio.create_task(locks.election(name).campaign())
            await waiting(locks, name, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with await other:
                pass
        with pytest.raises(dlm.LockLost):
            async with await election.campaign() as term:
                term.held.mark_lost("evicted")


def test_break_exceptions_and_cancellations_end_the_term(three: Any, name: str, nothing_left: Check) -> None:
    _endings(three, name)
    nothing_left(three.client("a"), name)


@in_loop
async def _candidate_gives_up(three: Any, name: str) -> None:
    async with clients(three, "a", "b") as (a, b):
        async with await a.election(name).campaign():
            candidate = b.election(name)
            task = asyncio.create_task(candidate.campaign())
            await waiting(a, name, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await waiting(a, name, 0)
            task = asyncio.create_task(candidate.campaign())
            await waiting(a, name, 1)
            await candidate.resign()
            with pytest.raises(dlm.LockCancelled, match="resigned"):
                await task
            await waiting(a, name, 0)
        await turns()
        assert not bells_of(b.session)._bells


def test_a_candidate_that_gives_up(three: Any, name: str, nothing_left: Check) -> None:
    _candidate_gives_up(three, name)
    nothing_left(three.client("a"), name)


@in_loop
async def _changes(three: Any, name: str) -> None:
    async with clients(three, "a", "b", "c") as (a, b, c):
        seen: asyncio.Queue[Leader | None] = asyncio.Queue()

        async def observe() -> None:
            async for leader in c.election(name).changes():
                seen.put_nowait(leader)

        async def until_seen(identity: str | None) -> None:
            while (leader := await seen.get()) is not None or identity is not None:
                if leader is not None and leader.identity == identity:
                    return

        observer = asyncio.create_task(observe())
        assert await seen.get() is None
        async with await a.election(name, "a").campaign():
            await until_seen("a")
        await until_seen(None)
        await b.election(name, "b").campaign()
        await until_seen("b")
        await b.close()  # as if it had died: nobody rings
        await until_seen(None)
        await c.close()
        with pytest.raises(dlm.NotConnected):
            await observer


def test_changes_are_told(three: Any, name: str) -> None:
    _changes(three, name)


@in_loop
async def _cut_off(three: Any, name: str) -> None:
    async with clients(three, "a", "c") as (a, c):
        told: list[str] = []

        async def run(client: dlm.AsyncClient, who: str) -> None:
            async for term in client.election(name, who):
                try:
                    async with term.cancel_on_lost():
                        told.append(who)
                        await asyncio.Event().wait()
                except dlm.LockLost:
                    told.append(f"{who} lost")

        first = asyncio.create_task(run(c, "c"))
        while told != ["c"]:
            await asyncio.sleep(0.002)
        second = asyncio.create_task(run(a, "a"))
        await waiting(a, name, 1)
        three.cut_off(3)
        while "a" not in told:
            await asyncio.sleep(0.002)
        assert told == ["c", "c lost", "a"]  # never two
        three.hub.heal()
        await asyncio.to_thread(three.wait_members, 3)
        await waiting(a, name, 1)
        second.cancel()
        while told.count("c") < 2:
            await asyncio.sleep(0.002)
        three.nodes["c"].stop(graceful=False)
        with pytest.raises(dlm.NotConnected):  # the loop ends with its session
            await first
        assert told[-1] == "c lost"


def test_a_leader_that_is_cut_off_and_one_whose_node_ends(fragile: Any, name: str) -> None:
    _cut_off(fragile, name)


# -- semaphore


@in_loop
async def _permits(three: Any, name: str) -> None:
    threaded = three.client("c").semaphore(name, 2)
    async with clients(three, "a", "b") as (a, b):
        pool, others = a.semaphore(name, 2, timeout=LONG_S), b.semaphore(name, 2)
        async with pool as permit:
            assert permit.number in (0, 1)
            assert permit.valid
            permit.check()
            second = await others.acquire()
            assert second.number != permit.number
            assert await pool.try_acquire() is None
            assert await asyncio.to_thread(threaded.try_acquire) is None
            assert len(await others.holders()) == 2
            with pytest.raises(dlm.LockTimeout):
                await pool.acquire(0.02)
            with pytest.raises(dlm.InvalidRequest) as caught:
                await b.semaphore(name, 3).acquire()
            assert caught.value.code == "mismatch"
            waits = asyncio.create_task(pool.acquire())
            await turns()
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            waits = asyncio.create_task(pool.acquire())
            fence = second.fence
            await second.release(wait=True)
            third = await waits
            assert third.number == second.number
            assert third.fence > fence
            assert "of" in repr(third)
            await third.release()
            with pytest.raises(dlm.NotHeld):
                await third.release()
        assert permit.released
        with pytest.raises(dlm.LockLost):
            async with a.semaphore(name, 2, cancel_on_lost=True) as permit:
                permit.held.mark_lost("evicted")
                await asyncio.Event().wait()
        assert permit.lost.reason == "evicted"


def test_permits_are_shared_by_tasks_and_threads(three: Any, name: str, nothing_left: Check) -> None:
    _permits(three, name)
    nothing_left(three.client("a"), name)


@in_loop
async def _storm(three: Any, name: str) -> None:
    rng = random.Random(name)
    async with clients(three, "a", "b") as pools:
        inside: list[int] = []

        async def work(client: dlm.AsyncClient, pause: float) -> None:
            async with client.semaphore(name, 3, rng.choice([None, 0, 0.05])) as permit:
                assert permit.number not in inside
                inside.append(permit.number)
                try:
                    await asyncio.sleep(pause)
                finally:
                    inside.remove(permit.number)

        tasks = [asyncio.create_task(work(rng.choice(pools), rng.random() / 100)) for _ in range(40)]
        while not all(task.done() for task in tasks):
            if rng.random() < 0.3:
                rng.choice([task for task in tasks if not task.done()]).cancel()
            await asyncio.sleep(0.005)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError | dlm.LockTimeout), repr(result)


def test_a_storm_of_cancellations_leaves_no_permit_behind(three: Any, name: str, nothing_left: Check) -> None:
    _storm(three, name)
    nothing_left(three.client("c"), name)
