"""``dlm.Lockspace`` over a node in this process: what each operation comes to, by rule."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
import vsync
from dlm import Flag, Lksb, Lockspace, Mode, Outcome, Status
from dlm.plugin import service
from tests.dlm_client.apart import Apart
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

WAIT_S = 20
OK, EUNLOCK, ECANCEL = Status.OK, Status.EUNLOCK, Status.ECANCEL


class Log:
    """Callbacks, in the order of their calls, and a way to wait for them."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self._more = threading.Condition()

    def _note(self, *what: Any) -> None:
        with self._more:
            self.seen.append(what)
            self._more.notify_all()

    def ast(self, who: str) -> Callable[[Lksb], None]:
        return lambda lksb: self._note(who, lksb.status, lksb.mode)

    def bast(self, who: str) -> Callable[[Any, Mode], None]:
        return lambda arg, mode: self._note(who, "bast", mode)

    def both(self, who: str) -> dict[str, Any]:
        return {"ast": self.ast(who), "bast": self.bast(who)}

    def wait(self, *expected: tuple[Any, ...]) -> None:
        with self._more:
            self._more.wait_for(lambda: len(self.seen) >= len(expected), timeout=WAIT_S)
            assert self.seen == list(expected)


@pytest.fixture(scope="module")
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as running:
        yield running


@pytest.fixture
def space(node: vsync.Node) -> Iterator[Lockspace]:
    with Apart(node) as space:
        yield space


@pytest.fixture
def other(node: vsync.Node) -> Iterator[Lockspace]:
    with Apart(node) as space:
        yield space


@pytest.fixture
def log() -> Log:
    return Log()


_serial = itertools.count()


@pytest.fixture
def name() -> bytes:
    return b"low%d" % next(_serial)


def granted(space: Lockspace, mode: Mode, name: bytes, flags: int = 0, **more: Any) -> Lksb:
    lksb = space.lock(mode, name, flags, **more)
    assert lksb.wait(WAIT_S) is OK, lksb
    return lksb


def free(space: Lockspace, name: bytes) -> bool:
    info = space.query(name)
    return info is None or not (info.holders or info.converting or info.waiters)


def queued(space: Lockspace, lksb: Lksb) -> Lksb:
    """Wait until the lock is seen in a queue."""

    def there() -> bool:
        info = space.query(lksb.name)
        queue = () if info is None else (info.converting or ()) + (info.waiters or ())
        return any(one.handle == lksb.lkid for one in queue)

    deadline = threading.Event()
    for _ in range(2000):
        if there():
            return lksb
        deadline.wait(0.005)
    raise AssertionError(f"{lksb} does not wait: {space.query(lksb.name)}")


# -- the life of a lock


def test_lock_convert_unlock_each_with_a_block_of_its_own(space: Lockspace, name: bytes) -> None:
    lksb = space.lock(Mode.PR, name)
    assert lksb.wait(WAIT_S) is OK
    assert (lksb.lkid > 0, lksb.name, lksb.mode, lksb.flags, lksb.error) == (True, name, Mode.PR, 0, None)
    up = space.convert(lksb.lkid, Mode.EX)
    assert up.wait(WAIT_S) is OK
    assert (up.lkid, up.mode) == (lksb.lkid, Mode.EX)
    assert up.fence > lksb.fence > 0
    assert lksb.mode is Mode.PR  # a block tells of its own operation
    space.check(lksb.lkid)
    gone = space.unlock(lksb.lkid)
    assert gone.wait(WAIT_S) is EUNLOCK
    assert (gone.mode, gone.done) == (None, True)
    assert free(space, name)


def test_lock_with_convert_is_a_conversion(space: Lockspace, name: bytes) -> None:
    lksb = granted(space, Mode.NL, name)
    assert space.lock_wait(Mode.CW, flags=Flag.CONVERT, lkid=lksb.lkid).status is OK
    info = space.query(lksb.lkid)
    assert info is not None
    assert info.mode is Mode.CW


