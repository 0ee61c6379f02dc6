"""Handles at rest are bytes, and whoever asks for one gets what it was."""

from __future__ import annotations

import pytest

from dlm import handles
from dlm.handle import Handle, Request
from dlm.handles import Handles
from dlm.messages import Kind, key_of
from dlm.modes import EX, NL, PERSISTENT, PR
from tests.dlm.bus import Bus

SEVEN = 7


def granted(h: int, key: bytes = b"\0a", **more: int) -> Handle:
    """A handle as it is when its client has been told."""
    made = Handle(SEVEN, h, key, Request(Kind.LOCK, h, EX, PERSISTENT, None), xid=1 << 62, owner=5)
    made.request, made.sent, made.mode, made.fence = None, True, EX, (9 << 32) + h
    for name, value in more.items():
        setattr(made, name, value)
    return made


def folded(*added: Handle) -> Handles:
    """All of these, as bytes where they may be."""
    found = Handles(SEVEN)
    for each in added:
        found.add(each)
    for _ in added:
        found.fold()
    return found


def objects(found: Handles) -> list[int]:
    return [handle.h for handle in found.busy()]


@pytest.fixture(autouse=True)
def nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "OPEN", 0)


def test_all_that_a_resting_handle_is_comes_back() -> None:
    before = granted(3, weight=17, advised=PR)
    found = folded(before)
    assert objects(found) == []
    after = found.get(3)
    assert after is not None
    assert after is not before
    assert all(getattr(after, each) == getattr(before, each) for each in Handle.__slots__)
    assert found.get(3) is after
    assert objects(found) == [3]


BUSY = ({"unlock_rid": 1}, {"cancel_rid": 1}, {"ending": True}, {"blocking": EX}, {"sent": False}, {"mode": -1})


@pytest.mark.parametrize("more", BUSY, ids=str)
def test_one_that_is_busy_stays_an_object(more: dict[str, int]) -> None:
    assert objects(folded(granted(1, **more), granted(2))) == [1]


def test_those_that_came_last_stay_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "OPEN", 2)
    found = folded(*(granted(h) for h in range(1, 6)))
    assert objects(found) == [4, 5]
    found.get(1)
    found.fold()
    assert objects(found) == [1, 5]


def test_they_are_found_by_name_and_kept_in_order() -> None:
    found = folded(granted(5, b"\0a"), granted(1, b"other\0a"), granted(3, b"\0b"))
    assert [handle.h for handle in found.under(b"\0")] == [5, 3]
    assert [handle.h for handle in found.values()] == [5, 1, 3]
    assert len(found) == 3
    assert found.pop(1)
    assert not found.pop(1)
    assert 1 not in found
    assert [handle.h for handle in found.values()] == [5, 3]


def test_a_number_may_be_used_again() -> None:
    found = folded(granted(1), granted(2))
    found.pop(1)
    found.add(granted(1, b"\0new"))
    assert found[1].key == b"\0new"
    found.fold()
    assert found[1].key == b"\0new"


def test_a_client_does_with_them_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    names = [f"n{n}".encode() for n in range(4)]
    locks = [bus.lock(1, name, EX)[1] for name in names]
    bus.run()
    home = bus[1].service.home
    for _ in locks:
        home.sessions[1].handles.fold()
    assert objects(home.sessions[1].handles) == []
    bus.call(1, "convert", h=locks[0], mode=NL)
    assert objects(home.sessions[1].handles) == [locks[0]]
    bus.lock(2, names[0], EX)
    bus.call(1, "unlock", h=locks[1])
    bus.run()
    assert [handle.key for handle in home.handles()] == [key_of("default", names[n]) for n in (0, 2, 3)]
    bus.close(1)
    bus.run()
    assert not list(home.handles())
    assert not home._on_name
    assert all(len(name.resource.locks) <= 1 for name in bus[2].table.names.values() if name.resource)
