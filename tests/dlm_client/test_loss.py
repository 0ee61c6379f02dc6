"""Losing locks: told at once, by push, by the end of the channel, or by the clock."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

import dlm


def test_a_push_ends_the_handle_and_leaving_the_body_raises(channel: Any, locks: dlm.Client) -> None:
    with pytest.raises(dlm.LockLost) as caught, locks.lock("x") as held:
        channel.push("lost", h=held.serial, reason="no_quorum")
        assert not held.valid
        assert held.lost.is_set()
        assert held.lost.reason == "no_quorum"
        with pytest.raises(dlm.LockLost):
            held.check()
    assert caught.value.reason == "no_quorum"
    assert caught.value.fence == held.fence
    assert caught.value.name == b"x"


def test_only_the_named_handle_is_lost(channel: Any, locks: dlm.Client) -> None:
    with locks.lock("y") as other:
        one = locks.acquire("x")
        channel.push("lost", h=one.serial, reason="evicted")
        channel.push("lost", h=999, reason="evicted")
        assert other.valid


def test_a_body_that_raises_keeps_its_exception_and_gets_a_note(channel: Any, locks: dlm.Client) -> None:
    with pytest.raises(KeyError) as caught, locks.lock("x") as held:
        channel.push("lost", h=held.serial, reason="evicted")
        raise KeyError("the body's own")
    assert "went on without this node" in caught.value.__notes__[0]


def test_check_inside_the_body_is_not_noted_twice(channel: Any, locks: dlm.Client) -> None:
    with pytest.raises(dlm.LockLost) as caught, locks.lock("x") as held:
        channel.push("lost", h=held.serial, reason="evicted")
        held.check()
    assert not hasattr(caught.value, "__notes__")


def test_the_end_of_the_channel_ends_all_handles(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x")
    channel.end("connection reset")
    assert held.lost.reason == "daemon_gone"
    with pytest.raises(dlm.LockLost):
        held.release()
    assert held.released


def test_handles_are_marked_lost_before_the_client_closes_its_channel(channel: Any) -> None:
    client = dlm.Client.over(channel, clock_us=lambda: channel.now)
    held = client.acquire("x")
    seen: list[str | None] = []
    close = channel.close

    def look_and_close() -> None:
        seen.append(held.lost.reason)
        close()

    channel.close = look_and_close
    client.close()
    assert seen == ["session_closed"]
    client.close()


# -- the lease


def test_a_lease_that_runs_out_suspends_and_a_renewed_one_resumes(channel: Any, locks: dlm.Client) -> None:
    with locks.lock("x") as held:
        channel.now, before = channel.page[1], channel.now
        assert not held.valid
        with pytest.raises(dlm.LockSuspended) as caught:
            held.check()
        assert caught.value.reason == "lease"
        channel.now = before
        held.check()


def test_leaving_the_body_without_a_lease_raises_but_releases(channel: Any, locks: dlm.Client) -> None:
    with pytest.raises(dlm.LockSuspended), locks.lock("x"):
        channel.now = channel.page[1]
    assert channel.verbs()[-1] == "unlock"


def test_a_page_that_is_gone_suspends(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x")
    channel.page = (0, 0)
    assert held.lost.reason == "lease"


def test_a_new_generation_ends_handles_of_the_old_one_for_good(channel: Any, locks: dlm.Client) -> None:
    """Pitfalls D9: the push still lies in the socket, and the new deadline must not revive the handle."""
    held = locks.acquire("x")
    generation, deadline = channel.page
    channel.page = (generation + 1, deadline)
    assert held.lost.reason == "evicted"
    channel.page = (generation, deadline)
    assert held.lost.reason == "evicted"


def test_a_grant_of_a_later_generation_than_its_request(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    """A request that waits over a change of the node's life belongs to the new one."""
    channel.script["lock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: locks.acquire("x"))
    channel.wait_sent("lock")
    channel.page = (channel.page[0] + 1, channel.page[1])
    channel.answer(channel.last("lock")["h"], channel.grant({"mode": 5}))
    held = thread.outcome()
    assert held.valid
    held.release()


def test_a_grant_of_an_earlier_generation_is_lost(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    """The page is ahead of the socket."""
    channel.script["lock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: locks.acquire("x"))
    channel.wait_sent("lock")
    granted = channel.grant({"mode": 5})
    channel.page = (channel.page[0] + 1, channel.page[1])
    channel.answer(channel.last("lock")["h"], granted)
    with pytest.raises(dlm.LockLost) as caught:
        thread.outcome()
    assert caught.value.reason == "evicted"
    assert channel.verbs()[-1] == "unlock"


def test_a_grant_that_is_ahead_of_the_page_waits_for_it(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    """The socket is ahead of the page, whose deadline is that of a generation gone by."""
    channel.script["lock"] = lambda args: channel.grant(args) | {"generation": 2}
    looked = threading.Event()

    def look() -> tuple[int, int]:
        looked.set()
        page: tuple[int, int] = channel.page
        return page

    channel.lease_deadline = look
    thread = in_thread(lambda: locks.acquire("x"))
    assert looked.wait(20)
    assert thread.is_alive()
    channel.page = (2, channel.page[1])
    held = thread.outcome()
    assert held.valid
    held.release()


def test_a_body_is_not_entered_without_a_lease(channel: Any, locks: dlm.Client) -> None:
    channel.page = (1, 0)
    with pytest.raises(dlm.LockTimeout, match="without a lease"), locks.lock("x", timeout=0.05):
        pytest.fail("entered without a lease")
    assert channel.verbs() == ["lock", "unlock"]


def test_waiting_for_a_lease_ends_when_it_comes(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.page = (1, 0)
    thread = in_thread(lambda: locks.acquire("x"))
    channel.wait_sent("lock")
    assert thread.is_alive()
    channel.page = (1, channel.now + 5_000_000)
    held = thread.outcome()
    assert held.valid
    held.release()


# -- a suspension and its end


def test_a_suspended_lock_is_valid_again_with_the_same_fence(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    with locks.lock("x") as held:
        fence, page = held.fence, channel.page
        assert held.wait_valid(0)
        channel.page = (page[0], 0)
        assert held.suspended
        assert held.wait_valid(0.01) is False
        thread = in_thread(held.wait_valid)
        channel.page = page
        assert thread.outcome() is True
        assert (held.fence, held.suspended, held.valid) == (fence, False, True)


def test_waiting_for_the_end_of_a_suspension_ends_when_the_lock_is_lost(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    held = locks.acquire("x")
    channel.page = (channel.page[0], 0)
    thread = in_thread(held.wait_valid)
    channel.push("lost", h=held.serial, reason="evicted")
    with pytest.raises(dlm.LockLost) as caught:
        thread.outcome()
    assert caught.value.reason == "evicted"
    assert not held.suspended
    with pytest.raises(dlm.LockLost):
        held.release()


def test_waiting_for_the_end_of_a_suspension_ends_with_the_release(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    held = locks.acquire("x")
    channel.page = (channel.page[0], 0)
    thread = in_thread(held.wait_valid)
    with pytest.raises(dlm.LockSuspended):
        held.release()
    with pytest.raises(dlm.NotHeld):
        thread.outcome()


# -- waiting for the loss


def test_lost_wait_ends_with_the_push(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x")
    thread = in_thread(held.lost.wait)
    channel.push("lost", h=held.serial, reason="no_quorum")
    assert thread.outcome() is True


def test_lost_wait_ends_with_the_release(locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x")
    thread = in_thread(held.lost.wait)
    held.release()
    assert thread.outcome() is False


def test_lost_wait_gives_up_in_time(locks: dlm.Client) -> None:
    with locks.lock("x") as held:
        assert held.lost.wait(0) is False
        assert held.lost.wait(0.01) is False


def test_lost_wait_watches_the_lease_without_any_push(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x")
    channel.page = (channel.page[0], channel.now + 20_000)
    thread = in_thread(held.lost.wait)
    channel.now += 20_000
    assert thread.outcome() is True
    assert held.lost.reason == "lease"


def test_on_lost_runs_once_on_a_thread_of_its_own(channel: Any, locks: dlm.Client) -> None:
    told: list[tuple[dlm.Held, str, str]] = []
    called = threading.Event()

    def on_lost(held: dlm.Held, reason: str) -> None:
        told.append((held, reason, threading.current_thread().name))
        called.set()

    held = locks.acquire("x", on_lost=on_lost)
    channel.push("lost", h=held.serial, reason="evicted")
    channel.push("lost", h=held.serial, reason="no_quorum")
    assert called.wait(20)
    assert told == [(held, "evicted", "dlm-on-lost")]


def test_on_lost_is_told_of_a_lease_that_runs_out(channel: Any, locks: dlm.Client) -> None:
    called = threading.Event()
    channel.page = (1, channel.now + 20_000)
    held = locks.acquire("x", on_lost=lambda held, reason: called.set())
    channel.now += 20_000
    assert called.wait(20)
    with pytest.raises(dlm.LockSuspended):
        held.release()


def test_a_callback_that_fails_does_not_stop_the_next(
    channel: Any, locks: dlm.Client, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()

    def fails(held: dlm.Held, reason: str) -> None:
        raise ZeroDivisionError

    one = locks.acquire("x", on_lost=fails)
    two = locks.acquire("y", on_lost=lambda held, reason: called.set())
    channel.push("lost", h=one.serial, reason="evicted")
    channel.push("lost", h=two.serial, reason="evicted")
    assert called.wait(20)
    assert "ZeroDivisionError" in caplog.text


def test_advice_goes_on_after_a_suspension(channel: Any, locks: dlm.Client) -> None:
    suspended, asked = threading.Event(), threading.Event()
    told: list[Any] = []

    def on_lost(held: dlm.Held, reason: str) -> None:
        told.append(reason)
        suspended.set()

    def on_blocking(held: dlm.Held, mode: dlm.Mode) -> None:
        told.append(mode)
        asked.set()

    held = locks.acquire("x", on_lost=on_lost, on_blocking=on_blocking)
    page = channel.page
    channel.page = (page[0], 0)
    channel.push("blocking", h=held.serial, mode=int(dlm.Mode.EX))
    assert suspended.wait(20)
    channel.page = page
    channel.push("resumed")
    assert asked.wait(20)
    assert told == ["lease", dlm.Mode.EX]
    held.release()


def test_a_watched_handle_need_not_be_kept(channel: Any, locks: dlm.Client) -> None:
    called = threading.Event()
    h = locks.acquire("x", on_lost=lambda held, reason: called.set()).serial
    gc.collect()
    channel.push("lost", h=h, reason="evicted")
    assert called.wait(20)


def test_a_handle_that_nobody_can_release_any_more_says_so(locks: dlm.Client) -> None:
    held = locks.acquire("x")
    with pytest.warns(ResourceWarning, match="nobody can release"):  # noqa: PT031 - both lines are the act
        del held
        gc.collect()
