"""What is made of measurements: medians, rows beside peers, tables, JSON, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vsync.bench.contest import contest
from vsync.bench.plot import svg, write_svg
from vsync.bench.rows import WHATS, Row, Sample, middle, print_rows, rows_of, sample, to_json
from vsync.errors import VsyncError

WHAT = {
    "what": "lock-shared", "case": "handle", "nodes": 3, "transport": "udp", "via": "vsyncd", "size": None,
    "callers": 1, "unit": "1/s",
}  # fmt: skip
KEYS = {
    "what", "nodes", "transport", "via", "size", "callers", "value", "unit", "p50_us", "p99_us", "messages_per_op",
    "peer", "peer_value", "ratio",
}  # fmt: skip


def test_a_sample_of_times() -> None:
    found = sample([float(n) for n in range(1000, 0, -1)])
    assert (found.value, found.p50_us, found.p99_us, found.p999_us) == (500.5, 500.5, 991.0, 1000.0)
    assert sample([3.0], value=7.0).value == 7.0


def test_the_middle_is_taken_field_by_field() -> None:
    assert middle([Sample(3, 1), Sample(1, 2), Sample(2, 9, messages=2)]) == Sample(2, 2, messages=2)


def test_a_row_for_each_peer() -> None:
    one, two = rows_of(WHAT, Sample(300, messages=2.0), {"redis-py": Sample(100), "kazoo": Sample(10)})
    assert (one.peer, one.peer_value, one.ratio, one.messages_per_op) == ("redis-py", 100, 3, 2)
    assert (two.peer, two.ratio) == ("kazoo", 30)
    (alone,) = rows_of(WHAT, Sample(300), {})
    assert (alone.value, alone.peer, alone.ratio) == (300, None, None)


def test_everybody_has_a_turn_in_each_round() -> None:
    turns: list[str] = []
    values = {"ours": iter([1.0, 5.0, 3.0]), "peer": iter([10.0, 30.0, 20.0])}

    def measure(name: str) -> Sample:
        turns.append(name)
        return Sample(next(values[name]))

    found = contest({name: lambda name=name: measure(name) for name in values}, 3)  # type: ignore[misc]
    assert {name: each.value for name, each in found.items()} == {"ours": 3.0, "peer": 20.0}
    assert turns == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_json_has_the_promised_keys() -> None:
    rows = rows_of(WHAT, Sample(1), {"redis-py": Sample(2)})
    answer = json.loads(to_json("locking", rows, 5, {"kazoo": "no java"}))
    assert answer["absent"] == {"kazoo": "no java"}
    (row,) = answer["results"]
    assert set(row) >= KEYS
    assert row["ratio"] == 0.5


def test_the_table_leaves_out_what_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(rows_of(WHAT, Sample(12345.678), {"redis-py": Sample(1000)}), 5, {"etcd3gw": "not installed"})
    printed = capsys.readouterr().out
    head, line, *rest = printed.splitlines()
    assert "SIZE" not in head
    assert "MSG/OP" not in head
    assert line.split() == [
        "lock-shared", "handle", "3", "udp", "vsyncd", "1", "12350", "1/s", "redis-py", "1000", "12.35",
    ]  # fmt: skip
    assert rest[-1] == "etcd3gw: not measured: not installed"


def test_a_picture(tmp_path: Path) -> None:
    rows = rows_of(WHAT, Sample(300), {"redis-py": Sample(100), "a < b": Sample(600)})
    peer = {"peer": "corosync", "peer_value": 200.0, "ratio": 0.25}
    less = Row("order-latency", "", 3, "udp", "embedded", 64, 1, 50.0, "us", **peer)  # type: ignore[arg-type]
    file = tmp_path / "bench.svg"
    write_svg([*rows, less, *rows_of(WHAT, Sample(1), {})], "bench", file)
    picture = ElementTree.fromstring(file.read_text())
    texts = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"3×", "0.5×", "4×"} < set(texts)  # a quarter of the time is four times as good
    assert "order-latency, udp, embedded, 64 B : corosync" in texts
    assert svg([], "nothing").count("<rect") == 1


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VsyncError, match="no/such"):
        write_svg([], "bench", tmp_path / "no/such/file.svg")


def test_each_row_belongs_to_one_program() -> None:
    assert not set(WHATS["vsync"]) & set(WHATS["dlm"])
