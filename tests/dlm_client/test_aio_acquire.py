"""Taking locks in an event loop: enter held or raise, and leave nothing behind however a task ends (API-R8)."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import pytest

import dlm
from dlm.aio import session as session_module
from tests.dlm_client.loop_fake import LoopFake, opened
from tests.in_loop import in_loop, turns
from vsync.errors import RequestFailed


@in_loop
async def test_async_with_gives_the_handle_and_releases_it() -> None:
    async with opened() as (channel, locks):
        async with locks.lock("reports/nightly", timeout=10) as held:
            assert (held.name, held.mode, held.fence) == (b"reports/nightly", dlm.Mode.EX, 1 << 32)
            assert held.valid
            held.check()
            assert channel.verbs() == ["lock"]
        assert not held.valid
        assert channel.verbs() == ["lock", "unlock"]
        asked = channel.last("lock")
        assert (asked["name"], asked["timeout_us"]) == (b"reports/nightly", 10_000_000)
        assert not asked.get("noqueue")
        async with locks.shared("x") as reader, locks.exclusive("y") as writer:
            assert (reader.mode, writer.mode) == (dlm.Mode.PR, dlm.Mode.EX)


@in_loop
async def test_a_lock_is_reusable_and_a_handle_is_not() -> None:
    async with opened() as (_, locks):
        lock = locks.lock("x")
        async with lock as first:
            pass
        async with lock as second:
            assert second.fence > first.fence
        with pytest.raises(dlm.NotHeld):
            async with first:
                pytest.fail("a handle must not be entered again")


@in_loop
async def test_one_lock_object_used_by_two_tasks_releases_the_right_handle() -> None:
    async with opened() as (_, locks):
        lock = locks.shared("x")
        inside, leave = asyncio.Event(), asyncio.Event()
        seen: list[dlm.AsyncHeld] = []

        async def first() -> None:
            async with lock as held:
                seen.append(held)
                inside.set()
                await leave.wait()

        task = asyncio.create_task(first())
        await inside.wait()
        async with lock as mine:
            leave.set()
            await task
            assert seen[0].released
            assert mine.valid


@in_loop
async def test_tries_and_refusals() -> None:
    async with opened() as (channel, locks):
        held = await locks.try_lock("x")
        assert held is not None
        assert (channel.last("lock")["noqueue"], channel.last("lock")["no_quorum"]) == (True, "fail")
        await held.release()
        channel.script["lock"] = lambda args: RequestFailed("again", "held by others")
        assert await locks.try_lock("x") is None
        channel.script["lock"] = lambda args: RequestFailed("no_quorum", "so it is")
        with pytest.raises(dlm.NoQuorum, match="so it is"):
            await locks.try_lock("x")
        channel.script["lock"] = lambda args: RequestFailed("deadlock", "so it is")
        with pytest.raises(dlm.Deadlock):
            async with locks.lock("x"):
                pytest.fail("entered unheld")
        with pytest.raises(ValueError, match="timeout"):
            await locks.acquire("x", timeout=-1)
        assert channel.verbs().count("unlock") == 1


# -- time-outs


@in_loop
async def test_a_time_out_cancels_and_waits_for_the_outcome() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x", timeout=0.01))
        h = (await channel.sent_once("cancel"))["h"]
        channel.answer(h, RequestFailed("canceled", "withdrawn"))
        with pytest.raises(dlm.LockTimeout) as caught:
            await task
        assert caught.value.timeout == 0.01
        assert channel.verbs() == ["lock", "cancel"]


@in_loop
async def test_a_grant_that_overtakes_the_cancel_is_released() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x", timeout=0.01))
        h = (await channel.sent_once("cancel"))["h"]
        channel.answer(h, channel.grant({"mode": 5}))
        with pytest.raises(dlm.LockTimeout):
            await task
        assert channel.verbs() == ["lock", "cancel", "unlock"]


@in_loop
async def test_a_cancel_without_outcome_is_left_behind_and_its_grant_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "CANCEL_GRACE_S", 0.01)
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        with pytest.raises(dlm.LockTimeout):
            await locks.acquire("x", timeout=0.01)
        assert "unlock" not in channel.verbs()
        channel.answer(channel.last("lock")["h"], channel.grant({"mode": 5}))
        assert channel.verbs()[-1] == "unlock"


@in_loop
async def test_a_daemon_that_does_not_answer_a_try_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "TRY_PATIENCE_S", 0.01)
    monkeypatch.setattr(session_module, "CANCEL_GRACE_S", 0.01)
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        assert await locks.try_lock("x") is None


# -- cancelled tasks


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_loop
async def test_a_cancelled_wait_is_withdrawn() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x"))
        h = (await channel.sent_once("lock"))["h"]
        await cancelled(task)
        assert channel.sent[-1] == ("cancel", {"h": h})
        channel.answer(h, RequestFailed("canceled", "withdrawn"))
        assert channel.verbs() == ["lock", "cancel"]


@in_loop
async def test_a_grant_that_races_with_the_cancellation_is_released() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x"))
        h = (await channel.sent_once("lock"))["h"]
        await cancelled(task)
        channel.answer(h, channel.grant({"mode": 5}))
        assert channel.sent[-1] == ("unlock", {"h": h})


@in_loop
async def test_a_grant_that_was_there_when_the_task_was_cancelled_is_released() -> None:
    """The answer has come, and the task has not run since: it gets the cancellation, not the lock."""
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x"))
        h = (await channel.sent_once("lock"))["h"]
        channel.answer(h, channel.grant({"mode": 5}))
        await cancelled(task)
        assert channel.verbs() == ["lock", "unlock"]


@in_loop
async def test_a_task_that_is_cancelled_while_it_waits_for_a_lease_releases() -> None:
    async with opened() as (channel, locks):
        channel.page = (1, 0)
        task = asyncio.create_task(locks.acquire("x"))
        await channel.sent_once("lock")
        await turns()
        await cancelled(task)
        assert channel.verbs() == ["lock", "unlock"]


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
@in_loop
async def test_the_time_outs_of_asyncio(how: str) -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        with pytest.raises(TimeoutError) as caught:
            if how == "wait_for":
                await asyncio.wait_for(locks.acquire("x"), 0.01)
            else:
                async with asyncio.timeout(0.01):
                    await locks.acquire("x")
        assert not isinstance(caught.value, dlm.DLMError)
        assert channel.verbs() == ["lock", "cancel"]
        channel.answer(channel.last("lock")["h"], channel.grant({"mode": 5}))
        assert channel.verbs() == ["lock", "cancel", "unlock"]


@in_loop
async def test_a_group_of_tasks_that_fails_leaves_no_contender() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING

        async def fails() -> None:
            await channel.sent_once("lock", 3)
            raise KeyError("one of them")

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(locks.acquire(name))
                group.create_task(fails())
        assert channel.verbs() == ["lock"] * 3 + ["cancel"] * 3


# -- releasing


@in_loop
async def test_the_handle_ends_when_release_is_called() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        seen: list[bool] = []
        channel.script["unlock"] = lambda args: seen.append(held.valid)
        done = held.release()
        assert seen == [False]
        await done
        with pytest.raises(dlm.NotHeld):
            await held.release()
        with pytest.raises(dlm.NotHeld):
            held.check()


@in_loop
async def test_a_task_that_is_cancelled_before_it_runs_has_released() -> None:
    """redis-py #3847: a release must not depend on what becomes of the task."""
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        await cancelled(asyncio.create_task(held.release(wait=True)))
        assert channel.verbs() == ["lock", "unlock"]
        assert held.released


