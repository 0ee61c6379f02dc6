"""What the collector of cycles may cost a node that has much to remember."""

from __future__ import annotations

import gc
import weakref

import pytest

from vsync import garbage


class Knot:
    """Part of a cycle."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def spared() -> object:
    """As in a daemon; afterwards as it was."""
    before = gc.get_threshold()
    garbage.spare_survivors()
    garbage.spare_survivors()
    assert gc.callbacks.count(garbage._after) == 1
    yield
    gc.callbacks.remove(garbage._after)
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_full_collection_looks_at_nothing_twice(spared: object) -> None:
    gc.collect()
    before = gc.get_freeze_count()
    kept = [[number] for number in range(10_000)]
    gc.collect()
    assert gc.get_freeze_count() >= before + len(kept)
    assert len(gc.get_objects()) < 10_000  # those that a collection would look at


@pytest.fixture
def much_before() -> list[list[int]]:
    """What the process has before it becomes a node."""
    return [[number] for number in range(500_000)]


def test_a_full_collection_comes_often_enough_to_be_short(much_before: object, spared: object) -> None:
    looked: list[int] = []

    def before(phase: str, info: dict[str, int]) -> None:
        if (phase, info["generation"]) == ("start", garbage.OLDEST):
            looked.append(len(gc.get_objects()))

    gc.callbacks.append(before)
    try:
        kept = [[[number]] for number in range(50_000)]
    finally:
        gc.callbacks.remove(before)
    assert len(looked) > 3
    assert max(looked[1:]) < 30_000 < len(kept)


def test_cycles_go_as_ever(spared: object) -> None:
    gc.collect()
    gone = weakref.ref(Knot())
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_what_nobody_refers_to_goes_though_it_was_spared(spared: object) -> None:
    class Kept:
        pass

    kept = Kept()
    gone = weakref.ref(kept)
    gc.collect()
    del kept
    assert gone() is None
