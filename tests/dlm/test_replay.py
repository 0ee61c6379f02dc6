"""A recorded table, run again, becomes what it was; what was changed in the file is found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from dlm import checks
from dlm.modes import CR, EX, NL, PR
from dlm.recording import frame, header, read
from dlm.replay import Replay
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
        offset = 0
        while offset < head["size"]:
            piece = bus.result(bus.call(node, "record_read", offset=offset))
            self.rows.append(("table", piece))
            offset += len(piece)

    def end(self) -> bytes:
        done = self.bus.result(self.bus.call(self.node, "record_end"))
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
        (header() + frame(("head", {"size": 5, "now": 0})), "ends within the table"),
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
    recorder.take()
    assert recorder.rows[-1][0] == "end"
    assert "new life" in replayed(recorder.file()).ended


class TestWho:
    def test_only_root_and_the_daemons_user(self) -> None:
        bus = Bus()
        service = bus[1].service
        service.home.sessions[2].who = replace(service.home.sessions[2].who, uid=4711)
        assert bus.result(bus.call(1, "record", session=2)) == "permission"
        assert bus.result(bus.call(1, "record_read", session=2, offset=0)) == "unknown"
        bus[1].host.config = replace(bus[1].host.config, uid=4711)
        assert bus.result(bus.call(1, "record", session=2))["size"] > 0
        assert bus.result(bus.call(1, "record", session=2)) == "busy"
        assert bus.result(bus.call(1, "record", session=1))["size"] > 0

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