@in_loop
async def test_release_can_be_waited_for_and_given_up() -> None:
    async with opened() as (channel, locks):
        channel.script["unlock"] = lambda args: channel.PENDING
        for give_up in (False, True):
            held = await locks.acquire("x")
            task = asyncio.create_task(held.release(wait=True))
            await turns()
            assert held.released
            assert not task.done()
            if give_up:
                await cancelled(task)
            channel.answer(held.serial, {})
        await turns()
        assert channel.verbs() == ["lock", "unlock"] * 2


@in_loop
async def test_a_cancelled_body_releases() -> None:
    async with opened() as (channel, locks):

        async def body() -> None:
            async with locks.lock("x"):
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await channel.sent_once("lock")
        await turns()
        await cancelled(task)
        assert channel.verbs() == ["lock", "unlock"]


@pytest.mark.parametrize("wait", [False, True])
@in_loop
async def test_a_release_while_another_task_converts(wait: bool) -> None:
    """The node refuses an unlock while it converts: the conversion is withdrawn first."""
    async with opened() as (channel, locks):
        held = await locks.acquire("x", dlm.Mode.PR)
        channel.script["convert"] = lambda args: channel.PENDING
        converting = asyncio.create_task(held.convert(dlm.Mode.EX))
        await channel.sent_once("convert")
        releasing = asyncio.create_task(held.release(wait))
        await channel.sent_once("cancel")
        assert releasing.done() is False
        channel.answer(held.serial, RequestFailed("canceled", "withdrawn"))
        with pytest.raises(dlm.LockCancelled):
            await converting
        await releasing
        assert channel.verbs() == ["lock", "convert", "cancel", "unlock"]


