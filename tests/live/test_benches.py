"""``vsync bench`` and ``dlm bench`` in small: that they measure what they say; the figures are in docs/bench.md."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from dlm.bench import growth, matrix, memory
from dlm.bench.outages import OUTAGES
from dlm.cli import main as dlm_main
from vsync.bench.hop import ONE_BY_ONE
from vsync.bench.rows import Row
from vsync.cli import run as vsync_main

KEYS = [field.name for field in fields(Row)]
SMALL = ("bench", "-n", "1", "-t", "udp", "--json")


def rows(capsys: pytest.CaptureFixture[str], main: Any, *options: str) -> list[dict[str, Any]]:
    """What the command prints; every row has all keys, and something in it."""
    code = main([*SMALL, *options])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    found: list[dict[str, Any]] = json.loads(shown.out)["results"]
    assert found
    assert "1 of 1" in shown.err or "memory" in shown.err
    for row in found:
        assert list(row) == KEYS
        assert row["transport"] == "udp"
        assert row["value"] >= 0
    return found


def beside(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Case and peer of each row."""
    return {(row["case"], row["peer"]) for row in found}


@pytest.mark.long
def test_latency_beside_the_bare_hop(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, vsync_main, "--only", "order-latency")
    assert {row["via"] for row in found} == {"embedded", "vsyncd"}
    for row in found:
        assert row["what"] == "order-latency"
        assert 0 < row["p50_us"] <= row["p99_us"] <= row["p999_us"]
        assert row["peer"]
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"], rel=0.01)


@pytest.mark.live
@pytest.mark.parametrize("what", [pytest.param("lock-private", marks=pytest.mark.long), "lock-cached"])
def test_private_names(capsys: pytest.CaptureFixture[str], what: str) -> None:
    found = rows(capsys, dlm_main, "--only", what)
    assert {row["what"] for row in found} == {what}
    assert {row["callers"] for row in found} == {1, 16}
    for row in found:
        assert row["value"] > 0
        assert row["messages_per_op"] < 1  # what others do beside it, but no message of a pair


@pytest.mark.long
def test_a_shared_pair_is_two_messages(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, dlm_main, "--only", "lock-shared")
    assert {(row["via"], row["callers"]) for row in found} == {("vsyncd", 1), ("vsyncd", 16), ("embedded", 1)}
    for row in found:
        assert row["messages_per_op"] == pytest.approx(2, rel=0.2), row["case"]  # what others do is in it, too


@pytest.mark.long
def test_ping_pong(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, dlm_main, "--only", "bast-pingpong")
    assert beside(found) == {
        ("blocking callback", "queue handover"), ("blocking callback", "bare hops, one by one"),
    }  # fmt: skip
    for row in found:
        assert row["value"] > 0
        assert row["messages_per_op"] == pytest.approx(2, rel=0.5)  # a request and a release


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ordering_under_load_and_after_silence(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("order-throughput", "order-after-idle", "idle-cpu")
    found = rows(capsys, vsync_main, *(word for what in wanted for word in ("--only", what)))
    assert {row["what"] for row in found} == set(wanted)
    assert all(row["peer"] for row in found)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "NAMES", 10_000)
    found = rows(capsys, dlm_main, "--only", "memory")
    assert beside(found) == {(case, "target") for case in memory.TARGETS}
    sizes = {row["case"]: row["value"] for row in found}
    assert sizes["private, at the owner"] > sizes["private, elsewhere"] > 20  # the name is in it


@pytest.mark.long
@pytest.mark.timeout(400)
def test_deaths_and_joins(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("recovery", "kill-to-grant", "join-pause")
    found = rows(capsys, dlm_main, *(word for what in wanted for word in ("--only", what)))
    assert {row["what"] for row in found} == set(wanted)
    assert {row["unit"] for row in found} == {"ms"}
    by_case = {(row["what"], row["case"]): row for row in found}
    kill = OUTAGES["kill"]
    assert by_case[kill.what, kill.case]["ratio"] >= 0.95  # nobody is granted before the lease is over
    assert by_case["recovery", "10000 locks, after the horizon"]["peer"] == "2 locks"


@pytest.mark.long
def test_busy_threads(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, dlm_main, "--only", "busy-thread")
    assert [(row["via"], row["peer"]) for row in found] == [
        ("embedded", "no busy thread"), ("process", "no busy thread"), ("process", "embedded"),
    ] * 3  # fmt: skip
    for row in found:
        assert row["value"] > 0
        assert row["messages_per_op"] == pytest.approx(2 * (row["what"] == "lock-shared"), abs=0.5)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_table_of_2005(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "NODES", (1, 2))
    found = rows(capsys, dlm_main, "--only", "matrix")
    assert [(row["what"], row["nodes"], row["case"], row["callers"]) for row in found] == [
        (what, nodes, *cell)
        for nodes, what in ((1, "lock-private"), (2, "lock-private"), (2, "lock-shared"))
        for cell in matrix.CELLS
    ]
    for row in found:
        assert row["value"] > 0
        assert row["peer"] == ONE_BY_ONE
        assert row["messages_per_op"] == pytest.approx(2 * (row["what"] == "lock-shared"), abs=0.5), row


@pytest.mark.long
@pytest.mark.timeout(400)
def test_growth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "ALL_OTHERS", (1000,))
    monkeypatch.setattr(growth, "NODES", (2, 4))
    found = rows(capsys, dlm_main, "--only", "growth", "--full")
    assert [(row["what"], row["case"], row["nodes"], row["peer"]) for row in found] == [
        ("lock-private", "1000 other names", 3, "empty table"),
        ("lock-shared", "1000 other names", 3, "empty table"),
        ("lock-shared", "2 nodes", 2, "bare hop"),
        ("lock-shared", "4 nodes", 4, "bare hop"),
    ]
