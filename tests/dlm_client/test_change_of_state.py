"""What clients see of a cluster that falls apart and comes together: suspended, resumed or lost, answered once.

Three nodes in this process. A node that is cut off alone misses a primary view, so its locks are lost; nodes that
are all cut off from each other miss none, so theirs resume (design §5.2).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
from tests.dlm_client.three import Three
from tests.in_loop import in_loop, soon
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
LONG_S = 30.0


@pytest.fixture
def three() -> Iterator[Three]:
    with Three.started() as three:
        yield three


def all_apart(three: Three) -> None:
    for number in (1, 2, 3):
        three.cut_off(number)


def frozen(three: Three, *names: str) -> None:
    """Wait until these nodes know that they are in no primary view."""
    for name in names:
        until(lambda name=name: not three.nodes[name].status()["view"]["primary"], f"the end of the view of {name}")


def together(three: Three) -> None:
    three.hub.heal()
    three.wait_members(3)


def together_first_b_and_c(three: Three) -> None:
    """As all are apart, any two of them may find each other first, and go on without the third."""
    three.hub.heal(2, 3)
    for name in "bc":
        until(lambda name=name: three.nodes[name].status()["view"]["primary"], "the view of b and c")
    together(three)


def queued(info: dlm.LockInfo | None) -> list[Any]:
    """Everybody in all queues of a name that all nodes know."""
    if info is None:
        return []
    return [*(info.holders or ()), *(info.converting or ()), *(info.waiters or ())]


def test_locks_resume_with_the_same_fence_when_nobody_went_on(three: Three) -> None:
    locks = three.client("c")
    told: list[str] = []
    held = locks.acquire("kept", on_lost=lambda held, reason: told.append(reason))
    fence = held.fence
    all_apart(three)
    frozen(three, "a", "b", "c")
    until(lambda: held.suspended, "the suspension")
    assert held.lost.reason == "lease"
    with pytest.raises(dlm.LockSuspended):
        held.check()
    with pytest.raises(dlm.NoQuorum):
        locks.try_lock("other")
    with pytest.raises(dlm.NoQuorum):
        locks.acquire("other", no_quorum="fail")
    together_first_b_and_c(three)
    assert held.wait_valid(LONG_S)
    assert held.fence == fence
    held.check()
    until(lambda: told == ["lease"], "the callback")
    held.release(wait=True)
    with three.client("a").lock("kept", timeout=LONG_S) as after:
        assert after.fence > fence


def test_what_waits_meanwhile_is_granted_once(three: Three, in_thread: InThread) -> None:
    """Requests of before, sent and not answered, and of the time without a primary view; a release of each time."""
    at_b, at_c = three.client("b"), three.client("c")
    shared = at_b.acquire("shared", dlm.Mode.NL)  # known to all: what follows is ordered
    first, second = at_c.acquire("shared", dlm.Mode.EX), at_c.acquire("private", dlm.Mode.EX)
    waiting = in_thread(lambda: at_b.acquire("shared", dlm.Mode.EX, xid=1))
    until(lambda: at_c.contenders("shared"), "the request in the queue")
    all_apart(three)
    frozen(three, "a", "b", "c")
    later = in_thread(lambda: at_c.acquire("private", dlm.Mode.EX, xid=2))
    with pytest.raises(dlm.LockLost):
        first.release(wait=True)  # suspended, and given back all the same: it does not wait for the view
    with pytest.raises(dlm.LockLost):
        second.release()
    together_first_b_and_c(three)
    granted, again = waiting.outcome(), later.outcome()
    assert granted.fence > first.fence
    assert again.fence > second.fence
    until(lambda: len(queued(at_c.show("shared"))) == 2, "the queues")  # the keeper and the one grant
    assert len(queued(at_c.show("private"))) == 1
    for held in (granted, again, shared):
        held.release()


def test_locks_are_lost_when_the_others_went_on(three: Three) -> None:
    at_a, at_c = three.client("a"), three.client("c")
    keeper = at_a.acquire("x", dlm.Mode.NL)
    told: list[str] = []
    held = at_c.acquire("x", on_lost=lambda held, reason: told.append(reason))
    three.cut_off(3)
    assert held.lost.wait(LONG_S)
    assert held.suspended
    with at_a.lock("x", timeout=LONG_S, xid=1) as other:
        assert not held.valid
        assert other.fence > held.fence
        together(three)
        with pytest.raises(dlm.LockLost) as caught:
            held.wait_valid(LONG_S)
        assert caught.value.reason == "evicted"
        with pytest.raises(dlm.LockLost), held:
            pass  # leaving the body
        assert other.valid
    assert told == ["lease"]  # once: the lock could not be relied upon from then on
    keeper.release()


def test_pending_calls_of_a_node_that_begins_anew(three: Three, in_thread: InThread) -> None:
    """The lock is lost and its conversion says so; the request is submitted again, and stands in the queue once."""
    at_a, at_c = three.client("a"), three.client("c")
    keeper = at_a.acquire("x", dlm.Mode.PR)
    reader = at_c.acquire("x", dlm.Mode.PR)
    converting = in_thread(lambda: reader.convert(dlm.Mode.EX))
    until(lambda: (info := at_a.show("x")) and info.converting, "the conversion in the queue")
    other = at_a.acquire("y", dlm.Mode.EX)
    waiting = in_thread(lambda: at_c.acquire("y", dlm.Mode.EX, xid=1))
    until(lambda: at_a.contenders("y"), "the request in the queue")
    three.cut_off(3)
    until(lambda: (info := at_a.show("x")) and not info.converting, "the end of its life")
    assert at_a.contenders("y") == ()
    together(three)
    with pytest.raises(dlm.LockLost) as caught:
        converting.outcome()
    assert caught.value.reason == "evicted"
    until(lambda: at_a.contenders("y"), "the request, submitted again")
    assert len(queued(at_a.show("y"))) == 2
    other.release()
    assert waiting.outcome().fence > other.fence
    until(lambda: len(queued(at_a.show("y"))) == 1, "one grant")
    keeper.release()


def test_a_caller_who_does_not_want_to_wait_is_told_when_the_view_ends(three: Three, in_thread: InThread) -> None:
    at_a, at_c = three.client("a"), three.client("c")
    held = at_a.acquire("x")
    waiting = in_thread(lambda: at_c.acquire("x", no_quorum="fail"))
    until(lambda: at_a.contenders("x"), "the request in the queue")
    three.cut_off(3)
    with pytest.raises(dlm.NoQuorum):
        waiting.outcome()
    together(three)
    until(lambda: at_a.contenders("x") == (), "the end of the request")
    assert held.valid
    held.release()


def test_a_release_that_is_under_way_does_not_wait_for_the_next_view(three: Three, in_thread: InThread) -> None:
    """One that is called without a primary view does not either: it is sent when there is one."""
    at_a, at_c = three.client("a"), three.client("c")
    keepers = [at_a.acquire(name, dlm.Mode.NL) for name in ("x", "y", "z")]
    held, both = at_c.acquire("x", dlm.Mode.PR), at_c.acquire_all("y", "z", mode=dlm.Mode.PR)
    three.cut_off(3)
    releases = [in_thread(lambda: held.release(wait=True)), in_thread(lambda: both.release(wait=True))]
    for release in releases:
        release.outcome()
    together(three)
    for name, keeper in zip(("x", "y", "z"), keepers, strict=True):
        until(lambda name=name: len(queued(at_a.show(name))) == 1, "the end of the lock")
        keeper.release()


def test_the_end_of_the_node_ends_everything(three: Three, in_thread: InThread) -> None:
    """As the death of the daemon: locks are lost, calls fail, and so does what is called later."""
    locks = three.client("c")
    told = threading.Event()
    held = locks.acquire("x", on_lost=lambda held, reason: told.set())
    keeper = three.client("a").acquire("y")
    waiting = in_thread(lambda: locks.acquire("y"))
    election = in_thread(lambda: [term.lost.wait() for term in locks.election("e")])
    until(lambda: three.client("a").election("e").leader(), "the leader")
    three.nodes["c"].stop(graceful=False)
    assert held.lost.wait(LONG_S)
    until(lambda: held.lost.reason == "daemon_gone", "the loss for good")
    assert told.wait(LONG_S)
    for thread in (waiting, election):
        with pytest.raises(dlm.NotConnected):
            thread.outcome()
    with pytest.raises(dlm.NotConnected):
        locks.acquire("z")
    keeper.release()


# -- the same for tasks


@in_loop
async def _tasks(three: Three) -> None:
    """All of the above, as far as it is different code, with one task for each call that waits."""
    async with dlm.AsyncClient(three.nodes["b"]) as at_b, dlm.AsyncClient(three.nodes["c"]) as at_c:
        keeper = await at_b.acquire("shared", dlm.Mode.NL)
        held = await at_c.acquire("shared", dlm.Mode.EX)
        fence = held.fence
        waiting = asyncio.create_task(at_b.acquire("shared", dlm.Mode.EX))
        while not await at_c.contenders("shared"):
            await asyncio.sleep(0.002)
        all_apart(three)
        with pytest.raises(dlm.LockSuspended):
            async with held.cancel_on_lost():
                await asyncio.Event().wait()
        await asyncio.to_thread(frozen, three, "a", "b", "c")
        with pytest.raises(dlm.NoQuorum):
            await at_c.try_lock("other")
        gone = asyncio.create_task(at_c.acquire("other"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await asyncio.to_thread(together_first_b_and_c, three)
        assert await held.wait_valid(LONG_S)
        assert held.fence == fence
        while queued(await at_c.show("other")):  # granted and given back, first thing in the view
            await asyncio.sleep(0.002)
        await held.release()
        assert (await waiting).fence > fence

        mine = await at_c.acquire("mine")
        three.cut_off(3)
        assert await mine.lost == "lease"
        await asyncio.to_thread(three.wait_members, 2)
        await asyncio.to_thread(together, three)
        with pytest.raises(dlm.LockLost) as caught:
            await mine.wait_valid(LONG_S)
        assert caught.value.reason == "evicted"
        again = await at_c.acquire("mine", timeout=LONG_S)
        assert again.fence > mine.fence
        three.nodes["c"].stop(graceful=False)
        assert await again.lost in ("lease", "daemon_gone")
        await soon(lambda: again.lost.reason == "daemon_gone", "the loss for good")
        await soon(lambda: at_c.closed, "the end of the session")
        await keeper.release()


def test_the_same_for_tasks(three: Three) -> None:
    _tasks(three)