# -- converting


@in_loop
async def test_converting_and_the_value_block() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x")
        await held.convert(dlm.Mode.PR, value=b"41")
        assert (held.mode, held.value) == (dlm.Mode.PR, b"41")
        assert channel.last("convert")["value"] == b"41"
        before = held.fence
        await held.convert(dlm.Mode.EX, timeout=5)
        assert held.fence > before
        held.value = b"42"
        await held.release()
        assert channel.last("unlock") == {"h": held.serial, "valblk": True, "value": b"42"}


@pytest.mark.parametrize("granted", [False, True])
@in_loop
async def test_a_cancelled_conversion_is_withdrawn_and_the_handle_learns_its_mode(granted: bool) -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x", dlm.Mode.PR)
        channel.script["convert"] = lambda args: channel.PENDING
        task = asyncio.create_task(held.convert(dlm.Mode.EX))
        await channel.sent_once("convert")
        with pytest.raises(dlm.LockBusy):
            await held.convert(dlm.Mode.NL)
        await cancelled(task)
        assert channel.verbs()[-1] == "cancel"
        channel.answer(held.serial, channel.grant({"mode": 5}) if granted else RequestFailed("canceled", "so"))
        assert held.mode is (dlm.Mode.EX if granted else dlm.Mode.PR)
        await held.release()


@in_loop
async def test_a_cancellation_is_not_replaced_by_a_loss() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x", dlm.Mode.PR)
        channel.script["convert"] = lambda args: channel.PENDING
        task = asyncio.create_task(held.convert(dlm.Mode.EX))
        await channel.sent_once("convert")
        channel.push("lost", h=held.serial, reason="evicted")
        await cancelled(task)


@in_loop
async def test_a_conversion_that_fails_since_the_lock_is_lost_says_so() -> None:
    async with opened() as (channel, locks):
        held = await locks.acquire("x", dlm.Mode.PR)
        channel.script["convert"] = lambda args: channel.PENDING
        task = asyncio.create_task(held.convert(dlm.Mode.EX))
        await channel.sent_once("convert")
        channel.push("lost", h=held.serial, reason="evicted")
        channel.answer(held.serial, RequestFailed("lost", "the lock was lost"))
        with pytest.raises(dlm.LockLost) as caught:
            await task
        assert caught.value.reason == "evicted"


# -- several at once


def grant_all(channel: LoopFake, args: dict[str, Any]) -> dict[str, Any]:
    rows = [{"h": args["h"] + i, **channel.grant({"mode": m})} for i, (_, m) in enumerate(args["locks"])]
    return {"locks": rows}