def test_two_lockspaces_and_a_client_over_one_session(node: vsync.Node, name: bytes) -> None:
    with dlm.Client(node) as client, Lockspace(client) as space, Lockspace(client, "other") as elsewhere:
        assert (space.name, elsewhere.name, Lockspace(client.space("other")).name) == ("default", "other", "other")
        lksb = space.lock_wait(Mode.EX, name)
        assert elsewhere.lock_wait(Mode.EX, name, Flag.NOQUEUE).status is OK
        assert client.try_lock(name) is None
        with pytest.raises(dlm.NotHeld):
            elsewhere.unlock(lksb.lkid)
        space.close()
        held = client.acquire(name, timeout=WAIT_S)  # close has given it back
        held.release()
        assert elsewhere.lock_wait(Mode.NL, name).status is OK


def test_lockspaces_are_made_opened_and_released(node: vsync.Node, name: bytes) -> None:
    with pytest.raises(dlm.NoSuchSpace) as caught:
        Lockspace(node, "nowhere", create=False)
    assert caught.value.rule == "E11"
    with pytest.raises(dlm.InvalidRequest):
        Lockspace(node, "x" * 65)
    lost: list[tuple[int, str]] = []
    with (
        Lockspace(node, "mine") as space,
        Lockspace(node, "mine", create=False, poll=True, on_lost=lambda *what: lost.append(what)) as again,
    ):
        lksb = granted(space, Mode.EX, name)
        held = granted(again, Mode.EX, name + b"!")
        with pytest.raises(dlm.SpaceBusy):
            space.release()
        assert space.unlock_wait(lksb.lkid).status is EUNLOCK
        space.release(force=2)
        with pytest.raises(dlm.NoSuchSpace):
            again.query(name)  # and what was pushed before this answer is here as well
        with pytest.raises(dlm.LockLost):
            again.check(held.lkid)
        again.dispatch()
        assert lost == [(held.lkid, "released")]
        refused = again.lock_wait(Mode.NL, name)
        assert refused.status is Status.EINVAL
        assert isinstance(refused.error, dlm.NoSuchSpace)


def test_a_closed_lockspace_takes_no_operation(node: vsync.Node, name: bytes) -> None:
    """E11."""
    space = Lockspace(node)
    lksb = granted(space, Mode.PR, name)
    space.close()
    for call in (lambda: space.lock(Mode.NL, name), lambda: space.unlock(lksb.lkid)):
        with pytest.raises(dlm.InvalidRequest) as caught:
            call()
        assert caught.value.rule == "E11"


# -- argument errors: raised at once, and nothing follows


@pytest.mark.parametrize(
    ("rule", "mode", "flags", "more"),
    [
        ("E1", 6, 0, {}),
        ("E1", -1, 0, {}),
        ("E2", Mode.NL, 0, {"name": b"x" * 65}),
        ("E3", Mode.NL, Flag.CANCEL, {}),
        ("E4", Mode.EX, Flag.QUECVT, {}),
        ("E4", Mode.EX, Flag.CONVDEADLK, {}),
        ("E5", Mode.NL, Flag.EXPEDITE | Flag.NOQUEUE, {}),
        ("E5", Mode.CR, Flag.EXPEDITE, {}),
        ("E8", Mode.EX, Flag.CONVERT, {"lkid": 0}),
        ("E13", Mode.NL, 0, {"parent": 1}),
        ("E13", Mode.NL, 0, {"range": (5, 1)}),
    ],
)
def test_a_wrong_lock_is_refused_at_once(
    space: Lockspace, log: Log, name: bytes, rule: str, mode: int, flags: int, more: dict[str, Any]
) -> None:
    with pytest.raises(dlm.InvalidRequest) as caught:
        space.lock(mode, more.pop("name", name), flags, ast=log.ast("a"), **more)
    assert caught.value.rule == rule
    assert isinstance(caught.value, dlm.NotSupported) == (rule == "E13")
    assert free(space, name)
    granted(space, Mode.NL, name, ast=log.ast("b"))
    log.wait(("b", OK, Mode.NL))


def test_forceunlock_in_lock_is_ignored(space: Lockspace, name: bytes) -> None:
    """E3."""
    granted(space, Mode.EX, name, Flag.FORCEUNLOCK)


