"""Losing locks in an event loop: told at once, by push, by the end of the channel, or by the clock (API-R5)."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

import dlm
from tests.dlm_client.loop_fake import opened
from tests.in_loop import in_loop, soon, turns


@in_loop
async def test_a_push_ends_the_handle_and_leaving_the_body_raises() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("x") as held:
                channel.push("lost", h=held.serial, reason="no_quorum")
                assert not held.valid
                assert held.lost
                assert held.lost.reason == "no_quorum"
                with pytest.raises(dlm.LockLost):
                    held.check()
        assert (caught.value.reason, caught.value.fence, caught.value.name) == ("no_quorum", held.fence, b"x")
        assert channel.verbs() == ["lock", "unlock"]


@in_loop
async def test_a_body_that_raises_keeps_its_exception_and_gets_a_note() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(KeyError) as caught:
            async with locks.lock("x") as held:
                channel.push("lost", h=held.serial, reason="evicted")
                raise KeyError("the body's own")
        assert "went on without this node" in caught.value.__notes__[0]
        with pytest.raises(dlm.LockLost) as lost:
            async with locks.lock("x") as held:
                channel.push("lost", h=held.serial, reason="evicted")
                held.check()
        assert not hasattr(lost.value, "__notes__")


@in_loop
async def test_the_end_of_the_channel_ends_all_handles() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        channel.end("connection reset")
        assert held.lost.reason == "daemon_gone"
        with pytest.raises(dlm.LockLost):
            await held.release()
        assert held.released


# -- waiting for it


@in_loop
async def test_lost_can_be_awaited() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        tasks = [asyncio.ensure_future(held.lost) for _ in range(2)]
        waits = asyncio.create_task(held.lost.wait())
        await turns()
        assert not any(task.done() for task in [*tasks, waits])
        channel.push("lost", h=held.serial, reason="no_quorum")
        assert await asyncio.gather(*tasks) == ["no_quorum", "no_quorum"]
        assert await waits is True
        assert await held.lost == "no_quorum"  # and again


@in_loop
async def test_lost_ends_with_the_release() -> None:
    async with opened() as (_, locks):
        held = await locks.acquire("x")
        task, waits = asyncio.ensure_future(held.lost), asyncio.create_task(held.lost.wait())
        await turns()
        await held.release()
        assert await task is None
        assert await waits is False
        assert await held.lost is None


@in_loop
async def test_lost_wait_gives_up_in_time_and_leaves_nothing() -> None:
    async with opened() as (_, locks):
        held = await locks.acquire("x")
        assert await held.lost.wait(0) is False
        assert await held.lost.wait(0.01) is False
        task = asyncio.ensure_future(held.lost)
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not locks.session.watch._entries
        assert locks.session.watch._timer is None
        await held.release()


@in_loop
async def test_the_lease_is_watched_without_any_push() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        channel.page = (channel.page[0], channel.now + 20_000)
        task = asyncio.ensure_future(held.lost)
        await turns()
        channel.now += 20_000
        assert await task == "lease"
        with pytest.raises(dlm.LockSuspended):
            await held.release()


@in_loop
async def test_a_lease_that_is_renewed_is_watched_on() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        channel.page = (channel.page[0], channel.now + 5_000)
        task = asyncio.ensure_future(held.lost)
        looks = 0
        page = channel.lease_deadline

        def look() -> tuple[int, int]:
            nonlocal looks
            looks += 1
            return page()

        channel.lease_deadline = look  # type: ignore[method-assign]
        await soon(lambda: looks > 4, "more looks: the deadline as it was has passed in real time")
        assert not task.done()
        channel.now += 5_000
        assert await task == "lease"
        with pytest.raises(dlm.LockSuspended):
            await held.release()


@in_loop
async def test_several_are_lost_when_one_of_them_is() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: {
            "locks": [{"h": args["h"] + i, **channel.grant({"mode": 5})} for i in range(2)]
        }
        told: list[str] = []
        held = await locks.acquire_all("a", "b", on_lost=lambda held, reason: told.append(reason))
        task = asyncio.ensure_future(held.lost)
        await turns()
        channel.push("lost", h=held["b"].serial, reason="evicted")
        assert await task == "evicted"
        assert told == ["evicted"]
        with pytest.raises(dlm.LockLost) as caught:
            await held.release()
        assert caught.value.name == b"b"


# -- a suspension and its end


@in_loop
async def test_a_suspended_lock_is_valid_again_with_the_same_fence() -> None:
    async with opened() as (channel, locks), locks.lock("x") as held:
        fence, page = held.fence, channel.page
        channel.page = (page[0], 0)
        assert held.suspended
        assert held.lost.reason == "lease"
        assert await held.wait_valid(0.01) is False
        waits = asyncio.create_task(held.wait_valid())
        await turns()
        assert not waits.done()
        channel.page = page
        assert await waits is True
        assert (held.fence, held.suspended, held.valid) == (fence, False, True)
        assert await held.wait_valid(0) is True


@in_loop
async def test_waiting_for_the_end_of_a_suspension_ends_when_the_lock_is_lost() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        channel.page = (channel.page[0], 0)
        waits = asyncio.create_task(held.wait_valid())
        await turns()
        channel.push("lost", h=held.serial, reason="evicted")
        with pytest.raises(dlm.LockLost) as caught:
            await waits
        assert caught.value.reason == "evicted"
        with pytest.raises(dlm.LockLost):
            await held.release()
        with pytest.raises(dlm.LockLost):
            await held.wait_valid()


# -- callbacks


@in_loop
async def test_on_lost_is_called_once_in_the_loop() -> None:
    async with opened() as (channel, locks):
        told: list[Any] = []
        held = await locks.acquire(
            "x", on_lost=lambda held, reason: told.append((held, reason, threading.current_thread()))
        )
        channel.push("lost", h=held.serial, reason="evicted")
        channel.push("lost", h=held.serial, reason="no_quorum")
        assert told == []  # not in the middle of what is being done
        await turns()
        assert told == [(held, "evicted", threading.main_thread())]


@in_loop
async def test_on_lost_may_be_a_coroutine_function_and_need_not_keep_the_handle() -> None:
    async with opened() as (channel, locks):
        told: list[str] = []

        async def on_lost(held: dlm.AsyncHeld, reason: str) -> None:
            await asyncio.sleep(0)
            told.append(reason)

        h = (await locks.acquire("x", on_lost=on_lost)).serial
        gc.collect()
        channel.push("lost", h=h, reason="evicted")
        await soon(lambda: told == ["evicted"], "the callback")


@in_loop
async def test_on_lost_is_not_called_after_a_release() -> None:
    async with opened() as (channel, locks):
        told: list[str] = []
        async with locks.lock("x", on_lost=lambda held, reason: told.append(reason)) as held:
            pass
        channel.push("lost", h=held.serial, reason="evicted")
        await turns()
        assert told == []
        assert not locks.session.watch._entries


@in_loop
async def test_a_callback_that_fails_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (channel, locks):
        told: list[str] = []

        def fails(held: dlm.AsyncHeld, reason: str) -> None:
            raise ZeroDivisionError

        async def fails_later(held: dlm.AsyncHeld, reason: str) -> None:
            raise FloatingPointError

        for call in (fails, fails_later, lambda held, reason: told.append(reason)):
            await locks.acquire("x", on_lost=call)
        channel.end("connection reset")
        await soon(lambda: told == ["daemon_gone"], "the last callback")
        await soon(lambda: "FloatingPointError" in caplog.text, "the log")
        assert "ZeroDivisionError" in caplog.text


@in_loop
async def test_on_blocking_may_convert() -> None:
    async with opened() as (channel, locks):

        async def make_room(held: dlm.AsyncHeld, mode: dlm.Mode) -> None:
            await held.convert(dlm.Mode.NL)

        held = await locks.acquire("cache", dlm.Mode.PR, on_blocking=make_room)
        assert channel.last("lock")["blocking"] is True
        channel.push("blocking", h=held.serial, mode=int(dlm.Mode.CR))  # it has made room for that already (B6)
        await turns()
        assert held.mode is dlm.Mode.PR
        channel.push("blocking", h=held.serial, mode=int(dlm.Mode.EX))
        await soon(lambda: held.mode is dlm.Mode.NL, "room")
        await held.release()


@in_loop
async def test_advice_goes_on_after_a_suspension() -> None:
    async with opened() as (channel, locks):
        lost: list[str] = []
        wanted: list[dlm.Mode] = []
        held = await locks.acquire(
            "cache",
            on_lost=lambda held, reason: lost.append(reason),
            on_blocking=lambda held, mode: wanted.append(mode),
        )
        page = channel.page
        channel.page = (page[0], 0)
        channel.push("suspended")
        channel.push("blocking", h=held.serial, mode=int(dlm.Mode.EX))
        await soon(lambda: lost == ["lease"], "the suspension")
        assert wanted == []
        channel.page = page
        channel.push("resumed")
        await soon(lambda: wanted == [dlm.Mode.EX], "the advice")
        await held.release()
        await turns()
        assert lost == ["lease"]
        assert not locks.session.watch._entries
