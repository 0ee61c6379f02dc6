"""A recorded table, run again, becomes what it was; what was changed in the file is found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from dlm import checks
from dlm.modes import CR, EX, NL, PR
from dlm.names import Name
from dlm.recording import frame, header, read
from dlm.replay import Replay
from dlm.table import Table
from dlm.work import ITEM
from tests.dlm.bus import Bus
from vsync.errors import RecordingError


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EVERY", 8)


class Recorder:
    """What ``dlm record`` does, over the bus."""

    def __init__(self, bus: Bus, node: int) -> None:
        self.bus, self.node = bus, node
        head = bus.result(bus.call(node, "record"))
        self.rows: list[Any] = [("head", head)]
        self.pushes = len(bus[node].pushes)
        while piece := self.answer("record_read"):
            self.rows.append(("table", piece))

    def answer(self, verb: str) -> Any:
        """It may take some turns of the node."""
        rid = self.bus.call(self.node, verb)
        while (found := self.bus.result(rid)) is None:
            service = self.bus[self.node].service
            assert service.next_deadline() == self.bus.now
            service.fire(self.bus.now)
        return found

    def end(self) -> bytes:
        done = self.answer("record_end")
        self.take()
        if self.rows[-1][0] != "end":
            self.rows.append(("end", done["position"], done["digest"], "stopped"))
        return self.file()

    def take(self) -> None:
        pushes = self.bus[self.node].pushes
        self.rows += [data for _, kind, data in pushes[self.pushes :] if kind == "record"]
        self.pushes = len(pushes)

    def file(self) -> bytes:
        return header() + b"".join(map(frame, self.rows))


def replayed(data: bytes) -> Replay:
    rows, torn = read(data, "a file")
    assert not torn
    run = Replay(rows, "a file")
    run.run()
    return run


def busy(bus: Bus, rng: random.Random, steps: int) -> None:
    for step in range(steps):
        node = rng.randint(1, 3)
        name, mode = rng.choice([b"R", b"S", b"T"]), rng.choice([NL, CR, PR, EX])
        _, h = bus.lock(node, name, mode, noqueue=rng.random() < 0.5)
        bus.run() if rng.random() < 0.5 else bus.sequence()
        if rng.random() < 0.8:
            bus.call(node, "unlock", h=h)
        if step % 25 == 24:
            gone = rng.choice([2, 3])
            bus.view([n for n in (1, 2, 3) if n != gone], rng=rng)
            bus.run()
            bus.view([1, 2, 3], rng=rng)
    bus.run()


@pytest.mark.parametrize("seed", range(12))
def test_it_becomes_what_it_was(seed: int) -> None:
    """Random operations and views; node 1 goes on all the time."""
    rng, bus = random.Random(seed), Bus()
    busy(bus, rng, 20)
    recorder = Recorder(bus, 1)
    busy(bus, rng, 60)
    run = replayed(recorder.end())
    assert not run.problems
    assert run.marks > 0
    assert run.ended == "stopped"
    assert run.table.encode() == bus[1].table.encode()
    assert run.table.applied > run.began


def test_events_and_until() -> None:
    bus = Bus()
    recorder = Recorder(bus, 3)
    bus.lock(1, mode=PR)
    bus.run()
    bus.lock(2, mode=EX)
    bus.run()
    data = recorder.end()
    rows, _ = read(data, "a file")
    run = Replay(rows, "a file")
    found: list[str] = []
    run.run(on_event=lambda event: found.append(event.row[2]))
    assert found == ["private", "handover", "shared", "waiting"]
    half = Replay(rows, "a file")
    half.run(until=run.began + 2)
    assert half.table.applied == run.began + 2
    assert [name.form for name in half.table.names.values()] == [2]


def test_a_torn_tail_is_left_out() -> None:
    bus = Bus()
    recorder = Recorder(bus, 1)
    busy(bus, random.Random(1), 10)
    recorder.take()
    data, last = recorder.file(), len(frame(recorder.rows[-1]))
    whole, _ = read(data, "f")
    for cut in (1, 5, last - 5, last - 1):
        rows, torn = read(data[:-cut], "f")
        assert rows == whole[:-1]
        assert "ends within a record" in torn
        run = Replay(rows, "f")
        run.run()
        assert not run.problems
    damaged = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    assert read(damaged, "f")[0] == whole[:-1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a recorded lock table"),
        (b"vsyncrec\0\1", "is not a recorded lock table"),
        (b"dlmrec\0\7", "of format 7"),
        (header(), "nothing was recorded"),
        (header() + frame(("head", {"now": 0})), "is not whole: it ends before its end"),
    ],
)
def test_what_is_no_recording(data: bytes, words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        Replay(read(data, "f")[0], "f")


def test_damage_in_the_middle() -> None:
    bus = Bus()
    recorder = Recorder(bus, 1)
    busy(bus, random.Random(1), 10)
    data = bytearray(recorder.end())
    data[60] ^= 1
    with pytest.raises(RecordingError, match="damaged at byte"):
        read(bytes(data), "f")


def test_another_table_is_told() -> None:
    bus = Bus()
    recorder = Recorder(bus, 1)
    busy(bus, random.Random(2), 30)
    recorder.end()
    at = next(i for i, row in enumerate(recorder.rows) if row[0] == "message" and row[4] <= 2)
    without = header() + b"".join(map(frame, recorder.rows[:at] + recorder.rows[at + 1 :]))
    run = replayed(without)
    assert "the mark is" in run.problems[0] or "is not that of the node" in run.problems[0]


def test_it_ends_with_the_life() -> None:
    bus = Bus()
    bus.lock(2, mode=NL)
    bus.run()
    recorder = Recorder(bus, 3)
    bus.view([3])
    bus.view([1, 2])
    bus.lock(1, mode=NL)
    bus.run()
    bus.view([1, 2, 3])
    bus.run()
    bus.work()
    recorder.take()
    assert recorder.rows[-1][0] == "end"
    assert "new life" in replayed(recorder.file()).ended


class TestPace:
    """The table at the beginning, and the digest at the end, are made a few names at a time."""

    NAMES = 95
    SOME = 10

    @pytest.fixture(autouse=True)
    def short_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dlm.work.TURN", self.SOME * ITEM)
        monkeypatch.setattr("dlm.recording.PIECE", 200)

    def populated(self) -> Bus:
        bus = Bus()
        for number in range(self.NAMES):
            bus.lock(2, b"n%d" % number, NL)
        bus.run()
        for number in range(self.NAMES):
            bus.lock(1, b"n%d" % number, NL)
        bus.run()
        return bus

    def count(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many names were encoded in all, as of each call."""
        total = [0]
        encode = Name.encode

        def counted(name: Name, key: bytes) -> tuple[Any, ...]:
            total[0] += 1
            return encode(name, key)

        monkeypatch.setattr(Name, "encode", counted)
        return total

    def turns(self, bus: Bus, verb: str, total: list[int]) -> tuple[int, Any]:
        """Until the answer: not more than some names a turn."""
        rid, turns = bus.call(1, verb), 0
        while (found := bus.result(rid)) is None:
            before = total[0]
            bus[1].service.fire(bus.now)
            assert total[0] - before <= self.SOME
            turns += 1
        return turns, found

    def test_so_many_names_a_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bus = self.populated()
        total = self.count(monkeypatch)
        rows: list[Any] = [("head", bus.result(bus.call(1, "record")))]
        assert total[0] == 0
        turns = 0
        while True:
            more, piece = self.turns(bus, "record_read", total)
            turns += more
            if not piece:
                break
            rows.append(("table", piece))
        assert turns >= self.NAMES / self.SOME
        assert len(rows) > 5
        turns, end = self.turns(bus, "record_end", total)
        assert turns >= self.NAMES / self.SOME
        rows.append(("end", end["position"], end["digest"], "stopped"))
        run = replayed(header() + b"".join(map(frame, rows)))
        assert not run.problems
        assert run.table.encode() == bus[1].table.encode()

    def test_the_table_goes_on_meanwhile(self) -> None:
        """What is recorded is the table of the beginning, and the changes since are recorded beside it."""
        bus = self.populated()
        began = bus[1].table.encode()
        rows: list[Any] = [("head", bus.result(bus.call(1, "record")))]
        pushes = len(bus[1].pushes)
        rng = random.Random(5)
        while True:
            rid = bus.call(1, "record_read")
            while (piece := bus.result(rid)) is None:
                bus.lock(rng.choice((2, 3)), b"n%d" % rng.randrange(2 * self.NAMES), NL)
                bus.work()
                bus.sequence()
                bus.deliver()
            if not piece:
                break
            rows.append(("table", piece))
        bus.run()
        assert Table.decode(9, b"".join(row[1] for row in rows[1:]), 0).encode() == began
        rid = bus.call(1, "record_end")
        bus.lock(2, b"later", NL)
        bus.run()
        end = bus.result(rid)
        rows += [data for _, kind, data in bus[1].pushes[pushes:] if kind == "record"]
        rows.append(("end", end["position"], end["digest"], "stopped"))
        run = replayed(header() + b"".join(map(frame, rows)))
        assert not run.problems
        assert run.table.applied == end["position"] < bus[1].table.applied
        assert not bus[1].table.dues

    def test_who_does_not_read_holds_nothing_up(self) -> None:
        """Names of the dead are purged although a recorder has never asked for the table."""
        bus = self.populated()
        bus.call(1, "record")
        bus.view([1, 3])
        assert any(due.holds for due in bus[1].table.dues)
        bus.run()
        assert not bus[1].table.dues
        assert not any(name.resource and 2 in name.resource.homes for name in bus[1].table.names.values())

    @pytest.mark.parametrize("end", ["close", "life", "end"])
    def test_it_may_end_before_the_table_is_there(self, end: str) -> None:
        bus = self.populated()
        bus.call(1, "record")
        rid = bus.call(1, "record_read")
        assert bus.result(rid) is None
        if end == "close":
            bus.close(1)
        elif end == "end":
            bus.call(1, "record_end")
        else:
            bus.view([1])
            bus.view([2, 3])
            bus.view([1, 2, 3])
        assert bus.result(rid) == "unknown"
        bus.run()
        assert not bus[1].service.taps.chores
        assert not bus[1].table.dues


class TestWho:
    def test_only_root_and_the_daemons_user(self) -> None:
        bus = Bus()
        service = bus[1].service
        service.home.sessions[2].who = replace(service.home.sessions[2].who, uid=4711)
        assert bus.result(bus.call(1, "record", session=2)) == "permission"
        assert bus.result(bus.call(1, "record_read", session=2)) == "unknown"
        bus[1].host.config = replace(bus[1].host.config, uid=4711)
        assert bus.result(bus.call(1, "record", session=2))["node"] == 1
        assert bus.result(bus.call(1, "record", session=2)) == "busy"
        assert bus.result(bus.call(1, "record", session=1))["node"] == 1

    def test_whoever_goes_is_no_longer_told(self) -> None:
        bus = Bus()
        Recorder(bus, 1)
        assert bus[1].service.taps
        bus.close(1)
        assert not bus[1].service.taps

    def test_not_while_joining(self) -> None:
        bus = Bus()
        bus.kill(3)
        bus.view([1, 2])
        bus.boot(3)
        bus.view([1, 2, 3])
        assert bus.result(bus.call(3, "record")) == "joining"
