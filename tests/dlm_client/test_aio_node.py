"""``AsyncClient`` over a node in this process: deadlocks between tasks, and storms of cancellations."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator

import pytest

import dlm
import vsync
from dlm import Mode
from dlm.plugin import service
from tests.in_loop import in_loop, turns
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub


@pytest.fixture(scope="module")
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        yield node


async def nobody(locks: dlm.AsyncClient, *names: str) -> None:
    """Wait until nobody holds or waits for these, nor anything else."""
    while rows := [row for row in await locks.ls() if row.holders or row.converting or row.waiters]:
        assert all(row.name.decode() in names for row in rows)
        await asyncio.sleep(0.002)


@in_loop
async def test_two_clients_of_one_loop_share_readers_and_exclude_writers(node: vsync.Node) -> None:
    threads = set(threading.enumerate())
    async with dlm.AsyncClient(node) as one, dlm.AsyncClient(node) as two:
        async with one.shared("x") as first, two.shared("x") as second:
            assert first.valid
            assert second.valid
            assert await two.try_lock("x") is None
            with pytest.raises(dlm.LockTimeout):
                await two.acquire("x", timeout=0.02, xid=1)
        async with one.lock("x") as held:
            waiting = asyncio.create_task(two.acquire("x"))
            while not await one.contenders("x"):
                await asyncio.sleep(0.002)
            info = await two.show("x")
            assert info is not None
            assert info.mode is Mode.EX
            assert (await two.snapshot()).keys() == {b"x"}
            assert str(await one.why("x"))
        after = await waiting
        assert after.fence > held.fence
        await after.release(wait=True)
        assert await one.holders("x") == ()
        assert (await one.history("x")).events
        assert set(threading.enumerate()) == threads
        assert "session" in repr(one)


@in_loop
async def test_a_node_that_does_not_run() -> None:
    node = vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[])
    with pytest.raises(dlm.NotConnected, match="has not been started"):
        async with dlm.AsyncClient(node):
            pytest.fail("there is no node")
    with pytest.raises(dlm.NotConnected, match="has not been started"):
        dlm.Client(node)


@in_loop
async def test_tasks_that_wait_for_each_other_are_found(node: vsync.Node) -> None:
    """API-R7: the owner is the task. With the loop's thread as owner there would be no circle, or one at once."""
    async with dlm.AsyncClient(node) as locks:
        inside = [asyncio.Event(), asyncio.Event()]
        refused: list[dlm.Deadlock] = []

        async def cross(me: int, first: str, second: str) -> None:
            async with locks.lock(first):
                inside[me].set()
                await inside[1 - me].wait()
                try:
                    async with locks.lock(second, timeout=20):
                        pass
                except dlm.Deadlock as deadlock:
                    refused.append(deadlock)

        await asyncio.gather(cross(0, "left", "right"), cross(1, "right", "left"))
        assert len(refused) == 1
        assert {waiting.name for waiting in refused[0].cycle} == {b"left", b"right"}
        with pytest.raises(dlm.Deadlock):  # a task that waits for itself
            async with locks.lock("x"), locks.lock("x", timeout=20):
                pytest.fail("nobody has it twice")
        await nobody(locks)


@in_loop
async def test_tasks_of_one_client_may_wait_for_one_lock(node: vsync.Node) -> None:
    """No false alarm between tasks (filelock #675), and first come, first served."""
    async with dlm.AsyncClient(node) as locks:
        order: list[int] = []

        async def work(number: int) -> None:
            async with locks.lock("queue", timeout=20):
                order.append(number)
                await asyncio.sleep(0)

        async with locks.lock("queue"):
            tasks = [asyncio.create_task(work(number)) for number in range(20)]
            await turns()
        await asyncio.gather(*tasks)
        assert order == list(range(20))
        await nobody(locks)


@in_loop
async def test_a_transaction_makes_tasks_one_owner(node: vsync.Node) -> None:
    async with dlm.AsyncClient(node) as locks:
        with locks.transaction() as tx:
            async with locks.lock("x"):
                with pytest.raises(dlm.Deadlock) as caught:
                    await asyncio.create_task(locks.acquire("x", timeout=20))
        assert tx.xid
        assert [waiting.name for waiting in caught.value.cycle] == [b"x"]
        await nobody(locks)


@pytest.mark.parametrize("seed", range(4))
@in_loop
async def test_a_storm_of_cancellations_leaves_nothing(node: vsync.Node, seed: int) -> None:
    """API-R8: whatever a task was doing – asking, converting, holding, giving back – nothing of it stays."""
    rng = random.Random(seed)
    async with dlm.AsyncClient(node) as one, dlm.AsyncClient(node) as two:
        writing: set[str] = set()

        async def work(locks: dlm.AsyncClient, pause: float) -> None:
            name, kind = rng.choice("abc"), rng.randrange(4)
            if kind == 0:
                async with locks.all("a", "b", timeout=rng.choice([None, 0.005])):
                    assert not writing & {"a", "b"}
                    await asyncio.sleep(pause)
            elif kind == 1:
                async with locks.lock(name, timeout=rng.choice([None, 0, 0.005])):
                    assert name not in writing
                    writing.add(name)
                    try:
                        await asyncio.sleep(pause)
                    finally:
                        writing.discard(name)
            elif kind == 2:
                held = await locks.acquire(name, Mode.PR)
                try:
                    await held.convert(Mode.EX, timeout=rng.choice([None, 0, 0.005]))
                    await asyncio.sleep(pause)
                finally:
                    await held.release(wait=rng.random() < 0.5)
            else:
                async with locks.shared(name) as held:
                    await asyncio.sleep(pause)
                    assert held.valid

        tasks = [asyncio.create_task(work(rng.choice([one, two]), rng.random() / 300)) for _ in range(120)]
        while not all(task.done() for task in tasks):
            victims = [task for task in tasks if not task.done()]
            rng.choice(victims).cancel()
            await asyncio.sleep(rng.choice([0, 0, 0.0005]))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(
                result, asyncio.CancelledError | dlm.LockTimeout | dlm.Deadlock
            ), repr(result)
        assert not writing
        await nobody(one, "a", "b", "c")
        assert not one.session.watch._entries
        async with one.lock("a"), two.lock("b"):
            pass