@in_loop
async def test_all_of_them_with_one_request_each_way() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: grant_all(channel, args)
        async with locks.all(("b", dlm.Mode.PR), "a", timeout=5) as held:
            assert held.valid
            assert not held.lost
            assert [part.name for part in held] == [b"b", b"a"]
            assert held["b"].mode is dlm.Mode.PR
            assert held["a"].fence == held.fences[1]
        assert channel.verbs() == ["lock_all", "unlock_all"]
        assert channel.last("lock_all")["locks"] == [(b"a", 5), (b"b", 3)]
        assert held.released
        channel.script["lock_all"] = lambda args: RequestFailed("again", "held by others")
        assert await locks.try_all("a", "b") is None


@in_loop
async def test_a_cancelled_wait_for_several_is_withdrawn_as_a_whole() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire_all("a", "b"))
        asked = await channel.sent_once("lock_all")
        await cancelled(task)
        assert channel.last("cancel") == {"h": asked["h"]}
        channel.answer(asked["h"], grant_all(channel, asked))
        assert channel.last("unlock_all") == {"locks": [{"h": asked["h"]}, {"h": asked["h"] + 1}]}


@in_loop
async def test_several_without_a_lease_are_given_back() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: grant_all(channel, args)
        channel.page = (1, 0)
        with pytest.raises(dlm.LockTimeout, match="without a lease"):
            await locks.acquire_all("a", "b", timeout=0.02)
        assert channel.verbs() == ["lock_all", "unlock_all"]
        assert all(handle.released for handle in locks.session.handles())
        gc.collect()  # nobody complains of a handle that was not released


@in_loop
async def test_a_part_that_converts_is_released_after_its_conversion() -> None:
    async with opened() as (channel, locks):
        channel.script["lock_all"] = lambda args: grant_all(channel, args)
        held = await locks.acquire_all("a", "b")
        channel.script["convert"] = lambda args: channel.PENDING
        task = asyncio.create_task(held["b"].convert(dlm.Mode.PR))
        await channel.sent_once("convert")
        await held.release()
        assert held.released
        assert channel.last("unlock_all") == {"locks": [{"h": held["a"].serial}]}
        channel.answer(held["b"].serial, RequestFailed("canceled", "withdrawn"))
        with pytest.raises(dlm.LockCancelled):
            await task
        assert channel.sent[-1] == ("unlock", {"h": held["b"].serial})


# -- whose it is


@in_loop
async def test_every_task_has_a_number_of_its_own() -> None:
    """API-R7: for the search of deadlocks the owner is the task, not the loop's one thread."""
    async with opened() as (channel, locks):

        async def twice(name: str) -> set[int]:
            for _ in range(2):
                await (await locks.acquire(name)).release()
            asked = [args for verb, args in channel.sent if verb == "lock"]
            return {args["owner"] for args in asked if args["name"] == name.encode()}

        first, second = await asyncio.gather(twice("a"), twice("b"))
        mine = await twice("c")
        assert len(first) == len(second) == len(mine) == 1
        assert sorted(first | second | mine) == [1, 2, 3]


@in_loop
async def test_a_transaction_is_that_of_the_task_and_its_children() -> None:
    async with opened() as (channel, locks):

        async def one(name: str) -> int:
            await (await locks.acquire(name)).release()
            xid: int = channel.last("lock")["xid"]
            return xid

        with locks.transaction(77) as tx:
            assert (tx.xid, await one("a"), await asyncio.create_task(one("b"))) == (77, 77, 77)
        assert await one("c") == 0


# -- the client


@in_loop
async def test_a_client_that_is_not_open_says_so() -> None:
    locks = dlm.AsyncClient()
    assert repr(locks) == "<dlm.AsyncClient not open>"
    with pytest.raises(dlm.NotConnected, match=r"async with dlm\.AsyncClient"):
        await locks.acquire("x")
    await locks.close()
    assert not locks.closed


