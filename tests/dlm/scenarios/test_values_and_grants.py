"""Value blocks, grants and callbacks (docs/lock-history.md, S17 to S38)."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.messages import key_of
from dlm.modes import ALTMODE, CR, CW, DEMOTED, EX, NL, PR, PW, VALNOTVALID
from tests.dlm.bus import LEASE, Bus

R = key_of("default", b"R")


def value(bus: Bus, rid: int) -> tuple[bytes, bool, bool]:
    """(what was read, whether anything was, whether it is valid)"""
    answer: dict[str, Any] = bus.result(rid)
    return answer["value"], answer["value_read"], answer["value_valid"]


def keeper(bus: Bus, *nodes: int) -> dict[int, int]:
    """NL locks, which keep the value block and make the name Shared if there are several."""
    handles = {}
    for node in nodes:
        _, handles[node] = bus.lock(node, mode=NL)
        bus.run()
    return handles


def read(bus: Bus, node: int, mode: int = NL) -> tuple[bytes, bool, bool]:
    """What a new lock of this node reads; it is released again."""
    rid, h = bus.lock(node, mode=mode, valblk=True, expedite=mode == NL)
    bus.run()
    bus.advance(2 * LEASE)
    found = value(bus, rid)
    bus.call(node, "unlock", h=h)
    bus.run()
    return found


def write(bus: Bus, node: int, data: bytes) -> None:
    """EX, and a release that writes."""
    _, h = bus.lock(node)
    bus.run()
    bus.call(node, "unlock", h=h, valblk=True, value=data)
    bus.run()


@pytest.mark.parametrize("nodes", [(1,), (1, 2, 3)], ids=["private", "shared"])
def test_s17_a_release_writes_what_the_next_one_reads(nodes: tuple[int, ...]) -> None:
    bus = Bus()
    keeper(bus, *nodes)
    write(bus, 1, b"one")
    write(bus, 1, b"two")
    assert read(bus, nodes[-1]) == (b"two", True, True)


@pytest.mark.parametrize("nodes", [(1,), (1, 2, 3)], ids=["private", "shared"])
@pytest.mark.parametrize("how", ["unlock", "convert"])
def test_s18_who_waits_is_granted_after_the_write(how: str, nodes: tuple[int, ...]) -> None:
    """L4, with readers and a converter in the queues."""
    bus = Bus()
    handles = keeper(bus, *nodes)
    _, h = bus.lock(1, session=2)
    bus.run()
    waits = bus.lock(nodes[-1], mode=PR, valblk=True)[0]
    converts = bus.call(nodes[-1], "convert", h=handles[nodes[-1]], mode=CR, valblk=True)
    bus.run()
    assert bus.result(waits) is bus.result(converts) is None
    bus.call(1, how, 2, h=h, valblk=True, value=b"new", **({"mode": NL} if how == "convert" else {}))
    bus.run()
    assert value(bus, waits) == value(bus, converts) == (b"new", True, True)


def test_s19_no_older_copy_wins_when_the_writer_dies() -> None:
    """There is one block and no copies with numbers: what the release wrote stays, whoever dies."""
    for dead in (1, 2, 3):
        bus = Bus()
        keeper(bus, 1, 2, 3)
        for node in (2, 3):
            read(bus, node)
        write(bus, 1, b"old")
        write(bus, 1, b"new")
        bus.kill(dead)
        left = [node for node in (1, 2, 3) if node != dead]
        bus.view(left)
        assert read(bus, left[0]) == (b"new", True, True)


def test_s20_a_view_does_not_make_a_block_valid_and_a_write_does() -> None:
    bus = Bus()
    keeper(bus, 1, 2, 3)
    write(bus, 1, b"v")
    _, h = bus.lock(2)
    bus.run()
    bus.call(2, "unlock", h=h, ivvalblk=True)
    bus.run()
    for members in ([1, 2], [1, 2, 3]):
        bus.view(members)
        bus.run()
        assert read(bus, 1) == (b"v", True, False)
    write(bus, 1, b"w")
    assert read(bus, 2) == (b"w", True, True)


def test_s21_a_join_leaves_value_blocks_alone() -> None:
    """Also while somebody holds EX, and at the node that joins."""
    bus = Bus()
    keeper(bus, 1, 2)
    write(bus, 1, b"v")
    _, h = bus.lock(2)
    bus.run()
    bus.kill(3)
    bus.view([1, 2])
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.run()
    assert bus[3].service.complete
    assert read(bus, 3) == (b"v", True, True)
    bus.call(2, "unlock", h=h)
    bus.run()
    bus.check_at_rest()


def test_s22_nothing_is_handed_out_unless_something_is_read() -> None:
    """L8: without VALBLK, by conversions that read nothing, by refusals and withdrawals."""
    bus = Bus()
    keeper(bus, 1, 2, 3)
    write(bus, 1, b"v")
    rid, h = bus.lock(1, mode=PR)
    bus.run()
    assert value(bus, rid) == (b"", False, True)
    for mode, flags in ((CR, {"valblk": True}), (PR, {})):
        rid = bus.call(1, "convert", h=h, mode=mode, **flags)
        bus.run()
        assert value(bus, rid) == (b"", False, True)
    bus.lock(2, mode=PR)
    bus.run()
    refused = bus.call(1, "convert", h=h, mode=EX, noqueue=True, valblk=True)
    bus.run()
    assert bus.result(refused) == "again"


@pytest.mark.parametrize("mode", [PW, EX])
def test_s23_after_a_writers_death_readers_are_told_and_stay_told(mode: int) -> None:
    """ocfs2 went on with an old block after a conversion downwards."""
    bus = Bus()
    keeper(bus, 2, 3)
    write(bus, 2, b"old")
    bus.lock(1, mode=mode)
    bus.run()
    bus.kill(1)
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    rid, h = bus.lock(2, mode=EX, valblk=True)
    bus.run()
    assert value(bus, rid) == (b"old", True, False)
    for down in (EX, PR, NL):
        rid = bus.call(2, "convert", h=h, mode=down)  # without VALBLK: nothing is written
        bus.run()
        assert read(bus, 3) == (b"old", True, False)


def test_s25_a_conversion_in_place_and_a_move_to_the_others() -> None:
    """The owner writes without a message, and the name becomes Shared: all have what was written."""
    bus = Bus()
    rid, h = bus.lock(1)
    bus.run()
    bus.call(1, "convert", h=h, mode=PR, valblk=True, value=b"here")
    sent = bus.submitted
    assert bus.granted(rid)
    assert sent == bus.submitted
    assert read(bus, 2) == (b"here", True, True)
    assert {node.table.names[R].resource.value for node in bus.alive()} == {b"here"}


def advice(bus: Bus, node: int) -> list[int]:
    return [data["mode"] for _, kind, data in bus[node].pushes if kind == "blocking"]


@pytest.mark.parametrize("nodes", [(1, 1), (1, 2)], ids=["private", "shared"])
def test_s27_a_holder_whose_conversion_fails_hears_of_those_who_came_meanwhile(nodes: tuple[int, int]) -> None:
    """While it converts it is not told (B1); when it is a holder again it must be."""
    bus = Bus()
    _, a = bus.lock(nodes[0], mode=PR, blocking=True)
    bus.lock(nodes[1], mode=PR, session=2)
    bus.run()
    up = bus.call(nodes[0], "convert", h=a, mode=PW, blocking=True)
    bus.run()
    bus.lock(nodes[1], mode=EX, session=2)
    bus.run()
    assert bus.result(up) is None
    assert advice(bus, nodes[0]) == []
    bus.call(nodes[0], "cancel", h=a)
    bus.run()
    assert (bus.result(up), advice(bus, nodes[0])) == ("canceled", [EX])
    refused = bus.call(nodes[0], "convert", h=a, mode=EX, noqueue=True, blocking=True)
    bus.run()
    assert bus.result(refused) == "again"
    assert advice(bus, nodes[0]) == [EX]  # heard once (B4)


def test_s30_the_mode_that_was_given_is_the_same_everywhere() -> None:
    """The kernel's holder and master each worked the mode out for themselves, and could disagree."""
    bus = Bus()
    _, a = bus.lock(1, mode=PR)
    alt, b = bus.lock(2, mode=EX, altpr=True, valblk=True)
    bus.run()
    assert (bus.result(alt)["mode"], bus.result(alt)["flags"]) == (PR, ALTMODE)
    bus.call(1, "convert", h=a, mode=EX)
    demoted = bus.call(2, "convert", h=b, mode=EX, convdeadlk=True)
    bus.run()
    locks = [node.table.names[R].resource.locks for node in bus.alive()]
    assert [{key[0]: lock.mode for key, lock in each.items()} for each in locks] == [{1: EX, 2: NL}] * 3
    bus.call(1, "unlock", h=a)
    bus.run()
    assert (bus.result(demoted)["mode"], bus.result(demoted)["flags"]) == (EX, DEMOTED)
    assert {node.table.names[R].resource.locks[2, 1, b].mode for node in bus.alive()} == {EX}


