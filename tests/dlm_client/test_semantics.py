"""Flags, value blocks and callbacks through the client, over a node in this process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

import dlm
import vsync
from dlm import Flag, Mode, Outcome
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

#: §1.9; rows: from, columns: to. R resource -> caller, W caller -> resource.
DIRECTIONS = {
    "NL": "RRRRRR",
    "CR": ".RRRRR",
    "CW": "..RRRR",
    "PR": "...RRR",
    "PW": "WWWWWR",
    "EX": "WWWWWW",
}
CELLS = [(Mode[old], new, row[new]) for old, row in DIRECTIONS.items() for new in Mode]
Names = Callable[[], bytes]


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
def name() -> bytes:
    return b"r%d" % next(_serial)


def block(client: dlm.Client, name: bytes) -> tuple[bytes, bool]:
    """What a new lock reads: the value block and whether it is valid."""
    with client.acquire(name, Mode.NL, flags=Flag.EXPEDITE) as held:
        return held.value, held.value_valid


@pytest.mark.parametrize(("old", "new", "direction"), CELLS, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("what", ["plain", "value", "invalidate"])
def test_every_conversion_and_the_value_block(
    one: dlm.Client, two: dlm.Client, name: bytes, old: Mode, new: Mode, direction: str, what: str
) -> None:
    """L1, L2, L5, L8, L9: 36 conversions, each without, with VALBLK and with IVVALBLK."""
    with two.acquire(name, Mode.NL):  # keeps the block (L10)
        with two.exclusive(name) as writer:
            writer.value = b"seed"
        with one.acquire(name, old) as held:
            assert held.value == b"seed"
            held._value = b"caller's"  # L8: only an R may touch it
            if what == "plain":
                held.convert(new)
                assert held.value == (b"seed" if direction == "R" else b"caller's")
                assert block(two, name) == (b"seed", True)
            elif direction != "W":
                with pytest.raises(dlm.InvalidRequest) as caught:
                    held.convert(new, value=b"new", invalidate=what == "invalidate")
                assert caught.value.rule == "L2"
                assert held.mode is old
            elif what == "value":
                held.convert(new, value=b"new")
                assert block(two, name) == (b"new", True)
            else:
                held.convert(new, invalidate=True)
                assert block(two, name) == (b"seed", False)


def test_l3_release_may_invalidate_and_l6_only_a_write_makes_valid_again(
    one: dlm.Client, two: dlm.Client, name: bytes
) -> None:
    with two.acquire(name, Mode.NL):
        one.acquire(name).release(invalidate=True, wait=True)
        with one.acquire(name, Mode.CR) as reader:
            assert reader.outcome == Outcome.VALNOTVALID
        one.acquire(name, Mode.PR).release(invalidate=True, wait=True)
        assert block(two, name) == (b"", False)
        with one.exclusive(name) as writer:
            writer.value = b"again"
        assert block(two, name) == (b"again", True)


def test_on_blocking_is_told_of_the_mode_on_a_thread_of_its_own(
    one: dlm.Client, two: dlm.Client, name: bytes
) -> None:
    told: list[tuple[Mode, str]] = []

    def make_room(held: dlm.Held, mode: Mode) -> None:
        told.append((mode, threading.current_thread().name))
        held.release()

    one.acquire(name, Mode.PR, on_blocking=make_room)
    with two.acquire(name, Mode.PW, timeout=20) as held:
        assert held.valid
    assert told == [(Mode.PW, "dlm-on-lost")]


def test_nobody_is_told_who_has_made_room_or_gone(one: dlm.Client, two: dlm.Client, name: bytes) -> None:
    """B6, B10 at the client."""
    held = one.acquire(name, Mode.PR)
    held.blocking = Mode.PR
    assert held.take_blocking() is None
    held.blocking = Mode.EX
    assert held.take_blocking() is Mode.EX
    assert held.take_blocking() is None
    held.blocking = Mode.EX
    held.release()
    assert held.take_blocking() is None


def test_altpr_gives_the_other_mode_and_says_so(one: dlm.Client, two: dlm.Client, name: bytes) -> None:
    with one.acquire(name, Mode.PR), two.acquire(name, Mode.EX, flags=Flag.ALTPR) as held:
        assert (held.mode, held.outcome) == (Mode.PR, Outcome.ALTMODE)
        held.convert(Mode.PR)
        assert held.outcome == 0


def test_convdeadlk_instead_of_deadlock(one: dlm.Client, two: dlm.Client, name: bytes) -> None:
    first, second = one.acquire(name, Mode.PR), two.acquire(name, Mode.PR)
    up = threading.Thread(target=lambda: first.convert(Mode.EX))
    up.start()
    while not (one.show(name) or pytest.fail("unknown")).converting:
        pass
    with pytest.raises(dlm.Deadlock):
        second.convert(Mode.EX)
    assert second.mode is Mode.PR
    with pytest.raises(dlm.LockTimeout):
        second.convert(Mode.EX, timeout=0.05, flags=Flag.CONVDEADLK)
    up.join(20)
    assert second.mode is Mode.NL  # it was given up, and the conversion withdrawn
    assert first.mode is Mode.EX
    first.release()
    second.release()


@pytest.mark.parametrize(
    ("rule", "flags", "mode"),
    [("E4", Flag.QUECVT, Mode.EX), ("E4", Flag.CONVDEADLK, Mode.EX), ("E5", Flag.EXPEDITE, Mode.CR)],
)
def test_argument_errors_name_their_rule(
    one: dlm.Client, name: bytes, rule: str, flags: Flag, mode: Mode
) -> None:
    with pytest.raises(dlm.InvalidRequest) as caught:
        one.acquire(name, mode, flags=flags)
    assert caught.value.rule == rule
    assert one.show(name) is None


def test_an_orphan_is_shown_adopted_and_purged(node: vsync.Node, one: dlm.Client, name: bytes) -> None:
    with dlm.Client(node) as gone:
        fence = gone.acquire(name, flags=Flag.PERSISTENT).fence
    holders = one.holders(name)
    assert holders is not None
    assert [str(holder).endswith("(orphan)") for holder in holders] == [True]
    with pytest.raises(dlm.LockTimeout):
        one.acquire(name, Mode.PR, flags=Flag.ORPHAN)
    held = one.acquire(name, Mode.EX, flags=Flag.ORPHAN | Flag.PERSISTENT)
    assert held.fence > fence
    held.release(wait=True)
    with dlm.Client(node) as gone:
        gone.acquire(name, flags=Flag.PERSISTENT)
    assert one.purge() == 1
    assert one.try_lock(name) is not None
