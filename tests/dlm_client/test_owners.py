"""Whose a request is: of a thread, or of a transaction; and what the node counts for the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import dlm
from dlm import Flag, Mode
from vsync.errors import RequestFailed


def asked(channel: Any) -> tuple[int, int]:
    args = channel.last("lock")
    return args["xid"], args["owner"]


def test_every_thread_is_an_owner_of_its_own(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    def numbers() -> list[tuple[int, int]]:
        found = []
        for _ in range(2):
            with locks.acquire("x", Mode.PR):
                found.append(asked(channel))
        return found

    mine, others, third = numbers(), in_thread(numbers).outcome(), in_thread(numbers).outcome()
    seen = [pair for pairs in (mine, others, third) for pair in pairs]
    assert all(xid == 0 < owner for xid, owner in seen)
    assert len({owner for _, owner in seen}) == 3  # also not that of a thread that has ended
    assert numbers() == mine


def test_a_transaction_is_the_owner_of_what_is_asked_inside(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    with locks.transaction() as outer:
        assert 0 < outer.xid < 1 << 63
        locks.acquire("x").release()
        assert asked(channel)[0] == outer.xid
        with locks.transaction(77) as inner:
            with locks.lock("x"):
                assert asked(channel)[0] == inner.xid == 77
            locks.acquire("x", xid=5).release()
            assert asked(channel)[0] == 5
            locks.acquire("x", xid=0).release()
            assert asked(channel)[0] == 0
        locks.acquire("x").release()
        assert asked(channel)[0] == outer.xid
        in_thread(lambda: locks.acquire("x").release()).outcome()
        assert asked(channel)[0] == 0  # another thread is not in it
    locks.acquire("x").release()
    assert asked(channel)[0] == 0
    assert locks.transaction().xid != locks.transaction().xid


def test_a_transaction_belongs_to_its_client_and_its_task(channel: Any, locks: dlm.Client) -> None:
    other = dlm.Client.over(type(channel)(), clock_us=lambda: channel.now)

    async def work(xid: int) -> int:
        with locks.transaction(xid), other.transaction(9):
            await asyncio.sleep(0)
            locks.acquire("x").release()
            return asked(channel)[0]

    async def both() -> list[int]:
        return list(await asyncio.gather(work(1), work(2)))

    assert asyncio.run(both()) == [1, 2]
    other.close()


def test_nonsense_is_no_transaction(locks: dlm.Client) -> None:
    for xid in (-1, 1 << 63, "7", True):
        with pytest.raises(dlm.InvalidRequest):
            locks.acquire("x", xid=xid)  # type: ignore[arg-type]
    with pytest.raises(dlm.InvalidRequest):
        locks.transaction(0)
    transaction = locks.transaction(3)
    with transaction, pytest.raises(RuntimeError, match="entered before"):
        transaction.__enter__()


def test_the_node_counts_time_outs(channel: Any, locks: dlm.Client, refused: type[RequestFailed]) -> None:
    channel.script["lock"] = lambda args: refused("timeout", "too long")
    with pytest.raises(dlm.LockTimeout) as caught:
        locks.acquire("x", timeout=2.5)
    assert caught.value.timeout == 2.5
    assert channel.last("lock")["timeout_us"] == 2_500_000
    assert channel.verbs() == ["lock"]
    channel.script["lock"] = channel.grant
    held = locks.acquire("x")
    assert "timeout_us" not in channel.last("lock")
    channel.script["convert"] = lambda args: refused("timeout", "too long")
    with pytest.raises(dlm.LockTimeout):
        held.convert(Mode.EX, timeout=1e-9)
    assert channel.last("convert")["timeout_us"] == 1
    held.release()


@pytest.mark.parametrize("flag", [Flag.CANCEL, Flag.CONVERT, Flag.VALBLK, Flag.IVVALBLK, Flag.FORCEUNLOCK])
def test_flags_of_the_low_level_are_not_for_the_friendly_one(
    channel: Any, locks: dlm.Client, flag: Flag
) -> None:
    with pytest.raises(dlm.InvalidRequest, match="Lockspace"):
        locks.acquire("x", flags=flag)
    with locks.acquire("x") as held, pytest.raises(dlm.InvalidRequest, match="Lockspace"):
        held.convert(Mode.PR, flags=flag)
