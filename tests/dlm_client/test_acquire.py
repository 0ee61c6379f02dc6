"""Taking locks: enter held or raise, wait as long as asked, leave nothing behind."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import dlm
from dlm import session as session_module
from vsync.errors import RequestFailed


def test_with_gives_the_handle_and_releases_it(channel: Any, locks: dlm.Client) -> None:
    with locks.lock("reports/nightly", timeout=10) as held:
        assert held.name == b"reports/nightly"
        assert held.mode is dlm.Mode.EX
        assert held.fence == 1 << 32
        assert held.valid
        held.check()
        assert channel.verbs() == ["lock"]
    assert not held.valid
    assert channel.verbs() == ["lock", "unlock"]
    asked = channel.last("lock")
    assert (asked["name"], asked["mode"], asked.get("noqueue", False)) == (b"reports/nightly", 5, False)


@pytest.mark.parametrize(("how", "mode"), [("exclusive", dlm.Mode.EX), ("shared", dlm.Mode.PR)])
def test_shorthands_ask_for_their_mode(channel: Any, locks: dlm.Client, how: str, mode: dlm.Mode) -> None:
    with getattr(locks, how)(b"x") as held:
        assert held.mode is mode
    assert channel.last("lock")["mode"] == mode


def test_names_are_text_or_bytes(locks: dlm.Client) -> None:
    with locks.lock("ä") as held:
        assert held.name == b"\xc3\xa4"
    with pytest.raises(TypeError):
        locks.lock(7)  # type: ignore[arg-type]


def test_a_lock_is_reusable_and_gives_a_new_handle_each_time(locks: dlm.Client) -> None:
    lock = locks.lock("x")
    with lock as first:
        pass
    with lock as second:
        assert second.fence > first.fence
    with pytest.raises(dlm.NotHeld), first:
        pytest.fail("a handle must not be entered again")


def test_one_lock_object_used_by_two_threads_releases_the_right_handle(
    channel: Any, locks: dlm.Client, in_thread: Any
) -> None:
    lock = locks.shared("x")
    inside, leave = threading.Event(), threading.Event()
    seen: list[dlm.Held] = []

    def first() -> None:
        with lock as held:
            seen.append(held)
            inside.set()
            leave.wait(20)

    thread = in_thread(first)
    assert inside.wait(20)
    with lock as mine:
        leave.set()
        thread.outcome()
        assert seen[0].released
        assert mine.valid


def test_release_twice_is_an_error(locks: dlm.Client) -> None:
    held = locks.acquire("x")
    held.release()
    with pytest.raises(dlm.NotHeld):
        held.release()
    with pytest.raises(dlm.NotHeld):
        held.check()
    with pytest.raises(dlm.NotHeld):
        held.convert(dlm.Mode.PR)


def test_another_thread_may_release(locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x")
    in_thread(held.release).outcome()
    assert held.released


def test_the_handle_ends_when_release_is_called(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x")
    seen: list[bool] = []
    channel.script["unlock"] = lambda args: seen.append(held.valid)
    held.release()
    assert seen == [False]


def test_release_can_wait_for_delivery(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    held = locks.acquire("x")
    channel.script["unlock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: held.release(wait=True))
    channel.wait_sent("unlock")
    assert thread.is_alive()
    channel.answer(held.serial, {})
    thread.outcome()


# -- tries and time-outs


def test_a_try_does_not_queue_and_does_not_wait_for_quorum(channel: Any, locks: dlm.Client) -> None:
    held = locks.try_lock("x")
    assert held is not None
    held.release()
    assert channel.last("lock")["noqueue"] is True
    assert channel.last("lock")["no_quorum"] == "fail"


def test_a_try_on_a_lock_that_is_taken(channel: Any, locks: dlm.Client) -> None:
    channel.script["lock"] = lambda args: RequestFailed("again", "held by others")
    assert locks.try_lock("x") is None
    with pytest.raises(dlm.LockTimeout) as caught:
        locks.acquire("x", timeout=0)
    assert caught.value.name == b"x"
    assert caught.value.timeout == 0
    assert "unlock" not in channel.verbs()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("no_quorum", dlm.NoQuorum),
        ("deadlock", dlm.Deadlock),
        ("canceled", dlm.LockCancelled),
        ("invalid", dlm.InvalidRequest),
        ("lost", dlm.NotConnected),
        ("a code of the future", dlm.InvalidRequest),
    ],
)
def test_refusals_are_typed(channel: Any, locks: dlm.Client, code: str, kind: type[Exception]) -> None:
    channel.script["lock"] = lambda args: RequestFailed(code, "so it is")
    with pytest.raises(kind, match="so it is"):
        locks.acquire("x", no_quorum="fail")
    if code == "no_quorum":
        with pytest.raises(dlm.NoQuorum):
            locks.try_lock("x")


def test_a_time_out_cancels_and_waits_for_the_outcome(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.script["lock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: locks.acquire("x", timeout=0.01))
    channel.wait_sent("cancel")
    h = channel.last("lock")["h"]
    assert channel.last("cancel") == {"h": h}
    channel.answer(h, RequestFailed("canceled", "withdrawn"))
    with pytest.raises(dlm.LockTimeout) as caught:
        thread.outcome()
    assert caught.value.timeout == 0.01
    assert channel.verbs() == ["lock", "cancel"]


def test_a_grant_that_overtakes_the_cancel_is_released(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.script["lock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: locks.acquire("x", timeout=0.01))
    channel.wait_sent("cancel")
    channel.answer(channel.last("lock")["h"], channel.grant({"mode": 5}))
    with pytest.raises(dlm.LockTimeout):
        thread.outcome()
    assert channel.verbs() == ["lock", "cancel", "unlock"]


def test_a_cancel_without_outcome_is_left_behind_and_its_grant_released(
    channel: Any, locks: dlm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CANCEL_GRACE_S", 0.01)
    channel.script["lock"] = lambda args: channel.PENDING
    with pytest.raises(dlm.LockTimeout):
        locks.acquire("x", timeout=0.01)
    assert "unlock" not in channel.verbs()
    channel.answer(channel.last("lock")["h"], channel.grant({"mode": 5}))
    assert channel.verbs()[-1] == "unlock"


def test_a_daemon_that_does_not_answer_a_try_counts_as_no(
    channel: Any, locks: dlm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "TRY_PATIENCE_S", 0.01)
    monkeypatch.setattr(session_module, "CANCEL_GRACE_S", 0.01)
    channel.script["lock"] = lambda args: channel.PENDING
    assert locks.try_lock("x") is None


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_nonsense_time_outs_are_refused(channel: Any, locks: dlm.Client, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        locks.acquire("x", timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        locks.lock("x", timeout=timeout)
    assert channel.sent == []


def test_an_interrupted_wait_is_withdrawn(channel: Any, locks: dlm.Client, interrupts: Any) -> None:
    def interrupt(args: dict[str, Any]) -> object:
        interrupts.start()
        return channel.PENDING

    channel.script["lock"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        try:
            locks.acquire("x")
        finally:
            interrupts.end()
    assert "cancel" in channel.verbs()
    h = channel.last("cancel")["h"]
    if h in channel.waiting:  # else it was interrupted before it could wait, and has sent an unlock as well
        channel.answer(h, channel.grant({"mode": 5}))
    assert channel.verbs()[-1] == "unlock"


def test_waiting_ends_when_the_daemon_goes(channel: Any, locks: dlm.Client, in_thread: Any) -> None:
    channel.script["lock"] = lambda args: channel.PENDING
    thread = in_thread(lambda: locks.acquire("x"))
    channel.wait_sent("lock")
    channel.end("connection reset")
    with pytest.raises(dlm.NotConnected, match="connection reset"):
        thread.outcome()
    with pytest.raises(dlm.NotConnected):
        locks.acquire("y")
    assert locks.closed


# -- fork


def test_nothing_works_in_a_forked_child(channel: Any, locks: dlm.Client) -> None:
    held = locks.acquire("x")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"?"
        try:
            uses: list[Any] = [
                held.check,
                held.release,
                lambda: held.valid,
                lambda: held.lost.is_set(),
                locks.close,
            ]
            uses += [lambda: locks.acquire("y"), lambda: held.convert(dlm.Mode.PR), locks.ls]
            told = bytes(48 + _raises_forked(use) for use in uses)
        finally:
            os.write(writer, told)
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"11111111"
    assert os.waitpid(child, 0)[1] == 0
    assert held.valid
    held.release()


def _raises_forked(use: Any) -> bool:
    try:
        use()
    except dlm.ForkedProcess:
        return True
    return False
