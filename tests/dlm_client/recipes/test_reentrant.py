"""Reentrant locks: one grant a thread, however often it is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm import Mode

InThread = Callable[[Callable[[], Any]], Any]
Check = Callable[[dlm.Client, str], None]
LONG_S = 20.0


def test_the_same_thread_takes_it_again_with_the_same_fence(three: Any, name: str, nothing_left: Check) -> None:
    locks, other = three.client("a"), three.client("b")
    lock = locks.lock(name, timeout=LONG_S, reentrant=True)
    with lock as outer:
        with locks.lock(name, timeout=LONG_S, reentrant=True) as inner:  # another object, the same lock
            assert inner is outer
            assert lock.count == 2
            with lock, lock:
                assert lock.count == 4
        assert outer.valid
        assert lock.count == 1
        assert other.try_lock(name) is None
    assert lock.count == 0
    with other.lock(name, timeout=LONG_S) as held:
        assert held.fence > outer.fence
    nothing_left(locks, name)


def test_threads_and_clients_exclude_each_other(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")
    with locks.lock(name, reentrant=True):
        for client in (locks, three.client("a")):

            def attempt(client: dlm.Client = client) -> None:
                with client.lock(name, timeout=0, reentrant=True):
                    pass

            with pytest.raises(dlm.LockTimeout):
                in_thread(attempt).outcome()


def test_acquire_and_release_count(three: Any, name: str, nothing_left: Check) -> None:
    lock = three.client("a").lock(name, reentrant=True)
    with pytest.raises(dlm.NotHeld):
        lock.release()
    held = lock.acquire()
    assert lock.acquire() is held
    lock.release()
    held.check()
    lock.release()
    assert held.released
    with pytest.raises(dlm.NotHeld):
        lock.release()
    nothing_left(three.client("a"), name)


def test_another_thread_cannot_release_it(three: Any, name: str, in_thread: InThread) -> None:
    lock = three.client("a").lock(name, reentrant=True)
    with lock as held:
        with pytest.raises(dlm.NotHeld, match="by this thread"):
            in_thread(lock.release).outcome()
        assert held.valid


@pytest.mark.parametrize("held", list(Mode))
@pytest.mark.parametrize("wanted", list(Mode))
def test_a_mode_that_is_included_is_there(three: Any, name: str, held: Mode, wanted: Mode) -> None:
    """Nothing is converted behind the caller's back: neither the fence nor the mode change."""
    included = held >= wanted and {held, wanted} != {Mode.CW, Mode.PR}
    locks = three.client("a")
    with locks.lock(name, held, reentrant=True) as outer:
        if included:
            with locks.lock(name, wanted, reentrant=True):
                assert outer.mode is held
        else:
            with pytest.raises(dlm.InvalidRequest, match=f"held in {held.name}"):
                locks.lock(name, wanted, reentrant=True).acquire()
        assert outer.valid


def test_a_lost_lock_is_not_entered_again(three: Any, name: str) -> None:
    locks = three.client("a")
    lock = locks.lock(name, reentrant=True)
    with pytest.raises(dlm.LockLost) as caught, lock:
        locks.close()
        with pytest.raises(dlm.LockLost), lock:
            pytest.fail("entered without the lock")
    assert caught.value.reason == "session_closed"
    assert lock.count == 0


def test_a_failed_body_releases_as_deep_as_it_was(three: Any, name: str, nothing_left: Check) -> None:
    lock = three.client("a").lock(name, reentrant=True)
    with pytest.raises(ZeroDivisionError), lock, lock:
        raise ZeroDivisionError
    assert lock.count == 0
    nothing_left(three.client("a"), name)


def test_who_waits_and_what_it_looks_like(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")
    lock = locks.lock(name, reentrant=True)
    with lock:
        holders = lock.holders()
        assert holders is not None
        assert len(holders) == 1
        assert lock.contenders() == locks.contenders(name) == ()
        assert locks.snapshot()[name.encode()].holders == holders
    assert repr(lock) == f"<dlm.ReentrantLock {name!r} EX timeout=None>"
