"""The stable record: round trip, and refusal of anything else."""

from __future__ import annotations

import msgpack
import pytest

from vsync.engine.record import Attempt, Record
from vsync.types import RingId


def test_round_trip() -> None:
    """What is stored comes back."""
    attempts = Attempt(RingId(9, 1), 77, ((1, 1), (2, 3))), Attempt(RingId(10, 2), 78, ((2, 3),), sure=False)
    bases = (RingId(8, 2), ((1, 1), (2, 3))), (RingId(7, 1), ((1, 1),))
    record = Record(11, attempts, RingId(8, 2), 77, bases)
    assert Record.decode(record.encode()) == record


def test_the_cluster_it_belongs_to() -> None:
    """Also one that it knows of an attempt only; not one that may never have begun (C7)."""
    unsure, sure = Attempt(RingId(9, 1), 78, (), sure=False), Attempt(RingId(10, 1), 77, ())
    assert [Record(11, attempts).cluster for attempts in ((), (unsure,), (unsure, sure))] == [0, 0, 77]
    assert Record(11, (), RingId(8, 2), 76).cluster == 76


@pytest.mark.parametrize(
    "stored",
    [b"", b"\xc1", msgpack.packb("text"), msgpack.packb((1, 2)), msgpack.packb((2, 9, (9, 1), (), (7, 1), (8, 2))),
     msgpack.packb((1, -1, (9, 1), (), (7, 1), (8, 2))), msgpack.packb((1, 1 << 40, (9, 1), (), (7, 1), (8, 2)))],
)  # fmt: skip
def test_anything_else_is_refused(stored: bytes) -> None:
    """A torn or foreign record must not be guessed at: the node would use a ring id twice."""
    with pytest.raises(ValueError, match="stored ring record"):
        Record.decode(stored)
