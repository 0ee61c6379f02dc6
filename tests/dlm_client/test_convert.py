"""Conversions and value blocks."""

from __future__ import annotations

from typing import Any

import pytest

import dlm
from dlm import Mode
from vsync.errors import RequestFailed


def test_a_conversion_upwards_counts_when_it_is_granted(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    with locks.shared("x") as held:
        before = held.fence
        channel.script["convert"] = lambda args: channel.PENDING
        thread = in_thread(lambda: held.convert(Mode.EX))
        channel.wait_sent("convert")
        assert held.mode is Mode.PR
        with pytest.raises(dlm.LockBusy):
            held.convert(Mode.PW)
        channel.answer(held.serial, channel.grant({"mode": 5}))
        thread.outcome()
        assert held.mode is Mode.EX
        assert held.fence > before


@pytest.mark.parametrize(
    ("old", "new", "meanwhile"),
    [
        (Mode.EX, Mode.PR, Mode.PR),
        (Mode.PW, Mode.NL, Mode.NL),
        (Mode.CW, Mode.PR, Mode.CR),
        (Mode.PR, Mode.CW, Mode.CR),
        (Mode.PR, Mode.PW, Mode.PR),
        (Mode.EX, Mode.EX, Mode.EX),
    ],
)
def test_during_a_conversion_the_handle_counts_for_what_both_modes_allow(
    channel: Any, locks: dlm.Client, old: Mode, new: Mode, meanwhile: Mode
) -> None:
    """Pitfalls D8: others may be granted at the delivery of the conversion, before its answer is here."""
    with locks.lock("x", old) as held:
        seen: list[Mode] = []

        def convert(args: dict[str, Any]) -> Any:
            seen.append(held.mode)
            return channel.grant(args)

        channel.script["convert"] = convert
        held.convert(new)
        assert seen == [meanwhile]
        assert held.mode is new


def test_an_interrupt_is_not_replaced_by_a_loss(channel: Any, locks: dlm.Client, interrupts: Any) -> None:
    held = locks.acquire("x", Mode.PR)

    def interrupt(args: dict[str, Any]) -> object:
        channel.push("lost", h=held.serial, reason="evicted")
        interrupts.start()
        return channel.PENDING

    channel.script["convert"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        try:
            held.convert(Mode.EX)
        finally:
            interrupts.end()
    with pytest.raises(dlm.LockLost):
        held.release()


def test_a_refused_conversion_keeps_the_old_mode(channel: Any, locks: dlm.Client) -> None:
    channel.script["convert"] = lambda args: RequestFailed("again", "held by others")
    with locks.shared("x") as held:
        with pytest.raises(dlm.LockTimeout):
            held.convert(Mode.EX, timeout=0)
        assert channel.last("convert")["noqueue"] is True
        assert held.mode is Mode.PR
        assert held.valid


def test_a_conversion_that_times_out(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.script["convert"] = lambda args: channel.PENDING
    with locks.shared("x") as held:
        thread = in_thread(lambda: held.convert(Mode.EX, timeout=0.01))
        channel.wait_sent("cancel")
        channel.answer(held.serial, RequestFailed("canceled", "withdrawn"))
        with pytest.raises(dlm.LockTimeout):
            thread.outcome()
        assert held.mode is Mode.PR
        channel.script["convert"] = channel.grant
        held.convert(Mode.EX)


def test_a_conversion_granted_before_its_cancel_is_granted(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.script["convert"] = lambda args: channel.PENDING
    with locks.shared("x") as held:
        thread = in_thread(lambda: held.convert(Mode.EX, timeout=0.01))
        channel.wait_sent("cancel")
        channel.answer(held.serial, channel.grant({"mode": 5}))
        thread.outcome()
        assert held.mode is Mode.EX


def test_release_during_a_conversion_unlocks_when_that_is_over(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    channel.script["convert"] = lambda args: channel.PENDING
    held = locks.acquire("x", Mode.PR)
    thread = in_thread(lambda: held.convert(Mode.EX))
    channel.wait_sent("convert")
    held.release()
    assert channel.verbs() == ["lock", "convert", "cancel"]
    assert not held.valid
    channel.answer(held.serial, RequestFailed("canceled", "withdrawn"))
    with pytest.raises(dlm.LockCancelled):
        thread.outcome()
    channel.wait_sent("unlock")


def test_a_lock_lost_during_its_conversion(channel: Any, locks: dlm.Client) -> None:
    def convert(args: dict[str, Any]) -> Any:
        channel.push("lost", h=args["h"], reason="evicted")
        return channel.grant(args)

    channel.script["convert"] = convert
    held = locks.acquire("x", Mode.PR)
    with pytest.raises(dlm.LockLost):
        held.convert(Mode.EX)


def test_the_channel_closing_before_a_conversion_is_sent(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x", Mode.PR)
    channel.closed = True
    with pytest.raises(dlm.NotConnected):
        held.convert(Mode.EX)
    assert held.mode is Mode.PR
    held.release()


# -- value blocks


def test_the_value_is_read_with_the_lock_and_written_with_the_release(channel: Any, locks: dlm.Client) -> None:
    channel.script["lock"] = lambda args: channel.grant(args) | {"value": b"41", "value_valid": True}
    with locks.exclusive("next-id") as held:
        assert held.value_valid
        held.value = str(int(held.value) + 1).encode()
        assert held.value == b"42"
    assert channel.last("unlock") == {"h": held.serial, "valblk": True, "value": b"42"}


def test_a_value_nobody_set_is_not_written(channel: Any, locks: dlm.Client) -> None:
    with locks.exclusive("next-id") as held:
        assert held.value == b""
    assert channel.last("unlock") == {"h": held.serial}


def test_an_invalid_value_says_so(channel: Any, locks: dlm.Client) -> None:
    channel.script["lock"] = lambda args: channel.grant(args) | {"value": b"41", "value_valid": False}
    with locks.exclusive("next-id") as held:
        assert not held.value_valid
        assert held.value == b"41"


def test_a_conversion_downwards_writes_the_value_once(channel: Any, locks: dlm.Client) -> None:
    with locks.exclusive("x") as held:
        held.value = b"new"
        channel.script["convert"] = lambda args: channel.grant(args) | {"value": args["value"]}
        held.convert(Mode.PR)
        assert (channel.last("convert")["valblk"], channel.last("convert")["value"]) == (True, b"new")
        assert held.value == b"new"
    assert channel.last("unlock") == {"h": held.serial}


def test_a_conversion_upwards_reads_the_value(channel: Any, locks: dlm.Client) -> None:
    with locks.shared("x") as held:
        channel.script["convert"] = lambda args: channel.grant(args) | {"value": b"seen"}
        held.convert(Mode.EX)
        assert (channel.last("convert")["valblk"], channel.last("convert")["value"]) == (True, None)
        assert held.value == b"seen"


def test_readers_may_not_write_the_value(locks: dlm.Client) -> None:
    with locks.shared("x") as held, pytest.raises(dlm.InvalidRequest, match="PR"):
        held.value = b"new"
