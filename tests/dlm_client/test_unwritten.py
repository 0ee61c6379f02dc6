"""C14 as programs see it: a release that waits, and was to write a value block, says if it may not have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm import Mode
from tests.dlm_client.loop_fake import opened
from vsync.errors import RequestFailed

LOST = RequestFailed("lost", "whether its value block was written is not known")


@pytest.fixture
def unlucky(channel: Any) -> Any:
    channel.script["unlock"] = channel.script["unlock_all"] = lambda args: LOST
    return channel


def test_a_value_that_may_not_be_there(locks: dlm.Client, unlucky: Any) -> None:
    held = locks.acquire("x")
    held.value = b"new"
    with pytest.raises(dlm.NotConnected, match="lock 'x' is released, but whether its value block was written"):
        held.release(wait=True)
    assert held.released


def test_a_block_that_may_not_be_invalid(locks: dlm.Client, unlucky: Any) -> None:
    with pytest.raises(dlm.NotConnected):
        locks.acquire("x").release(wait=True, invalidate=True)


@pytest.mark.parametrize("wait", [False, True])
def test_without_a_value_there_is_nothing_to_know(locks: dlm.Client, unlucky: Any, wait: bool) -> None:
    locks.acquire("x").release(wait=wait)


def test_who_does_not_wait_does_not_want_to_know(locks: dlm.Client, unlucky: Any) -> None:
    with locks.acquire("x") as held:
        held.value = b"new"


def test_a_lost_lock_is_lost(locks: dlm.Client, unlucky: Any) -> None:
    held = locks.acquire("x")
    held.value = b"new"
    unlucky.push("lost", h=held.serial, reason="evicted")
    with pytest.raises(dlm.LockLost):
        held.release(wait=True)


def test_several_together(locks: dlm.Client, channel: Any) -> None:
    channel.script["lock_all"] = lambda args: {
        "locks": [{"h": args["h"] + i, **channel.grant({"mode": 5})} for i in range(len(args["locks"]))]
    }
    channel.script["unlock_all"] = lambda args: LOST
    both = locks.acquire_all("a", "b", mode=Mode.EX)
    with pytest.raises(dlm.NotConnected):
        both.release(wait=True, invalidate=True)


def test_the_daemon_dies(locks: dlm.Client, channel: Any, in_thread: Callable[..., Any]) -> None:
    channel.script["unlock"] = lambda args: channel.PENDING
    held = locks.acquire("x")
    held.value = b"new"
    thread = in_thread(lambda: held.release(wait=True))
    channel.wait_sent("unlock")
    channel.end("gone")
    with pytest.raises(dlm.NotConnected, match="value block"):
        thread.outcome()


async def refused(writes: bool) -> dlm.AsyncHeld:
    """A release that is waited for."""
    async with opened() as (channel, locks):
        channel.script["unlock"] = lambda args: LOST
        held = await locks.acquire("x")
        if writes:
            held.value = b"new"
        await held.release(wait=True)
        return held


def test_asyncio() -> None:
    asyncio.run(refused(writes=False))
    with pytest.raises(dlm.NotConnected, match="value block"):
        asyncio.run(refused(writes=True))


def test_asyncio_several_together() -> None:
    async def main() -> None:
        async with opened() as (channel, locks):
            channel.script["unlock_all"] = lambda args: LOST
            channel.script["lock_all"] = lambda args: {
                "locks": [{"h": args["h"] + i, **channel.grant({"mode": 5})} for i in range(len(args["locks"]))]
            }
            both = await locks.acquire_all("a", "b")
            await both.release(wait=True, invalidate=True)

    with pytest.raises(dlm.NotConnected, match="value block"):
        asyncio.run(main())