@pytest.mark.parametrize(
    ("rule", "mode", "flags", "more"),
    [
        ("E1", 7, 0, {}),
        ("E3", Mode.EX, Flag.CANCEL, {}),
        ("E4", Mode.EX, Flag.CONVDEADLK | Flag.NOQUEUE, {}),
        ("E5", Mode.NL, Flag.EXPEDITE, {}),
        ("E9", Mode.CR, Flag.QUECVT, {}),
        ("E9", Mode.PW, Flag.QUECVT, {}),
        ("E7", Mode.CR, Flag.VALBLK, {}),
        ("E13", Mode.EX, 0, {"range": (0, 1)}),
    ],
)
def test_a_wrong_conversion_is_refused_at_once(
    space: Lockspace, name: bytes, rule: str, mode: int, flags: int, more: dict[str, Any]
) -> None:
    lkid = granted(space, Mode.PW, name).lkid
    with pytest.raises(dlm.InvalidRequest) as caught:
        space.convert(lkid, mode, flags, **more)
    assert caught.value.rule == rule
    assert space.convert(lkid, Mode.EX).wait(WAIT_S) is OK  # it is idle


def test_unknown_locks(space: Lockspace) -> None:
    """E8, E21."""
    for rule, call in (
        ("E8", lambda: space.convert(999, Mode.EX)),
        ("E21", lambda: space.unlock(999)),
        ("E21", lambda: space.cancel(999)),
        ("E21", lambda: space.query(999)),
        ("E21", lambda: space.check(999)),
    ):
        with pytest.raises(dlm.NotHeld) as caught:
            call()
        assert caught.value.rule == rule


