"""Locks that are kept after their release, at three nodes in this process: others get them as if they were free."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
from dlm import Mode, upkeep
from tests.dlm_client.three import Three
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
LONG_S = 30.0
_serial = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[Three]:
    """On a busy machine a client may be silent for long, and its word is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "WORD_AFTER_US", 4_000_000)
        with Three.started() as three:
            yield three


@pytest.fixture
def name() -> bytes:
    return b"c%d" % next(_serial)


def kept(locks: dlm.Client, name: bytes, mode: Mode = Mode.EX) -> int:
    """An idle lock there; its fence."""
    with locks.lock(name, mode, LONG_S, cache=True) as held:
        fence = held.fence
    assert locks.session.kept.cache.idle
    return fence


def share(three: Three, name: bytes) -> list[dlm.Held]:
    """The name is shared for as long as these are there."""
    return [three.client(node).acquire(name, Mode.NL, LONG_S) for node in "bc"]


@pytest.mark.parametrize("shared", [False, True])
def test_nodes_take_turns(three: Three, name: bytes, shared: bool) -> None:
    keepers = share(three, name) if shared else []
    clients = [three.client("a"), three.client("b"), three.client("a")]
    fences = []
    for turn in range(30):
        for _ in range(turn % 3):
            with clients[turn % 3].lock(name, timeout=LONG_S, cache=True) as held:
                held.check()
                fences.append(held.fence)
    assert fences == sorted(set(fences))
    for keeper in keepers:
        keeper.release()


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_try_meets_an_idle_lock_and_gets_it(three: Three, name: bytes, node: str) -> None:
    fence = kept(three.client("a"), name)
    got = three.client(node).try_lock(name)
    assert got is not None
    assert got.fence > fence
    got.release(wait=True)


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_try_meets_a_lock_in_use_and_does_not(three: Three, name: bytes, node: str) -> None:
    mine, other = three.client("a"), three.client(node)
    kept(mine, name)
    with mine.lock(name, cache=True):
        assert other.try_lock(name) is None
        assert other.try_lock(name) is None
    held = other.acquire(name, timeout=LONG_S)
    assert not mine.session.kept.cache.idle
    held.release()


def test_a_multi_lock_that_is_tried_meets_idle_locks_and_gets_them(three: Three, name: bytes) -> None:
    first, second = three.client("a"), three.client("b")
    kept(first, name)
    kept(second, name + b"/2")
    got = three.client("c").try_all(name, name + b"/2")
    assert got is not None
    got.release()


def test_readers_keep_their_locks_beside_each_other(three: Three, name: bytes) -> None:
    readers = [three.client(node) for node in "abc"]
    for reader in readers:
        kept(reader, name, Mode.PR)
    for reader in readers:
        kept(reader, name, Mode.PR)
        assert reader.session.kept.cache.hits == 1
    writer = three.client("a").acquire(name, timeout=LONG_S)
    assert not any(reader.session.kept.cache.idle for reader in readers)
    writer.release()


def test_an_idle_lock_makes_nobody_the_victim_of_a_deadlock(
    three: Three, name: bytes, in_thread: InThread
) -> None:
    """This thread is idle with one lock and waits for another, whose holder waits for the first."""
    mine, other = three.client("a"), three.client("b")
    keepers = [*share(three, name), *share(three, name + b"/2")]
    held = other.acquire(name + b"/2", timeout=LONG_S)
    kept(mine, name)

    def both() -> None:
        other.acquire(name, timeout=LONG_S).release()
        held.release()

    waiting = in_thread(both)
    mine.acquire(name + b"/2", timeout=LONG_S).release()
    waiting.outcome()
    for keeper in keepers:
        keeper.release()


def test_a_real_deadlock_is_found(three: Three, name: bytes, in_thread: InThread) -> None:
    mine, other = three.client("a"), three.client("b")
    keepers = [*share(three, name), *share(three, name + b"/2")]
    there = threading.Event()
    kept(mine, name)

    def theirs() -> bool:
        with other.lock(name + b"/2", timeout=LONG_S):
            there.set()
            return refused(other, name)

    def refused(locks: dlm.Client, wanted: bytes) -> bool:
        try:
            locks.acquire(wanted, timeout=LONG_S).release()
        except dlm.Deadlock:
            return True
        return False

    with mine.lock(name, cache=True):
        waiting = in_thread(theirs)
        assert there.wait(LONG_S)
        me = refused(mine, name + b"/2")
    assert me is not waiting.outcome()
    for keeper in keepers:
        keeper.release()


