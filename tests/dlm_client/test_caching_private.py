"""Where the node is in the program, names that only it uses are kept without anybody having asked for that."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm import Mode
from tests.dlm_client.three import Three
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
LONG_S = 30.0
_serial = itertools.count()


@pytest.fixture
def name() -> bytes:
    return b"p%d" % next(_serial)


def hits(locks: dlm.Client) -> int:
    """How often it has taken a lock without a word to its node."""
    return locks.session.kept.cache.hits


def private(locks: dlm.Client, name: bytes) -> int:
    """Used until it is kept; the fence of the last use."""
    for _ in range(3):
        with locks.lock(name, timeout=LONG_S) as held:
            fence = held.fence
    assert hits(locks)
    return fence


def test_a_private_name_is_taken_again_without_a_word(three: Three, name: bytes) -> None:
    locks = three.client("a")
    fences = []
    for _ in range(100):
        with locks.lock(name, timeout=LONG_S) as held:
            held.check()
            fences.append(held.fence)
    assert fences == sorted(set(fences))
    assert hits(locks) > 90


@pytest.mark.parametrize("how", [{"cache": False}, {"mode": Mode.CR}, {"xid": 7}, {"flags": dlm.Flag.NODLCKWT}])
def test_what_is_asked_for_in_another_way_goes_to_the_node(three: Three, name: bytes, how: dict[str, Any]) -> None:
    locks = three.client("a")
    for _ in range(5):
        locks.acquire(name, timeout=LONG_S, **how).release()
    assert hits(locks) == 0
    assert not locks.session.kept.cache.entries


def test_a_name_that_others_use_is_not_kept(three: Three, name: bytes) -> None:
    keeper = three.client("b").acquire(name, Mode.NL, LONG_S)
    locks = three.client("a")
    for _ in range(5):
        locks.acquire(name, timeout=LONG_S).release()
    assert hits(locks) == 0
    assert not locks.session.kept.cache.entries
    keeper.release()


@pytest.mark.parametrize("node", ["a", "b"])
def test_others_get_it_as_if_it_were_free(three: Three, name: bytes, node: str) -> None:
    locks, other = three.client("a"), three.client(node)
    fence = private(locks, name)
    got = other.try_lock(name)
    assert got is not None
    assert got.fence > fence
    got.release(wait=True)
    assert not locks.session.kept.cache.idle
    with locks.lock(name, timeout=LONG_S) as held:
        assert held.fence > got.fence


def test_others_wait_while_it_is_used(three: Three, name: bytes, in_thread: InThread) -> None:
    locks, other = three.client("a"), three.client("b")
    private(locks, name)
    told: list[Mode] = []
    held = locks.acquire(name, on_blocking=lambda held, mode: told.append(mode))
    waiting = in_thread(lambda: other.acquire(name, timeout=LONG_S))
    until(lambda: told, "the callback")
    assert told == [Mode.EX]
    assert held.valid
    held.release()
    waiting.outcome().release()


def test_nobody_sees_it(three: Three, name: bytes) -> None:
    locks = three.client("a")
    private(locks, name)
    assert not locks.holders(name)
    private(locks, name)
    assert not any(info.holders for info in locks.ls(name))


def test_several_threads_take_turns(three: Three, name: bytes, in_thread: InThread) -> None:
    locks = three.client("a")
    count = 0

    def rounds() -> None:
        nonlocal count
        for _ in range(200):
            with locks.lock(name, timeout=LONG_S):
                seen = count
                count = seen + 1

    for each in [in_thread(rounds) for _ in range(4)]:
        each.outcome()
    assert count == 800


def test_the_value_block_is_there(three: Three, name: bytes) -> None:
    locks, other = three.client("a"), three.client("b")
    keeper = three.client("a").acquire(name, Mode.NL, LONG_S)  # the block lives as long as there is a lock
    with locks.lock(name, timeout=LONG_S) as held:
        held.value = b"first"
    private(locks, name)
    with locks.lock(name, timeout=LONG_S) as held:
        assert (held.value, held.value_valid) == (b"first", True)
        held.value = b"second"
    with other.lock(name, timeout=LONG_S) as held:
        assert (held.value, held.value_valid) == (b"second", True)
    keeper.release()


def test_a_lock_in_use_is_lost_like_any_other(three: Three, name: bytes) -> None:
    locks = three.client("a")
    private(locks, name)
    held = locks.acquire(name)
    assert hits(locks) > 1
    locks.close()
    assert held.lost.is_set()
    assert held.lost_reason == "session_closed"
    with pytest.raises(dlm.LockLost):
        held.release()