def test_s31_outcome_flags_end_with_their_operation() -> None:
    bus = Bus()
    _, a = bus.lock(1, mode=PR)
    alt, b = bus.lock(2, mode=EX, altpr=True)
    bus.run()
    same = bus.call(2, "convert", h=b, mode=PR)
    bus.run()
    assert [bus.result(rid)["flags"] for rid in (alt, same)] == [ALTMODE, 0]
    bus.call(1, "unlock", h=a)
    bus.run()
    said = []
    for mode, flags in ((EX, {}), (NL, {"ivvalblk": True}), (NL, {"valblk": True}), (NL, {})):
        rid = bus.call(2, "convert", h=b, mode=mode, **flags)
        bus.run()
        said.append(bus.result(rid)["flags"])
    assert said == [0, 0, VALNOTVALID, 0]


def test_s32_who_is_told_of_what_while_a_conversion_waits() -> None:
    """U8: a conversion says anew whether its lock wants to be told, and that counts from its place in the order."""
    bus = Bus()
    _, a = bus.lock(1, mode=PR, blocking=True)
    bus.lock(2, mode=PR)
    bus.run()
    bus.call(1, "convert", h=a, mode=PW)  # without
    bus.run()
    bus.lock(3, mode=CW)
    bus.run()
    bus.call(1, "cancel", h=a)
    bus.run()
    assert advice(bus, 1) == []
    bus.call(1, "convert", h=a, mode=PR, blocking=True)
    bus.run()
    assert advice(bus, 1) == [CW]


