"""What a name costs in memory, counted in bytes of objects: not more than is promised (docs/bench.md, *memory*)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import pytest

from dlm import folded, handles
from dlm.messages import key_of
from dlm.modes import NL
from tests.dlm.bus import Bus, FakeHost, Node

WARM, NAMES = 200, 1000
TOGETHER = 100  #: names of one request
BIG = 100  #: entries: a dict with more is an index of names or locks ..
ENTRY = 52  #: .. of which an entry takes so many bytes, with the room it keeps: at 10^5, 10^6 and 10^7 entries
ALIGNED, HEADER = 16, 16  #: what the allocator rounds to; getsizeof knows of the collector's header
PIN = b"pin"  #: all nodes know it: what is locked together with it becomes shared

_NO_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, FakeHost)


def size(thing: object) -> int:
    if isinstance(thing, dict) and len(thing) > BIG:
        return len(thing) * ENTRY
    return (sys.getsizeof(thing) + ALIGNED - 1) // ALIGNED * ALIGNED


def weight(node: Node) -> int:
    """Bytes of all objects that the service of a node keeps."""
    assert node.table.history.rolling.value  # what waited for it is counted in
    seen: set[int] = set()
    total = 0
    todo: list[object] = [node.service]
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and not isinstance(thing, _NO_DATA):
            seen.add(id(thing))
            total += size(thing)
            todo.extend(gc.get_referents(thing))
    return total


def lock(bus: Bus, numbers: Iterable[int], shared: bool) -> None:
    """Names of 20 bytes, with an EX lock of node 1 each."""
    numbers = list(numbers)
    for start in range(0, len(numbers), TOGETHER):
        names = [b"name/%015d" % number for number in numbers[start : start + TOGETHER]]
        rid, first = bus.lock_all(1, *names, *([(PIN, NL)] if shared else []), owner=0)
        bus.sequence()
        bus.deliver()
        assert bus.granted(rid)
        if shared:
            bus.call(1, "unlock", h=first + sorted([*names, PIN]).index(PIN))
            bus.sequence()
            bus.deliver()
    for _ in range(3):
        bus.settle()  # what is known to be everywhere is not kept any more
    for _ in numbers:
        bus.call(1, "stats")  # a request as any other


def growth(shared: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Bytes a name, at each node; node 1 has the locks."""
    monkeypatch.setattr(folded, "OPEN", 16)
    monkeypatch.setattr(handles, "OPEN", 16)
    bus = Bus()
    for node in bus.alive():
        node.table.history.resize(16)
        bus.lock(node.id, PIN, NL)
        bus.run()
    lock(bus, range(WARM), shared)
    before = [weight(node) for node in bus.alive()]
    lock(bus, range(WARM, WARM + NAMES), shared)
    after = [weight(node) for node in bus.alive()]
    assert all(key_of("default", b"name/%015d" % WARM) in node.table.names for node in bus.alive())
    return [(now - then) / NAMES for now, then in zip(after, before, strict=True)]


def test_a_private_name(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, *others = growth(False, monkeypatch)
    assert 400 < owner < 500
    assert all(200 < other < 250 for other in others)


def test_a_shared_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = growth(True, monkeypatch)
    assert 500 < max(found) < 1200
