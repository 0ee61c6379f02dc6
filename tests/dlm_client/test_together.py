"""``client.all``: several locks at one moment, over a scripted channel and over a node in this process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
import vsync
from dlm import Mode
from dlm.plugin import service
from tests.dlm_client.conftest import FakeChannel, InThread
from tests.vsync.support import ALONE
from vsync.errors import RequestFailed
from vsync.transport.memory import MemoryHub


@pytest.fixture(scope="module")
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as running:
        yield running


@pytest.fixture
def one(node: vsync.Node) -> Iterator[dlm.Client]:
    with dlm.Client(node) as client:
        yield client


@pytest.fixture
def two(node: vsync.Node) -> Iterator[dlm.Client]:
    with dlm.Client(node) as client:
        yield client


_serial = itertools.count()


@pytest.fixture
def names() -> list[bytes]:
    """Three names, not in the order of their bytes."""
    run = next(_serial)
    return [b"m%d/%s" % (run, part) for part in (b"c", b"a", b"b")]


def wait_until_queued(client: dlm.Client, name: bytes) -> None:
    """Somebody waits for the name."""
    limit = threading.Event()
    for _ in range(2000):
        info = client.show(name)
        if info is not None and info.waiters:
            return
        limit.wait(0.005)
    raise AssertionError(f"nobody waits for {name!r}")


# -- over a node ---------------------------------------------------------------------------------------------


def test_all_of_them(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    with one.all(*names, timeout=5) as held:
        assert held.names == tuple(names)  # as they were named
        assert held.fences == tuple(part.fence for part in held)
        assert len(set(held.fences)) == len(held) == 3
        assert held[0].name == names[0]
        assert held[names[1]] is held[1]
        assert [part.name for part in held[1:]] == names[1:]
        assert held.valid
        assert not held.lost
        held.check()
        for name in names:
            assert two.try_lock(name) is None
    assert held.released
    assert not held.valid
    with two.all(*reversed(names), timeout=5) as again:
        assert all(again[name].fence > held[name].fence for name in names)


def test_none_of_them(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    with two.exclusive(names[1]):
        with pytest.raises(dlm.LockTimeout) as caught, one.all(*names, timeout=0):
            raise AssertionError("a body was entered")
        assert caught.value.timeout == 0
        assert one.try_all(*names) is None
        with pytest.raises(dlm.LockTimeout, match=r"m.*a . m.*b . m.*c"):
            one.acquire_all(*names, timeout=0.05)
        for name in (names[0], names[2]):
            with two.lock(name, timeout=0):
                pass


def test_the_others_stay_free_while_it_waits(
    one: dlm.Client, two: dlm.Client, names: list[bytes], in_thread: Callable[..., InThread]
) -> None:
    with two.exclusive(names[1]):
        waiter = in_thread(lambda: one.acquire_all(*names))
        wait_until_queued(two, names[0])
        info = two.show(names[0])
        assert info is not None
        assert info.holders == ()
        assert info.waiters is not None
        assert str(info.waiters[0]).endswith(":EX(with 2 others)")
        assert info.to_json()["waiters"][0]["together"] == [name.decode() for name in sorted(names)]
    with waiter.outcome() as held:
        assert held.valid
    assert all(info is None or not info.holders for info in map(two.show, names))


def test_modes(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    a, b, c = names
    with one.all((a, Mode.PR), b, (c, Mode.CR), mode=Mode.PW) as held:
        assert [part.mode for part in held] == [Mode.PR, Mode.PW, Mode.CR]
        with two.shared(a, timeout=0):
            assert two.try_lock(b, Mode.PR) is None


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        (Mode.PR, Mode.CW, Mode.PW),
        (Mode.CW, Mode.PR, Mode.PW),
        (Mode.EX, Mode.NL, Mode.EX),
        (Mode.CR, Mode.PR, Mode.PR),
        (Mode.PW, Mode.PW, Mode.PW),
    ],
)
def test_a_name_twice_is_taken_once(
    one: dlm.Client, names: list[bytes], first: Mode, second: Mode, taken: Mode
) -> None:
    with one.all((names[0], first), names[1], (names[0], second)) as held:
        assert held.names == (names[0], names[1])
        assert held[0].mode == taken


def test_opposite_orders_do_not_block_each_other(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    counts = dict.fromkeys(names, 0)

    def work(client: dlm.Client, order: list[bytes]) -> None:
        for _ in range(50):
            with client.all(*order, timeout=30):
                for name in order:
                    counts[name] += 1

    orders = [names, names[::-1], names[:2], names[1:], names[1::-1]]
    threads = [
        threading.Thread(target=work, args=(client, order)) for client in (one, two) for order in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == {name: 100 * sum(name in order for order in orders) for name in names}


def test_values_and_single_release(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    with two.acquire(names[0], Mode.NL), two.acquire(names[1], Mode.NL), two.acquire(names[2], Mode.NL):
        held = one.acquire_all(*names)
        held[0].value = b"zero"
        held[1].value = b"one"
        held[1].release(wait=True)
        assert not held.released
        held[2].convert(Mode.NL)
        held.release(wait=True)
        assert held.released
        with pytest.raises(dlm.NotHeld):
            held.release()
        with two.all(*names, mode=Mode.PR, timeout=5) as after:
            assert [part.value for part in after] == [b"zero", b"one", b""]


def test_many_large_values_are_released_in_portions(one: dlm.Client, two: dlm.Client) -> None:
    names = [b"big/%d" % i for i in range(60)]
    one.create_space("big", value_limit=1 << 16)
    with one.space("big") as mine, two.space("big") as other, mine.all(*names, mode=Mode.NL):
        with other.all(*names) as held:
            for part in held:
                part.value = part.name * 8000
        with mine.all(*names, mode=Mode.PR, timeout=5) as seen:
            assert all(part.value == part.name * 8000 for part in seen)


def test_the_body_fails(one: dlm.Client, two: dlm.Client, names: list[bytes]) -> None:
    with pytest.raises(KeyError), one.all(*names):
        raise KeyError
    with two.all(*names, timeout=5):
        pass


def test_a_client_that_ends_leaves_nothing(
    node: vsync.Node, one: dlm.Client, two: dlm.Client, names: list[bytes], in_thread: Callable[..., InThread]
) -> None:
    third = dlm.Client(node)
    with two.exclusive(names[1]):
        waiter = in_thread(lambda: third.acquire_all(*names))
        wait_until_queued(two, names[0])
        third.close()
        with pytest.raises(dlm.DLMError):
            waiter.outcome()
        with one.all(names[0], names[2], timeout=5):
            pass


def test_too_many_and_none(one: dlm.Client) -> None:
    with pytest.raises(dlm.InvalidRequest, match=r"1\.\.128"):
        one.acquire_all(*[b"n%d" % i for i in range(129)])
    with pytest.raises(dlm.InvalidRequest, match="At least one"):
        one.all()
    with pytest.raises(TypeError):
        one.all(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        one.all("a", timeout=-1)


# -- over a script -------------------------------------------------------------------------------------------


def grant_all(channel: FakeChannel) -> Callable[[dict[str, Any]], Any]:
    """What a node answers."""

    def answer(args: dict[str, Any]) -> Any:
        rows = [channel.grant({"mode": mode}) for _, mode in args["locks"]]
        return {"locks": [{"h": args["h"] + index, **row} for index, row in enumerate(rows)]}

    return answer


def test_one_request_and_one_message_back(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = grant_all(channel)
    with locks.all("b", "a", timeout=2) as held:
        args = channel.last("lock_all")
        assert args["locks"] == [(b"a", 5), (b"b", 5)]  # sorted: the handles follow the names
        assert args["timeout_us"] == 2_000_000
        assert held[1].serial == args["h"]
        assert held[0].serial == args["h"] + 1
    assert channel.verbs()[-2:] == ["lock_all", "unlock_all"]
    assert channel.last("unlock_all") == {"locks": [{"h": held[0].serial}, {"h": held[1].serial}]}


def test_handles_follow_each_other_whoever_else_asks(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = grant_all(channel)
    serials: list[list[int]] = []

    def work() -> None:
        for _ in range(200):
            with locks.all("a", "b", "c") as held:
                serials.append([part.serial for part in held])
            with locks.lock("d"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(three == list(range(three[0], three[0] + 3)) for three in serials)
    assert len({serial for three in serials for serial in three}) == 3 * 800


def test_giving_up_withdraws_all(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = lambda args: FakeChannel.PENDING
    channel.script["cancel"] = lambda args: channel.answer(args["h"], RequestFailed("canceled", "so it is")) or {}
    with pytest.raises(dlm.LockTimeout):
        locks.acquire_all("a", "b", timeout=0.01)
    assert "unlock_all" not in channel.verbs()


def test_a_late_grant_is_given_back_as_a_whole(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = lambda args: FakeChannel.PENDING
    channel.script["cancel"] = (
        lambda args: channel.answer(args["h"], grant_all(channel)(channel.last("lock_all"))) or {}
    )
    with pytest.raises(dlm.LockTimeout):
        locks.acquire_all("a", "b", timeout=0.01)
    h = channel.last("lock_all")["h"]
    assert channel.last("unlock_all") == {"locks": [{"h": h}, {"h": h + 1}]}


def test_one_lost_is_all_lost(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = grant_all(channel)
    told: list[tuple[Any, str]] = []
    heard = threading.Event()

    def on_lost(held: dlm.HeldAll, reason: str) -> None:
        told.append((held, reason))
        heard.set()

    with pytest.raises(dlm.LockLost) as caught, locks.all("a", "b", on_lost=on_lost) as held:
        channel.push("lost", h=held[1].serial, reason="evicted")
        assert held.lost.wait(20)
        assert held.lost.reason == "evicted"
        assert heard.wait(20)
        assert not held.valid
        assert held[0].valid
        with pytest.raises(dlm.LockLost):
            held.check()
    assert caught.value.name == b"b"
    assert told == [(held, "evicted")]
    assert channel.last("unlock_all") == {"locks": [{"h": part.serial} for part in held]}


def test_loss_is_a_note_on_the_bodys_own_exception(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = grant_all(channel)
    with pytest.raises(KeyError) as caught, locks.all("a", "b") as held:
        channel.push("lost", h=held[0].serial, reason="evicted")
        raise KeyError("mine")
    assert "meanwhile" in caught.value.__notes__[0]


def test_waiting_for_a_loss_ends_with_the_release(
    channel: FakeChannel, locks: dlm.Client, in_thread: Callable[..., InThread]
) -> None:
    channel.script["lock_all"] = grant_all(channel)
    held = locks.acquire_all("a", "b")
    assert not held.lost.wait(0.01)
    waiter = in_thread(lambda: held.lost.wait(20))
    held.release()
    assert waiter.outcome() is False


def test_what_it_is_called(channel: FakeChannel, locks: dlm.Client) -> None:
    channel.script["lock_all"] = grant_all(channel)
    asked = locks.all("a", ("b", Mode.PR), timeout=3)
    assert repr(asked) == "<dlm.LockAll 'a' EX, 'b' PR timeout=3>"
    with asked as held:
        assert repr(held).startswith("<HeldAll <Held 'a' EX fence=")
        with asked as twice:
            assert twice is not held
        assert twice.released
        assert not held.released