def test_s32_who_wants_to_be_told_no_longer_is_not_told_what_was_before() -> None:
    """Found by the simulator: both were delivered at once, and the advice came behind the conversion's answer."""
    bus = Bus()
    _, a = bus.lock(1, mode=PR, blocking=True)
    keeper(bus, 2, 3)
    bus.run()
    bus.lock(2, mode=EX)
    same = bus.call(1, "convert", h=a, mode=PR)
    bus.sequence(2)
    bus.sequence(1)
    bus.view([1, 2, 3], rest={1: 2})
    bus.run()
    assert bus.result(same)["mode"] == PR
    assert advice(bus, 1) == []


def test_s33_a_request_and_its_release_have_an_answer_each() -> None:
    """Decided, not told yet (K10), then released: two answers, and they are not merged."""
    bus = Bus()
    keeper(bus, 2, 3)
    bus.lock(1)
    bus.run()
    bus.kill(1)
    bus.view([2, 3])
    rid, h = bus.lock(2)
    bus.run()
    assert bus[2].table.names[R].resource.locks[2, 1, h].mode == EX
    assert bus.result(rid) is None
    release = bus.call(2, "unlock", h=h)
    bus.run()
    assert (bus.result(rid), bus.result(release)) == ("canceled", {})
    bus.advance(2 * LEASE)
    assert (bus.result(rid), bus.result(release)) == ("canceled", {})


def test_s36_a_lock_that_ends_takes_what_was_to_be_told_with_it() -> None:
    """Advice and answers wait for the view; the client goes before it comes."""
    bus = Bus()
    keeper(bus, 2, 3)
    bus.lock(1, mode=PR, blocking=True)
    bus.run()
    bus.lock(2, mode=EX)
    bus.sequence()
    bus.close(1)
    bus.view([1, 2, 3], rest={1: 1})
    bus.run()
    assert [kind for _, kind, _ in bus[1].pushes if kind == "blocking"] == []
    assert 1 not in bus[2].table.names[R].resource.homes


def test_s37_who_is_served_after_a_death_can_know_of_it() -> None:
    """The kernel granted before a dead node's journal was replayed, and ocfs2 read what was half written.

    Here the view that ends a life stands before every grant that follows from it, the first one who reads the
    value block is told that a writer has gone, and has a larger fence.
    """
    bus = Bus()
    keeper(bus, 2, 3)
    held, _ = bus.lock(1)
    waits, _ = bus.lock(2, valblk=True)
    bus.run()
    bus.kill(1)
    ring = bus.view([2, 3])
    bus.advance(2 * LEASE)
    assert not bus.result(waits)["value_valid"]
    assert bus.result(waits)["fence"] >> 32 == ring.seq
    assert bus.result(waits)["fence"] > bus.result(held)["fence"]


def test_s38_two_threads_cannot_change_one_lock_at_once() -> None:
    """The second conversion is refused, whichever way the first one ends."""
    bus = Bus()
    keeper(bus, 1, 3)
    _, h = bus.lock(2, mode=CR)
    bus.run()
    first = bus.call(2, "convert", h=h, mode=CW, persistent=True)
    second = bus.call(2, "convert", h=h, mode=PW, altpr=True)
    bus.run()
    assert (bus.result(first)["mode"], bus.result(second)) == (CW, "busy")
    lock = bus[3].table.names[R].resource.locks[2, 1, h]
    assert (lock.mode, lock.persistent) == (CW, True)
