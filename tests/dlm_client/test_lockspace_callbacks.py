"""Callbacks of ``dlm.Lockspace``, and what it says of answers that only a scripted node gives."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
from dlm import Flag, Lksb, Lockspace, Mode, Outcome, Status
from vsync.errors import RequestFailed

Seen = list[tuple[Any, ...]]


@pytest.fixture
def lost() -> Seen:
    return []


@pytest.fixture
def space(locks: dlm.Client, lost: Seen) -> Iterator[Lockspace]:
    with Lockspace(locks, poll=True, on_lost=lambda lkid, reason: lost.append((lkid, reason))) as space:
        yield space


def notes(seen: Seen) -> dict[str, Callable[..., None]]:
    """Callbacks that note what they are given."""
    return {
        "ast": lambda arg: seen.append((arg, "ast")),
        "bast": lambda arg, mode: seen.append((arg, "bast", mode)),
    }


def test_the_completion_comes_before_the_advice_for_its_grant(channel: Any, space: Lockspace) -> None:
    """A1, B7: also when both arrive before the request has been sent out to its end."""

    def grant_and_advise(args: dict[str, Any]) -> Any:
        channel.push("blocking", h=args["h"], mode=3)
        return channel.grant(args)

    channel.script["lock"] = grant_and_advise
    seen: Seen = []
    space.lock(Mode.EX, "x", astarg="a", **notes(seen))
    assert seen == []  # nothing runs before dispatch
    assert space.dispatch() == 2
    assert seen == [("a", "ast"), ("a", "bast", Mode.PR)]


def test_completions_are_neither_dropped_nor_merged(channel: Any, space: Lockspace) -> None:
    """A2, B9, S33, S35: however many wait, and with one wake-up for all."""
    seen: list[tuple[Status, Mode | None, int]] = []
    lksb = space.lock(Mode.NL, "x", ast=lambda lksb: seen.append((lksb.status, lksb.mode, lksb.fence)))
    fences = [lksb.fence]
    for number in range(300):
        fences.append(space.convert(lksb.lkid, Mode(number % 6)).fence)
    assert select.select([space], [], [], 0)[0]
    assert space.dispatch() == 301
    assert not select.select([space], [], [], 0)[0]
    assert seen == [
        (Status.OK, Mode.NL if number == 0 else Mode((number - 1) % 6), fence)
        for number, fence in enumerate(fences)
    ]
    assert space.dispatch() == 0


def test_advice_that_waits_is_merged(channel: Any, space: Lockspace) -> None:
    """B9: one of a lock, for the strongest mode; the next after that is a new one."""
    seen: Seen = []
    lksb = space.lock(Mode.EX, "x", bast=notes(seen)["bast"], astarg="x")
    other = space.lock(Mode.EX, "y", bast=notes(seen)["bast"], astarg="y")
    for h, mode in ((lksb.lkid, 1), (other.lkid, 2), (lksb.lkid, 5), (lksb.lkid, 3)):
        channel.push("blocking", h=h, mode=mode)
    assert space.dispatch() == 2
    channel.push("blocking", h=lksb.lkid, mode=3)
    space.dispatch()
    assert seen == [("x", "bast", Mode.EX), ("y", "bast", Mode.CW), ("x", "bast", Mode.PR)]


def test_advice_is_dropped_when_it_is_out_of_date(channel: Any, space: Lockspace) -> None:
    """B6, B10: the lock has made room since, or is given up."""
    seen: Seen = []
    bast = notes(seen)["bast"]
    lksb, other = space.lock(Mode.EX, "x", bast=bast), space.lock(Mode.EX, "y", bast=bast)
    channel.push("blocking", h=lksb.lkid, mode=3)
    channel.push("blocking", h=other.lkid, mode=3)
    assert space.convert(lksb.lkid, Mode.CR).status is Status.OK
    space.unlock(other.lkid)
    assert space.dispatch() == 2
    assert seen == []
    channel.push("blocking", h=lksb.lkid, mode=3)  # compatible with CR: not even queued
    assert space.dispatch() == 0


def test_which_callbacks_apply_after_a_conversion(channel: Any, space: Lockspace) -> None:
    """U8, S32: those of the conversion, from its acceptance on, even if it fails; what was due keeps its own."""
    seen: Seen = []
    lkid = space.lock(Mode.PR, "x", astarg="old", **notes(seen)).lkid
    channel.push("blocking", h=lkid, mode=4)
    channel.script["convert"] = lambda args: channel.PENDING
    space.convert(lkid, Mode.EX, astarg="new")
    assert channel.last("convert")["blocking"] is True  # not given: it keeps its function
    channel.push("blocking", h=lkid, mode=5)
    assert space.dispatch() == 2
    channel.answer(lkid, RequestFailed("deadlock", "no"))
    channel.push("blocking", h=lkid, mode=5)
    space.dispatch()
    assert seen == [("old", "ast"), ("old", "bast", Mode.EX), ("new", "ast"), ("new", "bast", Mode.EX)]
    with pytest.raises(dlm.InvalidRequest):
        space.convert(lkid, Mode.NL, Flag.QUECVT, astarg="refused")
    channel.push("blocking", h=lkid, mode=2)
    space.dispatch()
    assert seen[-1] == ("new", "bast", Mode.CW)  # one that was not accepted changes nothing
    channel.script["convert"] = channel.grant
    space.convert(lkid, Mode.EX, bast=None, ast=None)
    assert channel.last("convert")["blocking"] is False
    channel.push("blocking", h=lkid, mode=5)
    assert space.dispatch() == 0


def test_without_astarg_callbacks_get_the_status_block(channel: Any, space: Lockspace) -> None:
    seen: Seen = []
    first = space.lock(Mode.PR, "x", **notes(seen))
    second = space.convert(first.lkid, Mode.PR)
    third = space.unlock(first.lkid)
    space.dispatch()
    assert [what[0] for what in seen] == [first, second, third]
    assert [block.status for block in (first, second, third)] == [Status.OK, Status.OK, Status.EUNLOCK]


def test_what_a_callback_raises_does_not_stop_the_others(
    locks: dlm.Client, space: Lockspace, caplog: pytest.LogCaptureFixture
) -> None:
    seen: Seen = []

    def fail(arg: Lksb) -> None:
        raise KeyError(arg.lkid)

    first = space.lock(Mode.NL, "x", ast=fail)
    space.lock(Mode.NL, "y", ast=lambda _: seen.append(("y",)))
    with pytest.raises(KeyError, match=str(first.lkid)):
        space.dispatch()
    assert seen == []
    assert space.dispatch() == 1
    assert seen == [("y",)]
    with Lockspace(locks) as threaded:
        done = threading.Event()
        threaded.lock(Mode.NL, "x", ast=fail)
        threaded.lock(Mode.NL, "y", ast=lambda _: done.set())
        assert done.wait(20)
        assert "a callback failed" in caplog.text
        with pytest.raises(dlm.InvalidRequest):
            threaded.fileno()
        with pytest.raises(dlm.InvalidRequest):
            threaded.dispatch()


def test_the_thread_comes_and_goes(locks: dlm.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.callbacks.IDLE_S", 0.01)
    with Lockspace(locks) as space:
        for _ in range(3):
            threads: list[threading.Thread] = []
            done = threading.Event()

            def note(_: Lksb, threads: list[threading.Thread] = threads, done: threading.Event = done) -> None:
                threads.append(threading.current_thread())
                done.set()

            space.lock(Mode.NL, "x", ast=note)
            assert done.wait(20)
            assert threads[0] is not threading.current_thread()
            threads[0].join(20)
            assert not threads[0].is_alive()


def test_a_callback_may_dispatch_and_ask_again(space: Lockspace) -> None:
    seen: Seen = []

    def again(lksb: Lksb) -> None:
        seen.append((lksb.mode,))
        if lksb.mode is Mode.NL:
            space.convert(lksb.lkid, Mode.EX)
            space.dispatch()

    space.lock(Mode.NL, "x", ast=again)
    assert space.dispatch() == 1
    assert seen == [(Mode.NL,), (Mode.EX,)]


def test_nothing_is_called_after_close(channel: Any, space: Lockspace, lost: Seen) -> None:
    """B10, S34."""
    seen: Seen = []
    lksb = space.lock(Mode.EX, "x", **notes(seen))
    channel.push("blocking", h=lksb.lkid, mode=5)
    space.close()
    space.close()
    assert channel.last("unlock") == {"h": lksb.lkid}
    channel.push("lost", h=lksb.lkid, reason="evicted")
    with pytest.raises(dlm.InvalidRequest):
        space.dispatch()
    assert (seen, lost) == ([], [])


# -- what is asked, and what the answers mean


def test_owner_transaction_and_time_out_are_sent(channel: Any, locks: dlm.Client, space: Lockspace) -> None:
    space.lock(Mode.PR, "x", Flag.HEADQUE | Flag.TIMEOUT, timeout=1.5)
    args = channel.last("lock")
    assert (args["xid"], args["owner"], args["timeout_us"], args["headque"]) == (0, 0, 1_500_000, True)
    assert "timeout" not in args
    with locks.transaction():
        lkid = space.lock(Mode.PR, "x", xid=77, timeout=0).lkid
    args = channel.last("lock")
    assert (args["xid"], args["noqueue"]) == (77, True)
    assert "timeout_us" not in args
    space.convert(lkid, Mode.EX, Flag.QUECVT, timeout=2)
    args = channel.last("convert")
    assert (args["h"], args["mode"], args["timeout_us"], args["quecvt"]) == (lkid, 5, 2_000_000, True)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            space.lock(Mode.PR, "x", timeout=wrong)
    with pytest.raises(dlm.InvalidRequest):
        space.lock(Mode.PR, "x", xid=-1)


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("again", Status.EAGAIN, dlm.LockTimeout),
        ("timeout", Status.ETIMEDOUT, dlm.LockTimeout),
        ("deadlock", Status.EDEADLK, dlm.Deadlock),
        ("canceled", Status.ECANCEL, dlm.LockCancelled),
        ("unknown", Status.ENOENT, dlm.NotHeld),
        ("too_many", Status.ENOMEM, dlm.InvalidRequest),
        ("no_quorum", Status.ENOTCONN, dlm.NoQuorum),
        ("lost", Status.ENOTCONN, dlm.NotConnected),
        ("news", Status.EINVAL, dlm.InvalidRequest),
    ],
)
def test_every_refusal_is_a_status(
    channel: Any, space: Lockspace, code: str, status: Status, error: type[dlm.DLMError]
) -> None:
    channel.script["lock"] = channel.script["convert"] = lambda args: RequestFailed(code, "no")
    seen: Seen = []
    lksb = space.lock(Mode.EX, "x", value=b"mine", **notes(seen))
    assert (lksb.status, lksb.mode, lksb.value) == (status, None, b"mine")
    assert type(lksb.error) is error
    assert (space.dispatch(), seen) == (1, [(lksb, "ast")])
    with pytest.raises(dlm.NotHeld):
        space.unlock(lksb.lkid)
    channel.script["lock"] = channel.grant
    held = space.lock(Mode.PR, "x")
    up = space.convert(held.lkid, Mode.EX)
    assert (up.status, up.mode, up.fence) == (status, Mode.PR, held.fence)
    space.check(held.lkid)


def test_a_withdrawn_conversion_may_have_given_up_its_mode(channel: Any, space: Lockspace) -> None:
    lkid = space.lock(Mode.PR, "x").lkid
    channel.script["convert"] = lambda args: RequestFailed("canceled", "no", {"mode": 0, "flags": 1})
    lksb = space.convert(lkid, Mode.EX, Flag.CONVDEADLK)
    assert (lksb.status, lksb.mode, lksb.flags) == (Status.ECANCEL, Mode.NL, Outcome.DEMOTED)


def test_an_unlock_that_cannot_be_sent_yet_ends_the_request_too(channel: Any, space: Lockspace) -> None:
    """Without a primary view the node answers the unlock at once, and the request much later."""
    channel.script["lock"] = lambda args: channel.PENDING
    seen: Seen = []
    lksb = space.lock(Mode.EX, "x", **notes(seen))
    assert space.unlock(lksb.lkid).status is Status.EUNLOCK
    assert lksb.wait(0) is Status.EUNLOCK
    channel.answer(lksb.lkid, RequestFailed("canceled", "released"))
    assert space.dispatch() == 1
    assert lksb.status is Status.EUNLOCK


def test_one_cancel_at_a_time(channel: Any, space: Lockspace) -> None:
    """E23, U3: until the first has its answer; a grant that comes first wins."""
    channel.script["lock"] = lambda args: channel.PENDING
    lksb = space.lock(Mode.EX, "x")
    lock = channel.waiting.pop(lksb.lkid)
    channel.script["cancel"] = lambda args: channel.PENDING
    assert space.cancel(lksb.lkid) is lksb
    cancel = channel.waiting.pop(lksb.lkid)
    with pytest.raises(dlm.InvalidRequest) as caught:
        space.cancel(lksb.lkid)
    assert caught.value.rule == "E23"
    lock.set_result(channel.grant({"mode": 5}))
    assert lksb.wait(0) is Status.OK
    cancel.set_result({"canceled": False})
    assert space.cancel(lksb.lkid) is lksb
    channel.script["unlock"] = lambda args: channel.PENDING
    gone = space.unlock(lksb.lkid)
    for rule, call in (
        ("E23", lambda: space.cancel(lksb.lkid)),
        ("E23", lambda: space.unlock(lksb.lkid, Flag.FORCEUNLOCK)),
        ("E22", lambda: space.unlock(lksb.lkid)),
        ("E10", lambda: space.convert(lksb.lkid, Mode.NL)),
    ):
        with pytest.raises(dlm.DLMError) as refused:
            call()
        assert refused.value.rule == rule
    channel.answer(lksb.lkid, {})
    assert gone.wait(0) is Status.EUNLOCK


def test_an_interrupted_wait_leaves_nothing_behind(
    channel: Any, space: Lockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """API-R8."""

    def interrupted(self: Lksb, timeout: float | None = None) -> Status:
        raise KeyboardInterrupt

    lkid = space.lock(Mode.PR, "x").lkid
    channel.script["lock"] = channel.script["convert"] = lambda args: channel.PENDING
    monkeypatch.setattr(Lksb, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        space.lock_wait(Mode.EX, "x")
    assert channel.verbs()[-2:] == ["lock", "unlock"]
    with pytest.raises(KeyboardInterrupt):
        space.lock_wait(Mode.EX, flags=Flag.CONVERT, lkid=lkid)
    assert channel.verbs()[-2:] == ["convert", "cancel"]


# -- losses


def test_a_lost_lock_is_told_of_in_its_place(channel: Any, space: Lockspace, lost: Seen) -> None:
    seen: Seen = []
    lksb = space.lock(Mode.EX, "x", **notes(seen))
    channel.push("blocking", h=lksb.lkid, mode=5)
    channel.push("lost", h=lksb.lkid, reason="evicted")
    assert space.dispatch() == 3
    assert seen == [(lksb, "ast")]  # the advice has become pointless
    assert lost == [(lksb.lkid, "evicted")]
    with pytest.raises(dlm.LockLost):
        space.check(lksb.lkid)
    with pytest.raises(dlm.LockLost):
        space.convert(lksb.lkid, Mode.NL)
    channel.script["unlock"] = lambda args: RequestFailed("unknown", "no such lock")
    assert space.unlock(lksb.lkid).status is Status.EUNLOCK


def test_a_lease_that_has_run_out_is_seen(channel: Any, space: Lockspace) -> None:
    lksb = space.lock(Mode.EX, "x")
    space.check(lksb.lkid)
    channel.now = channel.page[1]
    with pytest.raises(dlm.LockSuspended):
        space.check(lksb.lkid)


def test_the_end_of_the_session_ends_what_is_in_progress(channel: Any, space: Lockspace, lost: Seen) -> None:
    seen: Seen = []
    held = space.lock(Mode.EX, "x")
    up_to = space.lock(Mode.EX, "y")
    channel.script["lock"] = channel.script["convert"] = lambda args: channel.PENDING
    waits = space.lock(Mode.EX, "x", **notes(seen))
    converts = space.convert(up_to.lkid, Mode.NL)
    channel.end("connection reset")
    for lksb in (waits, converts):
        assert lksb.wait(0) is Status.ENOTCONN
        assert isinstance(lksb.error, dlm.NotConnected)
        assert lksb.mode is None
    space.dispatch()
    assert seen == [(waits, "ast")]
    assert lost == [(held.lkid, "daemon_gone"), (up_to.lkid, "daemon_gone")]
    with pytest.raises(dlm.NotConnected):
        space.lock(Mode.NL, "z")


def test_what_cannot_be_sent_is_not_accepted(channel: Any, space: Lockspace) -> None:
    """An exception means that no callback follows."""
    seen: Seen = []
    lkid = space.lock(Mode.EX, "x", **notes(seen)).lkid
    space.dispatch()
    channel.closed = True  # the channel knows, the session does not yet
    for call in (lambda: space.lock(Mode.NL, "y", **notes(seen)), lambda: space.convert(lkid, Mode.NL)):
        with pytest.raises(dlm.NotConnected):
            call()
    assert space.dispatch() == 0
    assert space.unlock(lkid).status is Status.EUNLOCK  # the end of the session frees everything
