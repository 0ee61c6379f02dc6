"""Semaphores: N permits, in order, that come back by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.recipes import Permit, Semaphore
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
Check = Callable[[dlm.Client, str], None]
LONG_S = 20.0


def test_so_many_permits_in_the_whole_cluster(three: Any, name: str, nothing_left: Check) -> None:
    semaphores = [three.client(node).semaphore(name, 3) for node in "abc"]
    permits = [semaphore.acquire(LONG_S) for semaphore in semaphores]
    assert sorted(permit.number for permit in permits) == [0, 1, 2]
    assert all(permit.valid and permit.fence for permit in permits)
    assert [semaphore.try_acquire() for semaphore in semaphores] == [None] * 3
    with pytest.raises(dlm.LockTimeout, match="no permit within") as caught:
        semaphores[0].acquire(0.05)
    assert caught.value.timeout == 0.05
    number, fence = permits[1].number, permits[1].fence
    permits[1].release(wait=True)
    again = semaphores[2].acquire(0)
    assert again.number == number
    assert again.fence > fence
    for permit in (permits[0], again, permits[2]):
        permit.release()
    nothing_left(three.client("a"), name)


def test_with_gives_a_permit_and_takes_it_back(three: Any, name: str, nothing_left: Check) -> None:
    locks = three.client("a")
    semaphore = locks.semaphore(name, 1, timeout=LONG_S)
    for _ in range(2):
        with semaphore as permit:
            permit.check()
            assert [row.name for row in semaphore.holders()] == [f"{name}/permits/0".encode()]
        assert permit.released
        with pytest.raises(dlm.NotHeld):
            permit.check()
    with pytest.raises(ZeroDivisionError), semaphore:
        raise ZeroDivisionError
    nothing_left(locks, name)


def test_an_unused_permit_costs_no_search(three: Any, name: str) -> None:
    """Who comes back to a semaphore finds the permit it had."""
    semaphore = three.client("b").semaphore(name, 5)
    other = three.client("a").semaphore(name, 5).acquire(LONG_S)
    with semaphore.acquire(LONG_S) as first:
        pass
    other.release(wait=True)
    with semaphore.acquire(LONG_S) as second:
        assert second.number == first.number == 1


def test_waiters_are_served_in_order(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    locks = three.client("a")
    held = [locks.semaphore(name, 2).acquire(LONG_S) for _ in range(2)]
    order: list[int] = []
    waiters = []
    for number, node in enumerate("cabcab"):
        semaphore = three.client(node).semaphore(name, 2)

        def turn(semaphore: Semaphore = semaphore, number: int = number) -> Permit:
            permit = semaphore.acquire(LONG_S)
            order.append(number)
            return permit

        waiters.append(in_thread(turn))
        until(lambda number=number: _waiting(locks, name) == number, "the waiter stands in the queue")
    for number, waiter in enumerate(waiters):
        held.pop(0).release()
        held.append(waiter.outcome())
        assert order == list(range(number + 1))
    for permit in held:
        permit.release()
    nothing_left(locks, name)


def _waiting(locks: dlm.Client, name: str) -> int:
    """How many stand at the gate behind the first; -1 if there is no first."""
    info = locks.show(f"{name}/permits")
    if info is None or info.holders is None or info.waiters is None:
        return -1
    inside = any(holder.mode is dlm.Mode.EX for holder in info.holders)
    return len(info.waiters) if inside else -1


def test_the_permit_of_a_client_that_ends_comes_back(three: Any, name: str, in_thread: InThread) -> None:
    ends, stays = three.client("a"), three.client("b")
    lost = ends.semaphore(name, 1).acquire(LONG_S)
    waiter = in_thread(lambda: stays.semaphore(name, 1).acquire(LONG_S))
    until(lambda: _waiting(stays, name) == 0, "the waiter asks for permits")
    ends.close()
    permit = waiter.outcome()
    assert permit.fence > lost.fence
    assert lost.lost.wait(LONG_S)
    with pytest.raises(dlm.LockLost):
        lost.release()
    permit.release()


def test_the_first_in_line_may_end_as_well(three: Any, name: str, in_thread: InThread) -> None:
    """Its value block is not *valid* then; the number of permits is known still."""
    holder, ends, stays = (three.client(node) for node in "abc")
    permit = holder.semaphore(name, 1).acquire(LONG_S)
    first = in_thread(lambda: ends.semaphore(name, 1).acquire(LONG_S))
    until(lambda: _waiting(holder, name) == 0, "the first stands in line")
    second = in_thread(lambda: stays.semaphore(name, 1).acquire(LONG_S))
    until(lambda: _waiting(holder, name) == 1, "the second stands in line")
    ends.close()
    with pytest.raises(dlm.NotConnected):
        first.outcome()
    until(lambda: _waiting(holder, name) == 0, "the second is the first")
    with pytest.raises(dlm.InvalidRequest, match="in use with 1 permits, not 2"):
        holder.semaphore(name, 2).try_acquire()
    permit.release()
    second.outcome().release()


def test_another_number_of_permits_is_refused(three: Any, name: str, nothing_left: Check) -> None:
    locks, other = three.client("a"), three.client("b")
    with locks.semaphore(name, 2).acquire(LONG_S):
        for attempt in (lambda: other.semaphore(name, 3).acquire(LONG_S), other.semaphore(name, 3).try_acquire):
            with pytest.raises(dlm.InvalidRequest, match="in use with 2 permits, not 3") as caught:
                attempt()
            assert caught.value.code == "mismatch"
    nothing_left(locks, name)
    with other.semaphore(name, 3).acquire(LONG_S):  # nobody used it
        pass


def test_a_try_needs_no_place_in_the_line(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")
    semaphore = locks.semaphore(name, 1)
    first = semaphore.try_acquire()
    assert first is not None
    waiter = in_thread(lambda: three.client("b").semaphore(name, 1).acquire(LONG_S))
    until(lambda: _waiting(locks, name) == 0, "somebody waits")
    assert semaphore.try_acquire() is None
    first.release()
    second = waiter.outcome()
    assert semaphore.try_acquire() is None
    second.release(wait=True)
    third = semaphore.try_acquire()
    assert third is not None
    third.release()


def test_what_this_node_knows_is_a_hint(three: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permit that was given back a moment ago, elsewhere, may still look taken here."""
    locks = three.client("a")
    with locks.acquire("other", dlm.Mode.EX):
        info = locks.show("other")
    semaphore = locks.semaphore(name, 2)
    monkeypatch.setattr(semaphore, "_look", lambda: [info, info])
    permits = [semaphore.acquire(0), semaphore.acquire(LONG_S)]
    assert semaphore.try_acquire() is None
    permits[0].release(wait=True)  # not the one had last
    again = semaphore.acquire(0)
    assert again.number == permits[0].number
    again.release()
    permits[1].release()


