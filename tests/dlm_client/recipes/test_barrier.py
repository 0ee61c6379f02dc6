"""Barriers: together or not at all, again and again, and the dead do not count."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.recipes.barrier import _MAGIC, _STATE
from dlm.recipes.deadline import Deadline
from dlm.recipes.doorbell import group_of
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
Check = Callable[[dlm.Client, str], None]
LONG_S = 20.0


def arrived(locks: dlm.Client, name: str, parties: int, what: str) -> None:
    """Wait until so many seats are taken by parties that wait, as this node knows it."""

    def seats() -> int:
        gate = locks.show(f"{name}/barrier")
        if gate is None or any(holder.mode is dlm.Mode.EX for holder in gate.holders or ()):
            return -1
        return sum(bool(row.holders) for row in locks.ls(f"{name}/barrier/"))

    until(lambda: seats() == parties, what)


def test_nobody_goes_on_before_all_are_there(
    three: Any, name: str, in_thread: InThread, nothing_left: Check
) -> None:
    barriers = [three.client(node).barrier(name, 3, timeout=LONG_S) for node in "abc"]
    early = [in_thread(barriers[0].wait)]
    arrived(three.client("a"), name, 1, "one party")
    early.append(in_thread(barriers[1].wait))
    arrived(three.client("b"), name, 2, "two parties")
    assert not any(thread._future.done() for thread in early)
    numbers = [barriers[2].wait(), *(thread.outcome() for thread in early)]
    assert sorted(numbers) == [0, 1, 2]
    nothing_left(three.client("a"), name)


def test_it_is_reusable_and_in_step(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    """No party is ever more than one round ahead of another."""
    rounds = [0] * 4
    guard = threading.Lock()

    def party(number: int) -> None:
        barrier = three.client("abca"[number]).barrier(name, 4, timeout=LONG_S)
        for _ in range(6):
            with guard:
                rounds[number] += 1
                here = rounds[number]
            barrier.wait()
            with guard:
                assert min(rounds) >= here

    threads = [in_thread(lambda number=number: party(number)) for number in range(4)]
    for thread in threads:
        thread.outcome()
    assert rounds == [6] * 4
    nothing_left(three.client("b"), name)


def test_threads_of_one_client_are_parties(three: Any, name: str, in_thread: InThread) -> None:
    barrier = three.client("a").barrier(name, 3, timeout=LONG_S)
    threads = [in_thread(barrier.wait) for _ in range(3)]
    assert sorted(thread.outcome() for thread in threads) == [0, 1, 2]


def test_a_barrier_for_one(three: Any, name: str) -> None:
    barrier = three.client("a").barrier(name, 1)
    assert [barrier.wait() for _ in range(3)] == [0, 0, 0]
    with barrier as passage:
        assert passage.number == 0


def test_who_gives_up_is_not_counted(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    one, two, three_ = (three.client(node).barrier(name, 2) for node in "abc")
    with pytest.raises(dlm.LockTimeout, match="not all 2 within"):
        one.wait(0.1)
    other = in_thread(lambda: two.wait(LONG_S))
    arrived(three.client("b"), name, 1, "one party, the other has given up")
    assert three_.wait(LONG_S) == 1
    assert other.outcome() == 0
    nothing_left(three.client("a"), name)


def test_a_try_is_for_the_last_one(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    locks = three.client("a")
    with pytest.raises(dlm.LockTimeout):
        locks.barrier(name, 2).wait(0)
    waits = in_thread(lambda: locks.barrier(name, 2).wait(LONG_S))
    arrived(locks, name, 1, "the first party")
    assert locks.barrier(name, 2).wait(0) == 1
    assert waits.outcome() == 0
    nothing_left(locks, name)


def test_an_interrupted_party_leaves_nothing(
    three: Any, name: str, nothing_left: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    locks = three.client("a")
    for place in ("dlm.recipes.doorbell.Doorbell.wait", "dlm.recipes.barrier.wait_any"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                locks.barrier(name, 2).wait(LONG_S)
        nothing_left(locks, name)


def test_the_dead_do_not_count(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    ends, stays, comes = (three.client(node) for node in "abc")
    dead = in_thread(lambda: ends.barrier(name, 2).wait(LONG_S))
    arrived(ends, name, 1, "the first party")
    ends.close()
    with pytest.raises((dlm.NotConnected, dlm.LockLost)):
        dead.outcome()
    waits = in_thread(lambda: stays.barrier(name, 2).wait(LONG_S))
    arrived(stays, name, 1, "the second party")
    comes.barrier(name, 2).wait(LONG_S)
    waits.outcome()
    nothing_left(stays, name)


def test_whoever_opens_it_and_dies_over_it(
    three: Any, name: str, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one opens the barrier, and is gone before it can ring: the others go on all the same."""
    waits = in_thread(lambda: three.client("a").barrier(name, 2).wait(LONG_S))
    arrived(three.client("a"), name, 1, "the first party")
    last = three.client("c")
    monkeypatch.setattr("dlm.recipes.doorbell.Doorbell.ring", lambda self: last.close())
    try:
        last.barrier(name, 2).wait(LONG_S)
    except dlm.DLMError:
        pass
    waits.outcome()


