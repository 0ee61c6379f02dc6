"""How many locks one node may have on a name (A3): exact where it counts, although names share buckets."""

from __future__ import annotations

import pytest

from dlm import crowd
from dlm.crowd import Crowd
from dlm.handle import Handle, Request
from dlm.messages import Kind
from dlm.modes import EX


def handle(key: bytes, h: int, weight: int = 1) -> Handle:
    made = Handle(1, h, key, Request(Kind.LOCK, 1, EX, 0, None))
    made.weight = weight
    return made


@pytest.fixture(params=[1, 1 << 16], ids=["one bucket", "many"])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Crowd:
    monkeypatch.setattr(crowd, "BUCKETS", request.param)
    return Crowd()


def test_a_name_is_full_at_the_limit_whatever_other_names_have(found: Crowd) -> None:
    known = [handle(b"a", h) for h in range(9)] + [handle(b"b", 20, weight=50)]
    for each in known:
        found.add(each)
    assert found.room(handle(b"a", 10), 10, lambda: known)
    assert not found.room(handle(b"a", 10, weight=2), 10, lambda: known)
    assert found.room(handle(b"c", 10), 10, lambda: known)
    assert not found.room(handle(b"b", 10), 10, lambda: known)


def test_what_has_gone_makes_room(found: Crowd) -> None:
    known = [handle(b"a", h) for h in range(10)]
    for each in known:
        found.add(each)
    assert not found.room(handle(b"a", 10), 10, lambda: known)
    found.remove(known.pop())
    assert found.room(handle(b"a", 10), 10, lambda: known)
    while known:
        found.remove(known.pop())
    assert not found


def test_who_is_being_closed_counts_until_it_has_gone(found: Crowd) -> None:
    known = [handle(b"a", h) for h in range(10)]
    for each in known:
        found.add(each)
    assert not found.room(handle(b"a", 10), 10, lambda: known[:5])
