"""Locks that are kept after their release: what is said to the daemon, and who may have them again."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import dlm
from dlm import Flag, Mode
from dlm.caching import Caching
from dlm.upkeep import WORD_AFTER_US
from tests.vsync.support import until

BLOCK = 16


@pytest.fixture
def channel(channel: Any) -> Any:
    """Grants come with as many fences as were asked for."""
    numbers = iter(range(1 << 32, 1 << 40, 2 * 1024))
    plain = channel.grant

    def grant(args: dict[str, Any]) -> dict[str, Any]:
        return {**plain(args), "fence": next(numbers), "fences": args.get("fences", 1)}

    channel.script["lock"] = grant
    return channel


def twice(locks: dlm.Client, **more: Any) -> dlm.Held:
    """Released once, and taken again."""
    locks.acquire("x", cache=True, **more).release()
    return locks.acquire("x", cache=True, **more)


def test_a_kept_lock_is_taken_and_released_without_a_word(channel: Any, locks: dlm.Client) -> None:
    first = locks.acquire("x", cache=True)
    assert channel.last("lock")["cache"]
    assert channel.last("lock")["blocking"]
    seen = [first.fence]
    first.release()
    assert first.released
    assert not first.valid
    for _ in range(BLOCK - 1):
        with locks.lock("x", cache=True) as held:
            assert held.valid
            assert held is not first
            seen.append(held.fence)
        with pytest.raises(dlm.NotHeld):
            held.release()
    assert channel.verbs() == ["lock"]
    assert seen == list(range(1 << 32, (1 << 32) + BLOCK))
    with pytest.raises(dlm.NotHeld):
        first.check()


def test_when_the_block_is_used_up_the_lock_is_asked_for_anew(channel: Any, locks: dlm.Client) -> None:
    fences = []
    for _ in range(BLOCK + 1):
        with locks.lock("x", cache=True) as held:
            fences.append(held.fence)
    assert channel.verbs() == ["lock", "unlock", "lock"]
    assert channel.last("lock")["fences"] == 2 * BLOCK
    assert fences == sorted(set(fences))


def test_by_default_nothing_is_kept(channel: Any, locks: dlm.Client) -> None:
    locks.acquire("x").release()
    locks.acquire("x").release()
    assert channel.verbs() == ["lock", "unlock"] * 2
    assert "cache" not in channel.last("lock")


def test_an_idle_lock_is_given_back_when_it_is_in_the_way(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x", cache=True)
    held.release()
    channel.push("blocking", h=held.serial, mode=5)
    assert channel.verbs() == ["lock", "unlock"]
    assert channel.last("unlock")["h"] == held.serial
    assert locks.acquire("x", cache=True).serial != held.serial


def test_a_lock_in_use_is_said_to_be_so_and_given_back_at_its_release(channel: Any, locks: dlm.Client) -> None:
    held = twice(locks)
    for _ in range(2):
        channel.push("blocking", h=held.serial, mode=5)
    assert channel.verbs() == ["lock", "in_use"]
    assert held.valid
    held.release()
    assert channel.verbs() == ["lock", "in_use", "unlock"]


def test_the_holder_is_told_as_ever(channel: Any, locks: dlm.Client) -> None:
    told: list[tuple[dlm.Held, Mode]] = []
    held = twice(locks, on_blocking=lambda held, mode: told.append((held, mode)))
    channel.push("blocking", h=held.serial, mode=5)
    until(lambda: told, "the callback")
    assert told == [(held, Mode.EX)]


@pytest.mark.parametrize("how", ["wait", "invalidate", "write", "convert"])
def test_what_others_have_to_know_goes_to_the_daemon(channel: Any, locks: dlm.Client, how: str) -> None:
    held = twice(locks)
    if how == "write":
        held.value = b"v"
    if how == "convert":
        held.convert(Mode.PR)
        assert held.fence == (1 << 32) + 1, "a conversion downwards keeps the number, whatever the grant had"
    held.release(wait=how == "wait", invalidate=how == "invalidate")
    assert channel.verbs()[-1] == "unlock"
    locks.acquire("x", cache=True)
    assert channel.verbs()[-1] == "lock"


def test_the_value_block_is_there_again(channel: Any, locks: dlm.Client) -> None:
    grant = channel.script["lock"]
    channel.script["lock"] = lambda args: {**grant(args), "value": b"old", "value_valid": False}
    with twice(locks) as held:
        assert (held.value, held.value_valid) == (b"old", False)


def test_a_lock_that_is_lost_while_it_is_idle_just_goes(channel: Any, locks: dlm.Client) -> None:
    told: list[str] = []
    held = locks.acquire("x", cache=True, on_lost=lambda held, reason: told.append(reason))
    held.release()
    channel.push("lost", h=held.serial, reason="evicted")
    again = locks.acquire("x", cache=True)
    assert again.serial != held.serial
    assert held.lost_reason is None
    assert not told


def test_a_lock_that_is_lost_in_use_is_told_and_not_kept(channel: Any, locks: dlm.Client) -> None:
    told = threading.Event()
    held = twice(locks, on_lost=lambda held, reason: told.set())
    channel.push("lost", h=held.serial, reason="evicted")
    assert told.wait(20)
    with pytest.raises(dlm.LockLost):
        held.release()
    assert channel.verbs()[-1] == "unlock"
    assert not locks.session.kept.cache.entries


@pytest.mark.parametrize("page", [(1, 0), (2, 1 << 60)])
def test_nothing_is_taken_when_the_lease_is_over_or_the_life_has_ended(
    channel: Any, locks: dlm.Client, page: tuple[int, int]
) -> None:
    """The second: a new life has begun, and the push that says so still lies in the socket (D9)."""
    held = locks.acquire("x", cache=True)
    held.release()
    good, channel.page = channel.page, page
    plain = channel.script["lock"]

    def grant(args: dict[str, Any]) -> Any:
        channel.page = (page[0], good[1])
        return plain(args)

    channel.script["lock"] = grant
    assert locks.acquire("x", cache=True).serial != held.serial
    assert channel.verbs() == ["lock", "unlock", "lock"]


def test_a_release_outside_of_the_lease_is_no_idle_lock(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x", cache=True)
    good, channel.page = channel.page, (1, 0)
    with pytest.raises(dlm.LockSuspended):
        held.release()
    channel.page = good
    assert channel.verbs() == ["lock", "unlock"]


def test_a_request_of_another_kind_finds_no_own_idle_lock_in_its_way(channel: Any, locks: dlm.Client) -> None:
    def grant_all(args: dict[str, Any]) -> dict[str, Any]:
        rows = enumerate(args["locks"], args["h"])
        return {"locks": [{"h": h, **channel.grant({"mode": mode})} for h, (_, mode) in rows]}

    channel.script["lock_all"] = grant_all
    for ask in (
        lambda: locks.acquire("x", Mode.PR, cache=True),
        lambda: locks.acquire("x"),
        lambda: locks.acquire_all("x", "y"),
        lambda: locks.try_lock("x"),
    ):
        held = locks.acquire("x", cache=True)
        held.release()
        channel.sent.clear()
        other: Any = ask()
        assert channel.sent[0] == ("unlock", {"h": held.serial})
        other.release(wait=True)


def test_a_lock_belongs_to_its_thread_and_a_transaction_keeps_none(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    held = locks.acquire("x", cache=True)
    held.release()
    other = in_thread(lambda: locks.acquire("x", cache=True)).outcome()
    assert other.serial != held.serial
    other.release()
    with locks.transaction():
        mine = locks.acquire("x", cache=True)
        assert not channel.last("lock").get("cache")
        mine.release()
    assert channel.verbs()[-1] == "unlock"


def test_a_handle_may_be_released_by_another_thread(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x", cache=True)
    in_thread(held.release).outcome()
    with locks.acquire("x", cache=True) as again:
        assert again.serial == held.serial
    assert channel.verbs() == ["lock"]


def test_a_handle_released_by_two_threads_is_released_once(locks: dlm.Client, in_thread: Any) -> None:
    for _ in range(200):
        held = locks.acquire("x", cache=True)
        outcomes = [in_thread(held.release) for _ in range(2)]
        refused = 0
        for each in outcomes:
            try:
                each.outcome()
            except dlm.NotHeld:
                refused += 1
        assert refused == 1


def test_closing_gives_back_what_is_idle_first(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x", cache=True)
    for name in "yz":
        locks.acquire(name, cache=True).release()
    used = locks.acquire("w", cache=True)
    held.release()
    locks.close()
    assert channel.verbs()[4:] == ["unlock_all"]
    assert {row["h"] for row in channel.last("unlock_all")["locks"]} == {1, 2, 3}
    assert used.lost_reason == "session_closed"
    with pytest.raises(dlm.NotConnected):
        locks.acquire("x", cache=True)


def test_a_lost_session_leaves_nothing_to_take(channel: Any, locks: dlm.Client) -> None:
    locks.acquire("x", cache=True).release()
    channel.end("the daemon has gone")
    assert not locks.session.kept.cache.idle
    with pytest.raises(dlm.NotConnected):
        locks.acquire("x", cache=True)


def test_a_lockspace_that_is_closed_keeps_nothing(channel: Any, locks: dlm.Client) -> None:
    channel.script["space_open"] = lambda args: {"value_limit": 64}
    other = locks.space("other")
    held = other.acquire("x", cache=True)
    used = other.acquire("y", cache=True)
    held.release()
    locks.acquire("x", cache=True).release()
    channel.sent.clear()
    other.close()
    assert channel.verbs() == ["unlock", "space_close"]
    with pytest.raises(dlm.LockLost):
        used.release()
    assert [entry.key[0] for entry in locks.session.kept.cache.entries.values()] == ["default"]


def test_a_child_of_the_process_has_nothing_of_it(locks: dlm.Client, in_thread: Any) -> None:
    """Although another thread of the parent is in the middle of something at the fork."""
    locks.acquire("x", cache=True).release()
    held = locks.acquire("x", cache=True)
    inside, leave = threading.Event(), threading.Event()

    def busy() -> None:
        with locks.session.kept._guard:
            inside.set()
            leave.wait(20)

    thread = in_thread(busy)
    assert inside.wait(20)
    child = os.fork()
    if not child:
        refused = 0
        for call in (held.release, lambda: held.convert(Mode.PR), lambda: locks.acquire("x", cache=True)):
            try:
                call()
            except dlm.ForkedProcess:
                refused += 1
        os._exit(refused)
    leave.set()
    thread.outcome()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    held.release()


def test_what_is_idle_for_long_is_given_back_and_then_no_thread_is_left(
    channel: Any, locks: dlm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Caching = locks.session.kept
    monkeypatch.setattr(kept.cache, "patience", 20_000)
    held = locks.acquire("x", cache=True)
    held.release()
    thread = kept._thread
    assert thread is not None
    channel.now += 19_999
    thread.join(0.1)
    assert channel.verbs() == ["lock"]
    channel.now += 1
    channel.wait_sent("unlock")
    thread.join(20)
    assert not thread.is_alive()
    locks.acquire("x", cache=True).release()
    assert kept._thread not in (None, thread)


def test_there_is_a_limit_of_idle_locks(channel: Any, locks: dlm.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.session.kept.cache, "limit", 2)
    for name in "abc":
        locks.acquire(name, cache=True).release()
    assert channel.verbs() == ["lock"] * 3 + ["unlock"]
    assert channel.last("unlock")["h"] == 1


def test_who_waits_for_the_end_of_a_handle_hears_of_it(locks: dlm.Client, in_thread: Any) -> None:
    held = twice(locks)
    waiting = in_thread(lambda: held.lost.wait(20))
    until(lambda: held.observed, "the waiter")
    held.release()
    assert waiting.outcome() is False


def test_a_request_that_fails_leaves_nothing(channel: Any, locks: dlm.Client, refused: Any) -> None:
    channel.script["lock"] = lambda args: refused("again", "not now", {})
    assert locks.try_lock("x") is None
    with pytest.raises(dlm.LockTimeout):
        locks.acquire("x", timeout=0, cache=True)
    assert not locks.session.kept.cache.entries


def test_an_interrupt_leaves_no_lock_behind(
    channel: Any, locks: dlm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = locks.acquire("x", cache=True)
    held.release()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dlm.Held, "again", interrupted)
        locks.acquire("x", cache=True)
    assert channel.verbs() == ["lock", "unlock"]
    again = locks.acquire("x", cache=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(locks.session.kept.cache, "put", interrupted)
        again.release()
    assert again.released
    assert channel.verbs() == ["lock", "unlock"] * 2


@pytest.mark.parametrize(
    "wrong", [{"mode": Mode.NL}, {"mode": Mode.CR}, {"mode": Mode.CW}, {"flags": Flag.HEADQUE}]
)
def test_only_plain_locks_are_kept(locks: dlm.Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(dlm.InvalidRequest):
        locks.acquire("x", cache=True, **wrong)


def test_a_reentrant_lock_is_not_kept(locks: dlm.Client) -> None:
    with pytest.raises(dlm.InvalidRequest):
        locks.lock("x", reentrant=True, cache=True)  # type: ignore[call-overload]


def test_a_try_has_more_patience_than_the_daemon_with_a_silent_holder() -> None:
    assert dlm.session.TRY_PATIENCE_S * 1e6 > 2 * WORD_AFTER_US


def test_threads_never_share_a_use(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    """Callbacks fall between the uses of four threads; a lock that was given back is never in use."""
    guard = threading.Lock()
    used: dict[int, int] = {}  # serial: by how many
    gone: set[int] = set()
    fences: list[int] = []
    wrong: list[str] = []
    over = threading.Event()

    def unlock(args: dict[str, Any]) -> dict[str, Any]:
        with guard:
            gone.add(args["h"])
            if used.get(args["h"]):
                wrong.append("given back in use")
        return {}

    channel.script["unlock"] = unlock

    def work(name: str) -> None:
        for _ in range(400):
            held = locks.acquire(name, cache=True)
            with guard:
                fences.append(held.fence)
                used[held.serial] = used.get(held.serial, 0) + 1
                if used[held.serial] > 1 or held.serial in gone:
                    wrong.append("two uses of one lock, or one that is gone")
            with guard:
                used[held.serial] -= 1
            held.release()

    def call_back() -> None:
        while not over.is_set():
            for serial in list(locks.session.kept.cache.entries):
                channel.push("blocking", h=serial, mode=5)
                over.wait(0.001)

    caller = in_thread(call_back)
    for worker in [in_thread(lambda name=name: work(name)) for name in "xxyz"]:
        worker.outcome()
    over.set()
    caller.outcome()
    assert not wrong
    assert len(set(fences)) == len(fences)