def test_a_client_that_ends_gives_back_what_is_idle_with_its_value_block(three: Three, name: bytes) -> None:
    keeper = three.client("b").acquire(name, Mode.NL)
    mine = three.client("a")
    with mine.lock(name) as held:
        held.value = b"v"
    kept(mine, name)
    mine.close()
    with three.client("c").lock(name, timeout=LONG_S) as held:
        assert (held.value, held.value_valid) == (b"v", True)
    keeper.release()


def test_people_see_it(three: Three, name: bytes) -> None:
    kept(three.client("a"), name)
    (holder,) = three.client("a").holders(name) or ()
    assert holder.cached
    assert "(cached)" in str(holder)


def test_an_idle_lock_goes_with_its_node_and_comes_back_with_another_fence() -> None:
    with Three.started() as three:
        mine, name = three.client("c"), b"x"
        fence = kept(mine, name)
        three.cut_off(3)
        with three.client("a").lock(name, timeout=LONG_S) as held:
            assert held.fence > fence
            between = held.fence
        three.hub.heal()
        three.wait_members(3)
        with mine.lock(name, timeout=LONG_S, cache=True) as held:
            held.check()
            assert held.fence > between


def outage(three: Three, mine: dlm.Client) -> None:
    """All nodes are apart until the lease of node c, whose client this is, has run out."""
    mine.session.kept.cache.patience = 3_600_000_000
    for number in (1, 2, 3):
        three.cut_off(number)
    until(lambda: mine.session.lease()[1] < mine.session.clock_us(), "the end of the lease")


def ended(three: Three) -> None:
    """It is over, and c is among those who go on."""
    three.hub.heal(2, 3)
    until(lambda: all(three.nodes[name].status()["view"]["primary"] for name in "bc"), "the view of b and c")
    three.hub.heal()
    three.wait_members(3)


def test_an_idle_lock_outlives_an_outage_that_nobody_used() -> None:
    with Three.started() as three:
        mine, name = three.client("c"), b"x"
        fence = kept(mine, name)
        outage(three, mine)
        ended(three)
        with mine.lock(name, timeout=LONG_S, cache=True) as held:
            assert held.fence == fence + 1
        assert mine.session.kept.cache.hits == 1


def test_an_idle_lock_is_not_taken_when_its_lease_is_over() -> None:
    with Three.started() as three:
        mine, name = three.client("c"), b"x"
        fence = kept(mine, name)
        outage(three, mine)
        with pytest.raises(dlm.LockTimeout):
            mine.acquire(name, timeout=0.1, cache=True)
        ended(three)
        with mine.lock(name, timeout=LONG_S, cache=True) as held:
            assert held.fence > fence + 1
        assert mine.session.kept.cache.hits == 0


def test_storage_that_checks_fences_sees_no_old_one(three: Three, name: bytes, in_thread: InThread) -> None:
    """Threads of three nodes with kept locks, mixed with tries and ordinary requests."""
    storage, *beside = [dlm.FencedResource() for _ in range(4)]
    inside = threading.Lock()
    done = [0, 0, 0]

    def work(number: int, client: dlm.Client) -> None:
        for turn in range(60):
            with client.lock(name + b"/%d" % (number // 2), timeout=LONG_S, cache=True) as held:
                beside[number // 2].write(held.fence, b"")  # with two threads at most: at times without a word
            if turn % 10 == 9:
                held = client.try_lock(name)
                if held is None:
                    continue
            else:
                held = client.acquire(name, timeout=LONG_S, cache=turn % 7 != 6)
            with held:
                assert inside.acquire(blocking=False), "two holders"
                storage.write(held.fence, b"%d" % number)
                held.check()
                inside.release()
            done[number % 3] += 1

    clients = [three.client(node) for node in "abcaa"]
    for worker in [in_thread(lambda n=n, c=c: work(n, c)) for n, c in enumerate(clients)]:
        worker.outcome()
    assert all(done)
    assert clients[4].session.kept.cache.hits > 0, "nobody else asks for its second name"
