"""The state of one position while the table goes on: what is given out is what there was (K15, E1–E4)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from dlm import snapshot
from dlm.messages import Kind, key_of
from dlm.snapshot import Copy, Damage, Reader
from dlm.table import Table
from tests.dlm.ordered import NODES
from tests.dlm.test_purge import A, B, C, Pair, Scene


class Running:
    """A copy on its way, and what is to come of it."""

    def __init__(self, table: Table, rng: random.Random) -> None:
        self.rng = rng
        self.expected = table.encode()
        self.objects: Iterator[bytes] = Copy(table).pieces()
        self.out = bytearray(next(self.objects))

    def go(self) -> bool:
        """Some more of it; whether that is all."""
        for _ in range(self.rng.randrange(3)):
            each = next(self.objects, None)
            if each is None:
                self.check()
                return True
            self.out += each
        return False

    def check(self) -> None:
        table = Table(9)
        reader = Reader(table, 0)
        while self.out:  # cut anywhere
            size = self.rng.randrange(1, 50)
            reader.feed(bytes(self.out[:size]))
            del self.out[:size]
        assert reader.whole
        assert table.encode() == self.expected
        table.invariants()


@pytest.mark.parametrize("seed", range(24))
def test_it_is_what_there_was(seed: int) -> None:
    """Random histories, with what is due left undone, and up to three copies of different positions at a time."""
    pair = Pair(seed)
    running: dict[int, list[Running]] = {node: [] for node in NODES}
    done = 0
    for _ in range(200):
        before = dict(pair.later)
        pair.step()
        for node, copies in running.items():
            if pair.later[node] is not before[node]:
                copies.clear()  # the node has another table
            elif len(copies) < 3 and pair.rng.random() < 0.2:
                copies.append(Running(pair.later[node], pair.rng))
            for copy in list(copies):
                if copy.go():
                    copies.remove(copy)
                    done += 1
    assert done > 20
    for node in NODES:
        for copy in running[node]:
            while not copy.go():
                pass
        assert not any(due.holds for due in pair.later[node].dues)


class TestCopy:
    def test_a_name_that_has_changed_is_as_it_was(self) -> None:
        scene = Scene()
        for key in (A, B):
            scene.shared(key, (1, 0))
        scene.lock(2, C)
        before = scene.table.encode()
        objects = Copy(scene.table).pieces()
        out = [next(objects)]
        scene.lock(3, A)
        scene.lock(1, C)  # a handover
        scene.send(1, Kind.END, 1, ((B, 4),))
        scene.lock(3, key_of("default", b"new"))
        out += objects
        assert snapshot.decode(Table(9), b"".join(out), 0).encode() == before != scene.table.encode()

    def test_a_name_that_has_gone_and_come_again(self) -> None:
        scene = Scene()
        scene.lock(2, A)
        scene.send(2, Kind.UNLOCK, A, 1, 1, 0, 0, None)
        before = scene.table.encode()
        objects = Copy(scene.table).pieces()
        out = [next(objects)]
        scene.send(2, Kind.GIVE_BACK, ((A, scene.table.names[A].epoch),))
        scene.lock(3, A)
        out += objects
        assert snapshot.decode(Table(9), b"".join(out), 0).encode() == before

    def test_one_row_at_a_time(self) -> None:
        """What is written down early is only what changes."""
        scene = Scene()
        for number in range(100):
            scene.shared(key_of("default", b"n%d" % number), (1, 0))
        copy = Copy(scene.table)
        objects = copy.pieces()
        next(objects)
        for number in range(50, 60):
            scene.lock(2, key_of("default", b"n%d" % number), 0)
        assert len(copy._saved) == 10
        for _ in range(70):
            assert next(objects)
        assert not copy._saved
        scene.lock(2, key_of("default", b"n3"), 0)
        assert not copy._saved  # it has been sent
        assert len(list(objects)) == 31
        assert not scene.table.dues

    def test_a_copy_that_nobody_wants_keeps_nothing(self) -> None:
        scene = Scene()
        scene.shared(A, (1, 0))
        copy = Copy(scene.table)
        scene.lock(2, A, 0)
        copy.drop()
        copy.drop()
        scene.lock(3, A, 0)
        assert not copy._saved
        assert not scene.table.dues

    def test_the_purge_of_a_view_does_not_wait_for_it(self) -> None:
        scene = Scene()
        for key in (A, B, C):
            scene.shared(key, (3, 5), (1, 0))
        scene.die(3)
        copy = Copy(scene.table)
        assert scene.table.overdue
        scene.table.complete()
        assert not scene.table.overdue
        assert not copy._saved
        scene.die(2)
        assert not scene.table.overdue  # behind the copy
        list(copy.pieces())
        assert scene.table.overdue
        scene.table.complete()
        assert not scene.table.dues


class TestStream:
    def whole(self) -> bytes:
        scene = Scene()
        scene.shared(A, (1, 0), (2, 5))
        scene.lock(2, B)
        return scene.table.encode()

    def test_equal_states_have_equal_bytes_and_names(self) -> None:
        data = self.whole()
        table = snapshot.decode(Table(9), data, 7)
        assert table.encode() == data
        assert table.digest() == snapshot.decode(Table(8), data, 0).digest()
        assert table.now == 7
        assert (table.forms, list(table.handovers)) == ([1, 1, 0], [])

    @pytest.mark.parametrize("cut", [1, 5, 20])
    def test_an_end_that_is_missing(self, cut: int) -> None:
        with pytest.raises(Damage):
            snapshot.decode(Table(9), self.whole()[:-cut], 0)

    def test_every_byte_counts(self) -> None:
        data = self.whole()
        for at in range(len(data)):
            damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with pytest.raises(Damage):
                snapshot.decode(Table(9), damaged, 0)

    def test_nothing_follows(self) -> None:
        with pytest.raises(Damage, match="after its end"):
            snapshot.decode(Table(9), self.whole() + b"\x90", 0)
