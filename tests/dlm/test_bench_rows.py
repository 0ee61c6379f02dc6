"""What ``dlm bench`` makes of what it measured, without clusters."""

from __future__ import annotations

import os
import threading

import pytest

from dlm.bench import command
from dlm.bench.busy import SHARED, VIAS, busy_rows
from dlm.bench.callers import Busy
from dlm.bench.failover import FIGURES, LEASE_MS, Failover
from dlm.bench.memory import TARGETS, memory_rows, rss_bytes
from dlm.bench.outages import OUTAGES, outage_rows
from dlm.bench.pairs import sent_by
from dlm.bench.pingpong import rated
from dlm.bench.recovering import recovery_rows
from dlm.bench.scale import Scale
from vsync.bench.options import Options
from vsync.bench.rows import WHATS, Row, Sample, rows_of
from vsync.errors import VsyncError


def test_handovers_are_counted_between_two_players() -> None:
    found = rated([[0, 100, 300], [200, 1000]], cpu_s=0.003, messages=6)
    # 0 to 100 is the same player's: 100 to 200, 200 to 300 and 300 to 1000 are left, in 1 ms
    assert (found.value, found.p50_us, found.p99_us) == (3000, 100, 700)
    assert (found.cpu_us, found.messages) == (1000, 2)


def test_without_a_handover_there_is_no_figure() -> None:
    with pytest.raises(VsyncError, match="no lock was handed over"):
        rated([[1, 2, 3], []], 0, 0)


def test_every_figure_of_a_failure_becomes_a_row_beside_its_floor() -> None:
    assert list(OUTAGES) == [figure for figure in OUTAGES if figure in FIGURES]
    assert set(OUTAGES) == set(FIGURES)
    bench = Failover()
    for figure in FIGURES:
        bench.times[figure] = [2000.0, 1000.0, 6000.0]
        bench.floors[figure] = [4.0, 5.0, 6.0]
    found = {(row.what, row.case): row for row in outage_rows(bench, "udp", 0.02)}
    assert len(found) == len(FIGURES)
    kill, leave = (found[OUTAGES[figure][:2]] for figure in ("kill", "leave"))
    assert (kill.value, kill.unit, kill.p50_us) == (2000, "ms", 2e6)
    assert (kill.peer, kill.peer_value) == ("the lease", LEASE_MS)
    assert (leave.peer, leave.peer_value) == ("bare hop", 0.02)
    join = found[OUTAGES["join shared"][:2]]
    assert (join.what, join.peer, join.ratio) == ("join-pause", "calm", 400)


def test_a_busy_thread_stands_beside_none_and_beside_embedded() -> None:
    found = {f"{via}, {load}": Sample(10.0 * (1 + (load == "calm"))) for via in VIAS for load in ("busy", "calm")}
    rows = list(busy_rows("udp", SHARED[1], found))
    assert [(row.via, row.peer, row.ratio) for row in rows] == [
        ("embedded", "no busy thread", 0.5), ("process", "no busy thread", 0.5), ("process", "embedded", 1),
    ]  # fmt: skip
    assert {(row.what, row.case) for row in rows} == {("lock-shared", "awaited, busy thread elsewhere")}


def test_a_caller_computes_between_busy_and_calm() -> None:
    busy = Busy()
    before = threading.active_count()
    for _ in range(2):
        busy.start()
        busy.start()
        assert threading.active_count() == before + 1
        busy.close()
        busy.close()
        assert threading.active_count() == before


def test_what_was_not_measured_has_no_row() -> None:
    bench = Failover()
    bench.times["leave"] = [10.0]
    (row,) = outage_rows(bench, "zmq", 0.02)
    assert row.case == OUTAGES["leave"].case


def test_recovery_beside_that_of_two_locks() -> None:
    bench = Scale(10_000, 0)
    bench.found.update({"late": [-0.4, 4.0, 6.0], "pause": [10.0]})
    bench.floors.update({"late": [-0.4, -0.1], "pause": [5.0]})
    late, pause = recovery_rows(bench, "udp")
    assert (late.case, late.value) == ("10000 locks, after the horizon", 4)
    assert (late.peer, late.peer_value) == ("2 locks", 0)
    assert late.ratio is None  # nothing to divide by
    assert (pause.value, pause.ratio) == (10, 2)


def test_memory_beside_what_is_aimed_at() -> None:
    rows = list(memory_rows("udp", dict.fromkeys(TARGETS, 100.0)))
    assert [(row.case, row.peer_value) for row in rows] == list(TARGETS.items())
    assert {(row.unit, row.size, row.peer) for row in rows} == {("B", 20, "target")}


def test_resident_size_is_in_bytes() -> None:
    assert rss_bytes(os.getpid()) > 1 << 20


def test_messages_not_packets() -> None:
    assert sent_by({"ring": {"counters": {"mcast_tx": 5, "messages_tx": 9}}}) == 9
    assert sent_by({"ring": {"counters": {}}}) == 0


def test_there_is_a_row_beside_nothing() -> None:
    described = {
        "what": "recovery", "case": "", "nodes": 3, "transport": "udp", "via": "vsyncd", "size": None,
        "callers": None, "unit": "ms",
    }  # fmt: skip
    (row,) = rows_of(described, Sample(3.0), {"calm": Sample(0.0)})
    assert isinstance(row, Row)
    assert (row.peer_value, row.ratio) == (0, None)


def test_what_is_unknown_is_refused() -> None:
    def run(*only: str) -> None:
        command.locking(Options(only, rounds=1), None, False, lambda text: None)

    with pytest.raises(VsyncError, match="--only idle-cpu: dlm bench measures lock-private"):
        run("memory", "idle-cpu")
    assert set(command.PAIRS) < set(WHATS["dlm"])