def test_whoever_dies_with_the_gate_held(
    three: Any, name: str, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """… has not arrived, and the block is not *valid* then; two more that live open the barrier."""
    waits = in_thread(lambda: three.client("a").barrier(name, 2).wait(LONG_S))
    arrived(three.client("a"), name, 1, "the first party")
    last = three.client("c")

    def dies(*_: Any) -> None:
        last.close()
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("dlm.recipes.barrier.Barrier._sit", dies)
        with pytest.raises(ZeroDivisionError):
            last.barrier(name, 2).wait(LONG_S)
    three.client("b").barrier(name, 2).wait(LONG_S)
    waits.outcome()


def test_news_of_a_death_may_come_before_what_the_dead_did(three: Any, name: str, in_thread: InThread) -> None:
    """Whoever hears that somebody has died reads the generation under the gate: after all that had been begun."""
    locks, opens, dies = (three.client(node) for node in "acb")
    waits = in_thread(lambda: locks.barrier(name, 2).wait(3 * LONG_S))
    arrived(locks, name, 1, "the first party")
    gate = opens.acquire(f"{name}/barrier", dlm.Mode.EX, LONG_S)
    dies._bells().open(group_of("default", "barrier", name.encode()), Deadline(LONG_S))
    dies.close()
    until(lambda: (info := opens.show(f"{name}/barrier")) and info.converting, "the party comes to look")
    gate.convert(dlm.Mode.NL, value=_STATE.pack(_MAGIC, 2, 1))
    waits.outcome()
    gate.release()


def test_who_looks_for_a_seat_has_none(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    """A party that has lost the gate without knowing still looks: that must not count as arrivals."""
    locks, stray = three.client("a"), three.client("b")
    seats = [b"%s/barrier/0/%d" % (name.encode(), number) for number in range(3)]
    looks = [stray.acquire(seat, dlm.Mode.CR, LONG_S) for seat in seats]
    assert locks.barrier(name, 3)._free(seats, Deadline(LONG_S)) == [0, 1, 2]  # nor do others who look
    waits = [in_thread(lambda node=node: three.client(node).barrier(name, 3).wait(LONG_S)) for node in "abc"]
    until(lambda: (info := stray.show(seats[0])) and info.waiters, "a party waits for a seat")
    for look in looks:
        look.release()
    assert sorted(thread.outcome() for thread in waits) == [0, 1, 2]
    nothing_left(locks, name)


def test_another_number_of_parties_is_refused(three: Any, name: str, in_thread: InThread) -> None:
    waits = in_thread(lambda: three.client("a").barrier(name, 2).wait(LONG_S))
    arrived(three.client("a"), name, 1, "the first party")
    with pytest.raises(dlm.InvalidRequest, match="in use with 2 parties, not 3"):
        three.client("b").barrier(name, 3).wait(LONG_S)
    three.client("b").barrier(name, 2).wait(LONG_S)
    waits.outcome()


def test_entered_together_and_left_together(
    three: Any, name: str, in_thread: InThread, nothing_left: Check
) -> None:
    inside, finish = [0], threading.Event()

    def party(node: str, wait: bool) -> int:
        with three.client(node).barrier(name, 3, timeout=LONG_S) as passage:
            inside[0] += 1
            if wait:
                assert finish.wait(LONG_S)
        return passage.number

    quick = [in_thread(lambda node=node: party(node, False)) for node in "ab"]
    slow = in_thread(lambda: party("c", True))
    until(lambda: inside[0] == 3, "all are inside")
    locks = three.client("a")
    until(lambda: sum(bool(row.waiters) for row in locks.ls(f"{name}/barrier/")) == 1, "two wait to leave")
    assert not any(thread._future.done() for thread in quick)
    finish.set()
    assert sorted(thread.outcome() for thread in [*quick, slow]) == [0, 1, 2]
    nothing_left(locks, name)


def test_leaving_does_not_wait_for_the_dead_nor_after_an_exception(
    three: Any, name: str, in_thread: InThread, nothing_left: Check
) -> None:
    ends, entered = three.client("c"), threading.Barrier(3)

    def dies() -> None:
        with ends.barrier(name, 3, timeout=LONG_S):
            entered.wait(LONG_S)
            ends.close()

    def fails() -> None:
        with three.client("b").barrier(name, 3, timeout=LONG_S):
            entered.wait(LONG_S)
            raise ZeroDivisionError

    def lives() -> None:
        with three.client("a").barrier(name, 3, timeout=LONG_S):
            entered.wait(LONG_S)

    dead, failed, living = (in_thread(each) for each in (dies, fails, lives))
    with pytest.raises(ZeroDivisionError):
        failed.outcome()
    with pytest.raises(dlm.LockLost):
        dead.outcome()
    living.outcome()
    nothing_left(three.client("a"), name)


def test_after_an_exception_nobody_is_waited_for(three: Any, name: str, in_thread: InThread) -> None:
    finish = threading.Event()

    def stays() -> None:
        with three.client("a").barrier(name, 2, timeout=LONG_S):
            assert finish.wait(LONG_S)

    other = in_thread(stays)
    with pytest.raises(ZeroDivisionError), three.client("b").barrier(name, 2, timeout=LONG_S):
        raise ZeroDivisionError
    assert not other._future.done()
    finish.set()
    other.outcome()


def test_a_party_whose_locks_are_dropped(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")
    waits = in_thread(lambda: locks.barrier(name, 2).wait(3 * LONG_S))
    arrived(locks, name, 1, "the first party")
    locks.purge(pid=os.getpid())
    with pytest.raises(dlm.LockLost):
        waits.outcome()


def test_a_party_that_is_cut_off(fragile: Any, name: str, in_thread: InThread) -> None:
    """Its arrival is void: it hears of it, and two others that live open the barrier."""
    away = in_thread(lambda: fragile.client("c").barrier(name, 2).wait(60))
    arrived(fragile.client("c"), name, 1, "the first party")
    fragile.cut_off(3)
    fragile.wait_members(2)
    waits = in_thread(lambda: fragile.client("a").barrier(name, 2).wait(LONG_S))
    fragile.client("b").barrier(name, 2).wait(LONG_S)
    waits.outcome()
    fragile.hub.heal()
    fragile.wait_members(3)
    with pytest.raises(dlm.LockLost):
        away.outcome()


def test_what_cannot_be_meant(three: Any, name: str) -> None:
    locks = three.client("a")
    for parties in (0, 257):
        with pytest.raises(dlm.InvalidRequest, match="parties"):
            locks.barrier(name, parties)
    with pytest.raises(dlm.InvalidRequest, match="name"):
        locks.barrier("x" * 36, 2)
    locks.barrier("x" * 35, 1).wait(LONG_S)
    assert repr(locks.barrier(name, 2)) == f"<dlm.Barrier {name!r} parties=2 timeout=None>"
