"""``cancel_on_lost``: a body is cancelled when its lock is lost, and no other cancellation is taken for that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import dlm
from tests.dlm_client.loop_fake import LoopFake, opened
from tests.in_loop import in_loop, turns


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def lose(channel: LoopFake, *held: dlm.AsyncHeld, reason: str = "evicted") -> None:
    for one in held:
        channel.push("lost", h=one.serial, reason=reason)


async def ever() -> None:
    await asyncio.Event().wait()


@in_loop
async def test_a_body_that_waits_ends_with_lock_lost() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("x", cancel_on_lost=True) as held:
                lose(channel, held, reason="no_quorum")
                await ever()
        assert (caught.value.reason, caught.value.fence) == ("no_quorum", held.fence)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert cancelling() == 0
        await turns()  # nothing is left that would be delivered here
        assert channel.verbs() == ["lock", "unlock"]


@in_loop
async def test_the_lease_cancels_too_and_its_return_changes_nothing() -> None:
    async with opened() as (channel, locks):
        page = channel.page
        with pytest.raises(dlm.LockSuspended):
            async with locks.lock("x", cancel_on_lost=True):
                channel.page = (page[0], 0)
                channel.push("suspended")
                try:
                    await ever()
                finally:
                    channel.page = page
        assert cancelling() == 0


@in_loop
async def test_a_daemon_that_is_stopped_cannot_tell() -> None:
    async with opened() as (channel, locks):
        channel.page = (channel.page[0], channel.now + 20_000)
        with pytest.raises(dlm.LockSuspended):
            async with locks.lock("x", cancel_on_lost=True):
                channel.now += 20_000
                await ever()


@in_loop
async def test_a_body_that_is_not_cancelled_is_left_alone() -> None:
    async with opened() as (channel, locks):
        async with locks.lock("x", cancel_on_lost=True) as held:
            await turns()
        lose(channel, held)
        channel.end("connection reset")
        await turns()
        assert cancelling() == 0
        assert not locks.session.watch._entries


@in_loop
async def test_a_body_that_does_not_wait_raises_as_always() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost):
            async with locks.lock("x", cancel_on_lost=True) as held:
                lose(channel, held)
        await turns()
        assert cancelling() == 0


@in_loop
async def test_a_body_that_swallows_the_cancellation_ends_with_lock_lost() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost):
            async with locks.lock("x", cancel_on_lost=True) as held:
                lose(channel, held)
                with pytest.raises(asyncio.CancelledError):
                    await ever()
        assert cancelling() == 0
        await turns()


@in_loop
async def test_an_exception_of_the_body_is_the_news() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(KeyError) as caught:
            async with locks.lock("x", cancel_on_lost=True) as held:
                lose(channel, held)
                try:
                    await ever()
                except asyncio.CancelledError:
                    raise KeyError("while cleaning up") from None
        assert "went on without this node" in caught.value.__notes__[0]
        assert cancelling() == 0


# -- somebody else cancels


async def run_until_inside(body: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.create_task(body())
    await turns()
    return task


@pytest.mark.parametrize("order", ["loss first", "cancellation first"])
@in_loop
async def test_a_cancellation_at_the_same_time_stays_one(order: str) -> None:
    async with opened() as (channel, locks):
        inside: list[dlm.AsyncHeld] = []

        async def body() -> None:
            async with locks.lock("x", cancel_on_lost=True) as held:
                inside.append(held)
                await ever()

        task = await run_until_inside(body)
        if order == "loss first":
            lose(channel, *inside)
            asyncio.get_running_loop().call_soon(task.cancel)  # after the look, before the task runs
        else:
            task.cancel()
            lose(channel, *inside)
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert task.cancelled()
        assert channel.verbs() == ["lock", "unlock"]
        if order == "loss first":
            assert "went on without this node" in caught.value.__notes__[0]


@in_loop
async def test_a_cancellation_while_the_body_cleans_up_stays_one() -> None:
    async with opened() as (channel, locks):
        inside: list[dlm.AsyncHeld] = []
        cleaning = asyncio.Event()

        async def body() -> None:
            async with locks.lock("x", cancel_on_lost=True) as held:
                inside.append(held)
                try:
                    await ever()
                finally:
                    cleaning.set()
                    await ever()

        task = await run_until_inside(body)
        lose(channel, *inside)
        await cleaning.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


@in_loop
async def test_a_loss_while_the_body_is_cancelled_by_others_stays_theirs() -> None:
    async with opened() as (channel, locks):
        inside: list[dlm.AsyncHeld] = []
        seen: list[int] = []

        async def body() -> None:
            async with locks.lock("x", cancel_on_lost=True) as held:
                inside.append(held)
                try:
                    await ever()
                finally:
                    lose(channel, held)
                    try:
                        await ever()
                    finally:
                        seen.append(cancelling())

        task = await run_until_inside(body)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [2]
        assert task.cancelling() == 1


@in_loop
async def test_a_cancellation_that_was_survived_before_does_not_count() -> None:
    """A task may have swallowed a cancellation earlier; what is asked is whether there is a new one."""
    async with opened() as (channel, locks):

        async def body() -> str:
            try:
                await ever()
            except asyncio.CancelledError:
                assert cancelling() == 1
            try:
                async with locks.lock("x", cancel_on_lost=True) as held:
                    lose(channel, held)
                    await ever()
            except dlm.LockLost:
                return "lost"
            return "?"

        task = await run_until_inside(body)
        task.cancel()
        assert await task == "lost"


# -- nested


@in_loop
async def test_when_the_inner_lock_is_lost_the_outer_body_goes_on() -> None:
    async with opened() as (channel, locks), locks.lock("outer", cancel_on_lost=True) as outer:
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("inner", cancel_on_lost=True) as inner:
                lose(channel, inner)
                await ever()
        assert caught.value.name == b"inner"
        assert cancelling() == 0
        await turns()
        assert outer.valid


@in_loop
async def test_when_both_are_lost_the_outer_one_is_told() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("outer", cancel_on_lost=True), locks.lock("inner", cancel_on_lost=True):
                channel.end("connection reset")
                await ever()
        assert (caught.value.name, caught.value.reason) == (b"outer", "daemon_gone")
        assert "inner" in caught.value.__cause__.__notes__[0]  # type: ignore[union-attr]
        assert cancelling() == 0
        await turns()


@in_loop
async def test_when_the_outer_lock_is_lost_the_inner_one_is_given_back() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost) as caught:
            outer, inner = locks.lock("outer", cancel_on_lost=True), locks.lock("inner", cancel_on_lost=True)
            async with outer as first, inner as second:
                lose(channel, first)
                await ever()
        assert caught.value.name == b"outer"
        assert second.released
        assert second.lost.reason is None


@pytest.mark.parametrize("outside", [True, False])
@in_loop
async def test_a_time_out_of_asyncio_at_the_same_time(outside: bool) -> None:
    """Each takes back its own request to cancel; the outermost of those that asked is told."""
    async with opened() as (channel, locks):
        loop = asyncio.get_running_loop()
        wanted = TimeoutError if outside else dlm.LockLost
        with pytest.raises(wanted) as caught:
            if outside:
                async with asyncio.timeout(60) as limit, locks.lock("x", cancel_on_lost=True) as held:
                    limit.reschedule(loop.time())
                    lose(channel, held)
                    await ever()
            else:
                async with locks.lock("x", cancel_on_lost=True) as held, asyncio.timeout(60) as limit:
                    limit.reschedule(loop.time())
                    lose(channel, held)
                    await ever()
        assert type(caught.value) is wanted
        assert cancelling() == 0
        await turns()


@in_loop
async def test_a_group_of_tasks_in_the_body_is_cancelled() -> None:
    async with opened() as (channel, locks):
        ended: list[str] = []

        async def child(name: str) -> None:
            try:
                await ever()
            finally:
                ended.append(name)

        with pytest.raises(dlm.LockLost):
            async with locks.lock("x", cancel_on_lost=True) as held, asyncio.TaskGroup() as group:
                for name in "ab":
                    group.create_task(child(name))
                await turns()
                lose(channel, held)
        assert sorted(ended) == ["a", "b"]


@in_loop
async def test_a_request_in_the_body_is_withdrawn() -> None:
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("x", cancel_on_lost=True) as held:
                channel.script["lock"] = lambda args: channel.PENDING
                asyncio.get_running_loop().call_later(0.01, lose, channel, held)
                await locks.acquire("y")
        assert caught.value.name == b"x"
        assert channel.verbs() == ["lock", "lock", "cancel", "unlock"]


@in_loop
async def test_the_end_of_the_daemon_while_the_body_asks_for_another_lock() -> None:
    """Both come at once, the refusal of the request and the loss: the loss is what is told."""
    async with opened() as (channel, locks):
        with pytest.raises(dlm.LockLost):
            async with locks.lock("x", cancel_on_lost=True):
                channel.script["lock"] = lambda args: channel.PENDING
                asyncio.get_running_loop().call_later(0.01, channel.end, "connection reset")
                await locks.acquire("y")
        assert cancelling() == 0


# -- other ways in


@in_loop
async def test_a_handle_can_be_watched_for_a_part_of_its_life() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        with pytest.raises(dlm.LockLost):
            async with held.cancel_on_lost():
                lose(channel, held)
                await ever()
        assert not held.released
        with pytest.raises(dlm.LockLost):
            await held.release()


@in_loop
async def test_several_locks() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: {
            "locks": [{"h": args["h"] + i, **channel.grant({"mode": 5})} for i in range(2)]
        }
        with pytest.raises(dlm.LockLost) as caught:
            async with locks.all("a", "b", cancel_on_lost=True) as held:
                lose(channel, held["b"])
                await ever()
        assert caught.value.name == b"b"
        assert channel.verbs() == ["lock_all", "unlock_all"]


@in_loop
async def test_a_lease_that_is_back_before_anybody_is_cancelled() -> None:
    """Between the look and the cancellation the lease can come back: then the watch goes on."""
    async with opened() as (channel, locks):
        page = channel.page

        def back(held: dlm.AsyncHeld, reason: str) -> None:
            channel.page = page

        with pytest.raises(dlm.LockLost) as caught:
            async with locks.lock("x", on_lost=back, cancel_on_lost=True) as held:
                channel.page = (page[0], 0)
                channel.push("suspended")
                await turns()
                assert channel.page == page
                assert cancelling() == 0
                lose(channel, held)
                await ever()
        assert caught.value.reason == "evicted"


@in_loop
async def test_it_is_entered_once_and_by_a_task() -> None:
    async with opened() as (_, locks), locks.lock("x") as held:
        guard = held.cancel_on_lost()
        async with guard:
            with pytest.raises(RuntimeError, match="entered before"):
                guard.start()
        failed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: failed.append(context))
        loop.call_soon(held.cancel_on_lost().start)
        await turns()
        assert "no task to cancel" in str(failed[0]["exception"])
