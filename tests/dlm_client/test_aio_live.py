"""``AsyncClient`` over real daemons: killed, stopped. A short run; the timers are a third of the default."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import dlm
from tests.dlm_client.test_live import INSTALLED, LONG_S, TIMING
from tests.in_loop import in_loop, soon
from vsync.testcluster import LocalCluster

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not INSTALLED, reason="vsync is not installed (pip install -e .): no entry points"),
]


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, timing={f"{key}_ms": value for key, value in TIMING.items()}) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """All nodes are up and in one view, whatever the test before has done."""
    for name in shared_cluster.names:
        if shared_cluster[name].running:
            shared_cluster.cont(name)
        else:
            shared_cluster.restart(name)
    shared_cluster.wait_view(shared_cluster.names)
    return shared_cluster


@in_loop
async def test_two_nodes_take_turns_and_a_cancelled_wait_is_gone(cluster: LocalCluster) -> None:
    threads = set(threading.enumerate())
    async with dlm.AsyncClient(cluster["a"].url) as at_a, dlm.AsyncClient(cluster["b"].url, name="waiter") as at_b:
        fences = []
        for locks in (at_a, at_b, at_b, at_a):
            async with locks.lock("turns", timeout=LONG_S) as held:
                assert held.valid
                fences.append(held.fence)
        assert fences == sorted(set(fences))
        async with at_a.lock("turns", timeout=LONG_S):
            waiting = asyncio.create_task(at_b.acquire("turns"))
            while not (queue := await at_a.contenders("turns")):
                await asyncio.sleep(0.01)
            assert queue[0].program == "waiter"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while await at_a.contenders("turns"):
                await asyncio.sleep(0.01)
        assert set(threading.enumerate()) == threads


@in_loop
async def test_a_body_ends_when_its_daemon_is_killed(cluster: LocalCluster) -> None:
    told: list[str] = []
    async with dlm.AsyncClient(cluster["b"].url) as at_b:
        with pytest.raises(dlm.LockLost) as caught:
            async with dlm.AsyncClient(cluster["a"].url) as at_a:
                lock = at_a.lock("moves", timeout=LONG_S, cancel_on_lost=True)
                async with lock as old:
                    old.tell(lambda held, reason: told.append(reason), None)
                    cluster.kill("a")
                    await asyncio.Event().wait()
        assert caught.value.reason == "daemon_gone"
        assert told == ["daemon_gone"]
        async with at_b.lock("moves", timeout=LONG_S) as new:
            assert new.fence >> 32 > old.fence >> 32


@in_loop
async def test_a_body_ends_when_its_daemon_is_stopped_before_another_has_the_lock(cluster: LocalCluster) -> None:
    async with dlm.AsyncClient(cluster["b"].url) as at_b, dlm.AsyncClient(cluster["c"].url) as at_c:
        order: list[str] = []

        async def next_one() -> None:
            async with at_c.lock("frozen", timeout=LONG_S):
                order.append("granted")

        with pytest.raises(dlm.LockSuspended):
            async with at_b.lock("frozen", timeout=LONG_S, cancel_on_lost=True) as old:
                cluster.stop("b")
                later = asyncio.create_task(next_one())
                try:
                    await asyncio.Event().wait()
                finally:
                    order.append("ended")
        await later
        assert order == ["ended", "granted"]
        cluster.cont("b")
        await soon(lambda: old.released, "the handle's end")
        async with at_b.lock("frozen", timeout=LONG_S) as again:
            assert again.fence > old.fence


@in_loop
async def test_a_killed_client_frees_its_lock_at_once(cluster: LocalCluster) -> None:
    program = """
import asyncio, dlm, sys
async def main():
    async with dlm.AsyncClient(sys.argv[1]) as locks:
        held = await locks.acquire("held")
        print("held", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, cluster["a"].url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == b"held\n"
        async with dlm.AsyncClient(cluster["b"].url) as locks:
            assert await locks.try_lock("held") is None
            client.kill()
            async with locks.lock("held", timeout=LONG_S) as held:
                assert held.valid


@in_loop
async def test_a_candidate_that_connects_again_outlives_its_daemon(cluster: LocalCluster) -> None:
    """The loop ends with its session, loudly; the loop around it (docs/recipes.md) leads again."""
    fences: list[int] = []
    ended: list[dlm.NotConnected] = []

    async def lead_for_ever() -> None:
        while True:
            try:
                async with dlm.AsyncClient(cluster["a"].url) as locks:
                    async for term in locks.election("scheduler"):
                        fences.append(term.fence)
                        await term.lost
            except dlm.NotConnected as error:
                ended.append(error)
                await asyncio.sleep(0.02)

    leads = asyncio.create_task(lead_for_ever())
    await soon(lambda: fences, "the first term", LONG_S)
    cluster.kill("a")
    await soon(lambda: ended, "the end of the session", LONG_S)
    cluster.restart("a")
    await soon(lambda: len(fences) > 1, "the next term", LONG_S)
    leads.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leads
    assert fences == sorted(set(fences))