def test_finished_locks_are_unknown(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """E21: after an unlock, a cancelled request, a failed NOQUEUE."""
    held = granted(space, Mode.EX, name)
    refused = other.lock_wait(Mode.EX, name, Flag.NOQUEUE)
    assert refused.status is Status.EAGAIN
    assert isinstance(refused.error, dlm.LockTimeout)
    waits = queued(other, other.lock(Mode.EX, name))
    assert other.unlock_wait(waits.lkid, Flag.CANCEL).status is ECANCEL
    assert space.unlock_wait(held.lkid).status is EUNLOCK
    for where, lksb in ((space, held), (other, refused), (other, waits)):
        with pytest.raises(dlm.NotHeld) as caught:
            where.unlock(lksb.lkid)
        assert caught.value.rule == "E21"


def test_one_operation_at_a_time(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """E10: while it waits, while it converts."""
    first, second = granted(space, Mode.PR, name), granted(other, Mode.PR, name)
    converts = queued(space, space.convert(first.lkid, Mode.EX))
    waits = queued(other, other.lock(Mode.EX, name))
    for where, lksb in ((space, converts), (other, waits)):
        with pytest.raises(dlm.LockBusy) as caught:
            where.convert(lksb.lkid, Mode.PR)
        assert caught.value.rule == "E10"
    assert other.unlock(second.lkid).wait(WAIT_S) is EUNLOCK
    assert converts.wait(WAIT_S) is OK


def test_two_threads_cannot_mix_up_one_lock(space: Lockspace, name: bytes) -> None:
    """S38: of many conversions at once some are busy (E10), each that is accepted has one outcome, its own."""
    lkid = granted(space, Mode.NL, name).lkid
    accepted: list[tuple[Mode, Lksb]] = []
    start = threading.Barrier(4)

    def run(mode: Mode) -> None:
        start.wait(WAIT_S)
        for _ in range(50):
            try:
                lksb = space.convert(lkid, mode)
            except dlm.LockBusy:
                continue
            accepted.append((mode, lksb))

    threads = [threading.Thread(target=run, args=(mode,)) for mode in (Mode.CR, Mode.PR, Mode.CW, Mode.EX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert accepted
    assert {lksb.wait(WAIT_S) for _, lksb in accepted} == {OK}
    assert all(lksb.mode is mode for mode, lksb in accepted)


@pytest.mark.parametrize("flags", [Flag.NOQUEUE, Flag.CONVERT, Flag.CANCEL | Flag.FORCEUNLOCK, 1 << 30])
def test_a_wrong_unlock_is_refused_at_once(space: Lockspace, name: bytes, flags: int) -> None:
    """E20."""
    lksb = granted(space, Mode.EX, name)
    with pytest.raises(dlm.InvalidRequest) as caught:
        space.unlock(lksb.lkid, flags)
    assert caught.value.rule == "E20"
    space.check(lksb.lkid)


# -- cancel and unlock


def test_cancel_of_an_idle_lock_does_nothing(space: Lockspace, log: Log, name: bytes) -> None:
    """E24."""
    lksb = granted(space, Mode.EX, name, **log.both("a"))
    assert space.cancel(lksb.lkid) is lksb
    assert space.unlock(lksb.lkid, Flag.CANCEL) is lksb
    assert space.unlock_wait(lksb.lkid).status is EUNLOCK
    log.wait(("a", OK, Mode.EX), ("a", EUNLOCK, None))


def test_a_cancelled_request_is_gone(space: Lockspace, other: Lockspace, log: Log, name: bytes) -> None:
    """U1, U6, U7: one callback, of the request, and the next in the queue moves up."""
    granted(space, Mode.PR, name)
    waits = queued(other, other.lock(Mode.EX, name, ast=log.ast("w")))
    reader = queued(space, space.lock(Mode.PR, name))
    assert other.cancel(waits.lkid) is waits
    assert waits.wait(WAIT_S) is ECANCEL
    assert isinstance(waits.error, dlm.LockCancelled)
    assert reader.wait(WAIT_S) is OK
    log.wait(("w", ECANCEL, None))


def test_a_cancelled_conversion_keeps_the_old_mode(
    space: Lockspace, other: Lockspace, log: Log, name: bytes
) -> None:
    """U2, U6, L8."""
    lksb = granted(space, Mode.CR, name, ast=log.ast("a"))
    granted(other, Mode.CR, name)
    up = queued(space, space.convert(lksb.lkid, Mode.EX, Flag.VALBLK, value=b"mine"))
    assert up.mode is Mode.CR
    reader = queued(other, other.lock(Mode.CR, name))
    assert space.unlock_wait(lksb.lkid, Flag.CANCEL) is up
    assert (up.status, up.mode, up.value) == (ECANCEL, Mode.CR, b"mine")
    assert reader.wait(WAIT_S) is OK
    space.check(lksb.lkid)
    log.wait(("a", OK, Mode.CR), ("a", ECANCEL, Mode.CR))


def test_unlock_of_a_waiting_lock_is_one_callback(
    space: Lockspace, other: Lockspace, log: Log, name: bytes
) -> None:
    """E22, S72: it is told, once; whoever waits for the request learns it too."""
    granted(space, Mode.EX, name)
    waits = queued(other, other.lock(Mode.EX, name, ast=log.ast("w")))
    assert other.unlock_wait(waits.lkid).status is EUNLOCK
    assert waits.wait(WAIT_S) is EUNLOCK
    log.wait(("w", EUNLOCK, None))
    info = space.query(name)
    assert info is not None
    assert info.waiters == ()


@pytest.mark.parametrize("flags", [0, Flag.FORCEUNLOCK])
def test_unlock_in_any_state(space: Lockspace, other: Lockspace, name: bytes, flags: int) -> None:
    """U5: granted, converting, waiting."""
    first, second = granted(space, Mode.PR, name), granted(other, Mode.PR, name)
    converts = queued(space, space.convert(first.lkid, Mode.EX))
    waits = queued(space, space.lock(Mode.EX, name))
    for where, lksb in ((space, waits), (space, converts), (other, second)):
        assert where.unlock(lksb.lkid, flags).wait(WAIT_S) is EUNLOCK
    assert converts.wait(WAIT_S) is EUNLOCK
    assert free(space, name)


@pytest.mark.parametrize("first", ["cancel", "unlock", "force"])
@pytest.mark.parametrize("second", ["cancel", "unlock", "force"])
@pytest.mark.parametrize("state", ["fresh", "waits", "converts"])
def test_what_overlaps_ends_once(
    space: Lockspace, other: Lockspace, log: Log, name: bytes, first: str, second: str, state: str
) -> None:
    """S7, S9, U3, U7, E22, E23: cancel and unlock while a request or conversion is in progress."""
    calls = {
        "cancel": lambda lkid: space.cancel(lkid),
        "unlock": lambda lkid: space.unlock(lkid),
        "force": lambda lkid: space.unlock(lkid, Flag.FORCEUNLOCK),
    }
    blocker = granted(other, Mode.PR, name)
    if state == "converts":
        idle = granted(space, Mode.PR, name, ast=log.ast("a"))
        operation = queued(space, space.convert(idle.lkid, Mode.EX))
    else:
        operation = space.lock(Mode.EX if state == "waits" else Mode.PR, name, ast=log.ast("a"))
        if state == "waits":
            queued(space, operation)
    blocks = [operation, calls[first](operation.lkid)]
    refused = ""
    try:
        blocks.append(calls[second](operation.lkid))
    except dlm.DLMError as error:
        refused = error.rule
    assert refused in {"", "E21", "E22" if second == "unlock" else "E23"}  # E21: the first was over already
    assert not refused or first != "cancel" or second == "cancel" or refused == "E21"
    results = [block.wait(WAIT_S) for block in blocks]
    assert Status.EINPROGRESS not in results
    assert results[0] in {OK, ECANCEL, EUNLOCK}
    if "cancel" not in (first, second) or EUNLOCK in results:
        info = space.query(name)
        assert info is not None
        assert [holder.handle for holder in info.holders or ()] == [blocker.lkid]
    # A callback for each accepted operation, but one for an unlock and what it cut short.
    unique = {id(block): block for block in blocks}.values()
    expected = [block.status for block in unique if block is not operation or block.status is not EUNLOCK]
    space.lock_wait(Mode.NL, name + b"!", ast=log.ast("end"))
    told = ([OK] if state == "converts" else []) + expected + [OK]
    with log._more:
        log._more.wait_for(lambda: len(log.seen) >= len(told), timeout=WAIT_S)
    assert [status for _, status, _ in log.seen] == told


def test_the_id_may_be_used_at_once(space: Lockspace, log: Log, name: bytes) -> None:
    """S8: in the first callback, before ``lock`` has returned to its caller."""
    blocks: list[Lksb] = []

    def first(lksb: Lksb) -> None:
        if lksb.status is OK:
            blocks.append(space.unlock(lksb.lkid))

    for _ in range(50):
        space.lock(Mode.EX, name, ast=first)
    deadline = threading.Event()
    for _ in range(2000):
        if len(blocks) == 50 and all(block.done for block in blocks):
            break
        deadline.wait(0.005)
    assert [block.status for block in blocks] == [EUNLOCK] * 50


def test_an_id_is_never_used_again(space: Lockspace, name: bytes) -> None:
    """S71: a second unlock cannot free somebody else's lock."""
    first = granted(space, Mode.EX, name)
    space.unlock_wait(first.lkid)
    second = granted(space, Mode.EX, name)
    assert second.lkid != first.lkid
    with pytest.raises(dlm.NotHeld):
        space.unlock(first.lkid)
    space.check(second.lkid)


def test_deadlock_cancel(space: Lockspace, other: Lockspace, name: bytes) -> None:
    granted(other, Mode.EX, name)
    waits = queued(space, space.lock(Mode.EX, name))
    assert space.deadlock_cancel(waits.lkid) is waits
    assert waits.wait(WAIT_S) is Status.EDEADLK


# -- waiters


def test_every_waiter_has_a_future_of_its_own(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """§1.7, last lines: nobody can take the completion from those who wait for it."""
    granted(other, Mode.EX, name)
    waiting = [space.lock(Mode.EX, name)]
    caller = threading.Thread(target=lambda: waiting.append(space.lock_wait(Mode.PR, name)))
    caller.start()
    lksb = queued(space, waiting[0])
    mine, yours = lksb.future, lksb.future
    assert mine is not yours
    assert not mine.cancel()
    info = space.query(name)
    while info is not None and len(info.waiters or ()) < 2:
        info = space.query(name)
    assert info is not None
    second = [one.handle for one in info.waiters or ()][1]
    canceled = space.unlock_wait(second, Flag.CANCEL)
    caller.join(WAIT_S)
    assert waiting[1] is canceled
    assert canceled.status is ECANCEL
    space.cancel(lksb.lkid)
    assert mine.result(WAIT_S) is yours.result(WAIT_S) is lksb.future.result(WAIT_S) is ECANCEL


def test_wait_gives_up_but_the_operation_does_not(space: Lockspace, other: Lockspace, name: bytes) -> None:
    held = granted(other, Mode.EX, name)
    lksb = space.lock(Mode.PR, name)
    assert lksb.wait(0.01) is Status.EINPROGRESS
    assert lksb.status is Status.EINPROGRESS
    other.unlock(held.lkid)
    assert lksb.wait(WAIT_S) is OK


# -- value block


def test_value_blocks_through_the_status_block(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """L2, L3, L5, S17, S20, S22, S24: GOLD-G31, as far as one node goes."""
    granted(space, Mode.NL, name)
    a = granted(space, Mode.EX, name, Flag.VALBLK).lkid
    assert space.convert(a, Mode.NL, Flag.VALBLK, value=b"v1").wait(WAIT_S) is OK
    b = granted(other, Mode.PR, name, Flag.VALBLK)
    assert b.value == b"v1"
    up = space.convert(a, Mode.EX, Flag.VALBLK)  # S24: NL to EX reads
    assert up.wait(0.01) is Status.EINPROGRESS
    assert other.unlock(b.lkid).wait(WAIT_S) is EUNLOCK
    assert up.wait(WAIT_S) is OK
    assert up.value == b"v1"
    assert space.unlock(a, Flag.IVVALBLK, b"ignored").wait(WAIT_S) is EUNLOCK
    b2 = granted(other, Mode.CR, name, Flag.VALBLK)
    assert (b2.value, b2.flags) == (b"v1", Outcome.VALNOTVALID)
    c = granted(space, Mode.PW, name, Flag.VALBLK)
    assert (c.value, c.flags) == (b"v1", Outcome.VALNOTVALID)
    down = space.convert(c.lkid, Mode.PR, Flag.VALBLK, value=b"v2")
    assert (down.wait(WAIT_S), down.flags, down.value) == (OK, 0, b"v2")
    d = granted(other, Mode.CR, name, Flag.VALBLK)
    assert (d.value, d.flags) == (b"v2", 0)


def test_the_callers_buffer_is_left_alone(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """L8, S22: without VALBLK, where nothing is read, and where the operation fails."""
    k = granted(space, Mode.EX, name)
    assert space.convert(k.lkid, Mode.CR, Flag.VALBLK, value=b"theirs").wait(WAIT_S) is OK
    plain = granted(other, Mode.CR, name, value=b"mine")
    assert plain.value == b"mine"
    assert other.convert(plain.lkid, Mode.NL, Flag.VALBLK).wait(WAIT_S) is OK
    down = other.convert(plain.lkid, Mode.NL)
    assert (down.wait(WAIT_S), down.value) == (OK, b"mine")  # carried from block to block
    refused = other.convert(plain.lkid, Mode.EX, Flag.VALBLK | Flag.NOQUEUE)
    assert (refused.wait(WAIT_S), refused.value, refused.mode) == (Status.EAGAIN, b"mine", Mode.NL)
    read = other.convert(plain.lkid, Mode.CR, Flag.VALBLK)
    assert (read.wait(WAIT_S), read.value) == (OK, b"theirs")
    lower = other.unlock(plain.lkid, Flag.VALBLK, b"nothing")  # L3: from CR, silently ignored
    assert lower.wait(WAIT_S) is EUNLOCK
    assert granted(other, Mode.NL, name, Flag.VALBLK).value == b"theirs"


def test_unlock_writes_only_with_valblk(space: Lockspace, name: bytes) -> None:
    """L3, L7b, E7."""
    granted(space, Mode.NL, name)
    writer = granted(space, Mode.PW, name, Flag.VALBLK)
    assert space.unlock(writer.lkid, value=b"not meant").wait(WAIT_S) is EUNLOCK
    writer = granted(space, Mode.PW, name, Flag.VALBLK)
    assert writer.value == b""
    with pytest.raises(dlm.InvalidRequest) as caught:
        space.unlock(writer.lkid, Flag.VALBLK)
    assert caught.value.rule == "E7"
    assert space.unlock(writer.lkid, Flag.VALBLK, b"meant").wait(WAIT_S) is EUNLOCK
    assert granted(space, Mode.CR, name, Flag.VALBLK).value == b"meant"


# -- outcomes


def test_flags_belong_to_one_operation(space: Lockspace, other: Lockspace, name: bytes) -> None:
    """S30, S31, G7, G17: ALTMODE and DEMOTED are of the block of their operation only."""
    granted(space, Mode.PR, name)
    alt = granted(other, Mode.EX, name, Flag.ALTPR)
    assert (alt.mode, alt.flags) == (Mode.PR, Outcome.ALTMODE)
    again = other.convert(alt.lkid, Mode.PR)
    assert (again.wait(WAIT_S), again.flags) == (OK, 0)
    assert alt.flags == Outcome.ALTMODE


def test_conversion_deadlock_and_demotion(space: Lockspace, other: Lockspace, log: Log, name: bytes) -> None:
    """GOLD-G5, GOLD-G7, D8."""
    a, b = granted(space, Mode.PR, name), granted(other, Mode.PR, name)
    up = queued(space, space.convert(a.lkid, Mode.EX))
    dead = other.convert(b.lkid, Mode.EX)
    assert (dead.wait(WAIT_S), dead.mode) == (Status.EDEADLK, Mode.PR)
    assert isinstance(dead.error, dlm.Deadlock)
    demoted = other.convert(b.lkid, Mode.EX, Flag.CONVDEADLK)
    assert up.wait(WAIT_S) is OK
    assert demoted.mode is Mode.NL
    space.unlock(a.lkid)
    assert (demoted.wait(WAIT_S), demoted.mode, demoted.flags) == (OK, Mode.EX, Outcome.DEMOTED)


def test_time_outs(space: Lockspace, other: Lockspace, log: Log, name: bytes) -> None:
    """ETIMEDOUT, once; a conversion keeps its mode, and who waits behind moves up."""
    first = granted(space, Mode.PR, name)
    granted(space, Mode.CR, name)
    late = other.lock(Mode.EX, name, timeout=0.05, ast=log.ast("l"))
    assert late.wait(WAIT_S) is Status.ETIMEDOUT
    assert isinstance(late.error, dlm.LockTimeout)
    up = space.convert(first.lkid, Mode.EX, timeout=0.05)
    behind = other.lock(Mode.CR, name)
    assert (up.wait(WAIT_S), up.mode) == (Status.ETIMEDOUT, Mode.PR)
    assert behind.wait(WAIT_S) is OK
    assert other.lock_wait(Mode.EX, name, timeout=0).status is Status.EAGAIN
    log.wait(("l", Status.ETIMEDOUT, None))


def test_orphans_are_adopted(node: vsync.Node, space: Lockspace, name: bytes) -> None:
    """P1, P3, P4."""
    with Apart(node) as gone:
        before = granted(gone, Mode.EX, name, Flag.PERSISTENT)
    assert space.lock_wait(Mode.PR, name, Flag.ORPHAN).status is Status.EAGAIN
    assert space.lock_wait(Mode.PR, name + b"?", Flag.ORPHAN).status is Status.ENOENT
    held = granted(space, Mode.EX, name, Flag.ORPHAN | Flag.PERSISTENT)
    assert held.fence > before.fence
    assert space.unlock_wait(held.lkid).status is EUNLOCK
    with Apart(node) as gone:
        granted(gone, Mode.EX, name, Flag.PERSISTENT)
    assert space.purge() == 1


def test_query_tells_who_blocks_whom(space: Lockspace, other: Lockspace, name: bytes) -> None:
    holder = granted(space, Mode.PR, name)
    first = queued(other, other.lock(Mode.EX, name))
    second = queued(space, space.lock(Mode.PR, name))
    info = space.query(second.lkid)
    assert info is not None
    assert [one.handle for one in info.holders or ()] == [holder.lkid]
    assert [one.asked for one in info.waiters or ()] == [Mode.EX, Mode.PR]
    assert [one.handle for one in other.blockers(first.lkid)] == [holder.lkid]
    assert [one.asked for one in space.blockers(second.lkid)] == [Mode.EX]  # a reader waits behind the writer
    assert space.blockers(holder.lkid) == ()
    other.unlock(first.lkid)
    assert second.wait(WAIT_S) is OK
