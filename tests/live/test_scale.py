"""``python -m dlm.bench.scale`` in small: that it measures what it says; the figures are in docs/bench.md."""

from __future__ import annotations

import json

import pytest

from dlm.bench import scale

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CALM_S", 1.0)
    monkeypatch.setattr(scale, "WATCHED_S", 1.0)


def test_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--names", "2000", "--locks", "1000", "--rounds", "1", "--json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)["figures"]
    assert list(rows) == list(scale.FIGURES)
    assert rows["late"]["n"] == rows["pause"]["n"] == rows["p99 shared"]["n"] == 2
    assert "1000 locks" in rows["late"]["text"]
    assert "2000 names" in rows["p99 private"]["text"]
    for key, row in rows.items():
        assert row["max"] >= row["median"]
        assert row["median"] > 0 or key == "late"
        assert (key == "join") == ("floors" not in row)
    assert rows["p99 shared"]["times"] == rows["p99 shared"]["median"] / rows["p99 shared"]["floor_median"]
    assert "1000 names are locked" in shown.err
    assert "node c joins" in shown.err


def test_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    bench = scale.Scale(10, 20)
    bench.found["late"], bench.floors["late"] = [3.0, 1.0], [2.0]
    bench.found["after shared"], bench.floors["after shared"] = [6.0], [4.0]
    rows = [scale._row(row) for row in bench.to_json().values()]
    assert [row[1:] for row in rows] == [
        ("2.0", "3.0", "2", "2.0", "-", "300"),
        ("6.0", "6.0", "1", "4.0", "1.5", "3 x floor"),
    ]