@in_loop
async def test_no_daemon(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"unix://{tmp_path}/nobody.sock"
    monkeypatch.setenv("VSYNC_URL", url)
    with pytest.raises(dlm.NotConnected, match="start vsyncd") as caught:
        async with dlm.AsyncClient():
            pytest.fail("there is no daemon")
    assert caught.value.url == url


@in_loop
async def test_handles_are_marked_lost_before_the_channel_is_closed() -> None:
    channel = LoopFake()
    seen: list[Any] = []
    close = channel.close

    def look_and_close() -> None:
        seen.append((held.lost.reason, channel.flushes))
        close()

    channel.close = look_and_close  # type: ignore[method-assign]
    async with dlm.AsyncClient.over(channel, clock_us=lambda: channel.now) as locks:
        held = await locks.acquire("x")
    assert seen == [("session_closed", 1)]
    assert locks.closed
    with pytest.raises(dlm.NotConnected):
        await locks.acquire("x")
    with pytest.raises(RuntimeError, match="was opened before"):
        await locks.open()


@in_loop
async def test_waiting_ends_when_the_daemon_goes() -> None:
    async with opened() as (channel, locks):
        channel.script["lock"] = lambda args: channel.PENDING
        task = asyncio.create_task(locks.acquire("x"))
        await channel.sent_once("lock")
        channel.end("connection reset")
        with pytest.raises(dlm.NotConnected, match="connection reset"):
            await task
        assert locks.closed


@in_loop
async def test_a_client_of_another_loop() -> None:
    async with opened() as (_, locks):
        held = await locks.acquire("x")

        async def elsewhere() -> None:
            for use in (lambda: locks.acquire("y"), held.release, lambda: held.convert(dlm.Mode.PR), locks.ls):
                with pytest.raises(RuntimeError, match="event loop that opened it"):
                    await use()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await held.release()


@in_loop
async def test_nothing_works_in_a_forked_child() -> None:
    async with opened() as (_, locks):
        held = await locks.acquire("x")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            told = b"?"
            try:
                uses: list[Any] = [held.check, held.release, lambda: held.valid, lambda: held.lost.is_set()]
                uses += [lambda: locks.acquire("y").send(None), lambda: locks.close().send(None)]
                told = bytes(48 + _raises_forked(use) for use in uses)
            finally:
                os.write(writer, told)
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert pipe.read() == b"111111"
        assert os.waitpid(child, 0)[1] == 0
        await held.release()


def _raises_forked(use: Any) -> bool:
    try:
        use()
    except dlm.ForkedProcess:
        return True
    return False


@in_loop
async def test_a_handle_that_nobody_can_release_any_more_says_so() -> None:
    async with opened() as (_, locks):
        held = await locks.acquire("x")
        with pytest.warns(ResourceWarning, match="nobody can release <AsyncHeld 'x'"):  # noqa: PT031
            del held
            gc.collect()


@in_loop
async def test_lockspaces_share_the_session() -> None:
    async with opened() as (channel, locks):
        channel.script["space_create"] = lambda args: {"value_limit": 9}
        async with await locks.space("blue") as blue:
            assert blue.space_name == "blue"
            held = await blue.acquire("x")
            assert channel.last("lock")["space"] == "blue"
            with pytest.raises(dlm.InvalidRequest, match="at most 9 bytes"):
                held.value = bytes(10)
            outer = await locks.acquire("x")
        assert held.lost.reason == "space_closed"
        assert channel.last("space_close") == {"space": "blue"}
        assert outer.valid
        await outer.release()


@in_loop
async def test_long_listings_come_in_parts() -> None:
    def row(name: bytes) -> dict[str, Any]:
        return {"name": name, "state": "shared", "owner": None, "mode": None, "holders": [], "converting": [],
                "waiters": [], "fence": 0, "value_valid": True}  # fmt: skip

    async with opened() as (channel, locks):
        names = [b"a", b"b", b"c"]
        channel.script["ls"] = lambda args: [row(n) for n in names if n > args.get("after", b"")][:2]
        assert [info.name for info in await locks.ls()] == names
        channel.script["show"] = lambda args: RequestFailed("unknown", "no such lock")
        assert await locks.holders("x") == ()
        assert await locks.lock("x").contenders() == ()
