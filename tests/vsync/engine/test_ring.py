"""The receive window against a model that is too dumb to be wrong."""

from __future__ import annotations

from random import Random

import pytest

from vsync.engine.ring import Ring
from vsync.types import Member, RingId
from vsync.wire import Packet

ME, OTHER = Member(1, 1), Member(2, 1)


def ring() -> Ring:
    return Ring(RingId(5, 1), (ME, OTHER), ME)


class Model:
    """Every number that ever came, in a set."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        self.released = 0

    def aru(self) -> int:
        return next(n for n in range(1, 10_000) if n not in self.came) - 1


@pytest.mark.parametrize("seed", range(20))
def test_the_window_is_what_the_model_says(seed: int) -> None:
    """Any order, any number of copies, releases in between."""
    rng, window, model = Random(seed), ring(), Model()
    for _ in range(300):
        if rng.random() < 0.85:
            seq = model.aru() + rng.randint(-3, rng.choice([2, 12, 60]))
            if seq < 1:
                continue
            assert window.add(Packet(seq, 2, 0, b"%d" % seq)) == (seq not in model.came)
            model.came.add(seq)
        else:
            window.delivered = rng.randint(window.delivered, window.aru)
            up_to = rng.randint(0, window.aru)
            window.release(up_to)
            model.released = max(model.released, min(up_to, window.delivered))
        assert window.aru == model.aru()
        assert window.high == max(model.came, default=0)
        assert window.released == model.released
        assert set(window.packets) == {n for n in model.came if n > model.released}
        holes = [n for n in range(1, window.high + 1) if n not in model.came]
        assert window.missing(window.high, 10) == holes[:10]


def test_a_hole_before_thousands_of_packets() -> None:
    """corosync e48ddf99: the aru stood still over 1024."""
    window = ring()
    for seq in range(2, 5001):
        window.add(Packet(seq, 2, 0, b""))
    assert (window.aru, window.missing(5000, 64)) == (0, [1])
    window.add(Packet(1, 2, 0, b""))
    assert (window.aru, window.missing(5000, 64)) == (5000, [])


def test_neighbours() -> None:
    """The token comes from the one before and goes to the one behind, round the corner."""
    members = tuple(Member(n, 9) for n in (2, 5, 7))
    places = [Ring(RingId(1, 2), members, me) for me in members]
    assert [r.successor.node for r in places] == [5, 7, 2]
    assert [r.predecessor.node for r in places] == [7, 2, 5]
    assert Ring(RingId(1, 2), members[:1], members[0]).predecessor == members[0]