def test_an_interrupted_wait_leaves_nothing(
    three: Any, name: str, nothing_left: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = three.client("a")
    held = locks.semaphore(name, 2).acquire(LONG_S), locks.semaphore(name, 2).acquire(LONG_S)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlm.recipes.semaphore.wait_any", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locks.semaphore(name, 2).acquire(LONG_S)
    for permit in held:
        permit.release()
    nothing_left(locks, name)


def test_never_more_than_its_permits(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    inside, most, guard = 0, 0, threading.Lock()

    def work(locks: dlm.Client) -> None:
        nonlocal inside, most
        semaphore = locks.semaphore(name, 2)
        for turn in range(8):
            permit = semaphore.acquire(LONG_S) if turn % 3 else semaphore.try_acquire()
            if permit is None:
                continue
            with permit:
                with guard:
                    inside += 1
                    most = max(most, inside)
                    assert inside <= 2
                with guard:
                    inside -= 1

    threads = [in_thread(lambda node=node: work(three.client(node))) for node in "abcab"]
    for thread in threads:
        thread.outcome()
    assert 1 <= most <= 2
    nothing_left(three.client("a"), name)


def test_a_permit_of_a_node_that_is_cut_off(fragile: Any, name: str, in_thread: InThread) -> None:
    permit = fragile.client("c").semaphore(name, 1).acquire(LONG_S)
    waiter = in_thread(lambda: fragile.client("a").semaphore(name, 1).acquire(LONG_S))
    until(lambda: _waiting(fragile.client("b"), name) == 0, "somebody waits")
    fragile.cut_off(3)
    after = waiter.outcome()
    assert not permit.valid  # before anybody else has it
    assert permit.lost.is_set()
    assert after.fence > permit.fence
    with pytest.raises(dlm.LockLost), permit:
        pass
    after.release()


@pytest.mark.parametrize("permits", [0, -1, 1025])
def test_numbers_that_cannot_be_meant(three: Any, name: str, permits: int) -> None:
    with pytest.raises(dlm.InvalidRequest, match="permits"):
        three.client("a").semaphore(name, permits)


def test_names_that_cannot_be(three: Any) -> None:
    with pytest.raises(dlm.InvalidRequest) as caught:
        three.client("a").semaphore("x" * 52, 1)
    assert caught.value.rule == "E2"
    longest = three.client("a").semaphore("x" * 51, 1024)
    longest.acquire(LONG_S).release()


def test_what_they_look_like(three: Any, name: str) -> None:
    semaphore = three.client("a").semaphore(name, 2)
    assert repr(semaphore) == f"<dlm.Semaphore {name!r} permits=2 timeout=None>"
    with semaphore.acquire(LONG_S) as permit:
        assert repr(permit).startswith(f"<Permit 0 of {name!r}: <Held")
