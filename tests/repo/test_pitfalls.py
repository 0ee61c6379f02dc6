"""docs/pitfalls-tests.md: every scenario has its line, every test that is named exists, every rule its mutant."""

from __future__ import annotations

import re
from pathlib import Path

from dlm.testing.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "tests/dlm/scenarios"
SHORT = {word: SCENARIOS / f"test_pitfalls_{word}.py" for word in ("chain", "time", "names", "join")}
ALL = (
    *("C1", "C2", "C3", "C4", "C5", "C10", "C11", "C14", "D1", "D2", "D3", "D7", "D9"),
    *("A1", "A2", "A3", "A4", "B2", "B3", "E1", "E2", "F1"),
)


def rows() -> dict[str, str]:
    """The last column by scenario."""
    text = (ROOT / "docs/pitfalls-tests.md").read_text()
    return dict(re.findall(r"^\| ([A-F]\d+) \|.*\| ([^|]+) \|$", text, re.M))


def test_every_scenario_has_a_line() -> None:
    assert sorted(rows()) == sorted(ALL)


def test_every_scenario_is_played_under_its_name() -> None:
    for name, tests in rows().items():
        assert re.search(rf"`(chain|time|names|join)::test_{name.lower()}_", tests), name


def test_every_test_that_is_named_exists() -> None:
    named = 0
    for name, tests in rows().items():
        for file, test in re.findall(r"`([^`]*)::([^`]*)`", tests):
            path = SHORT.get(file, ROOT / file)
            assert re.search(rf"def {test}\(", path.read_text()), f"{name}: {test} is not in {path}"
            named += 1
    assert named > 30


def test_a_scenario_that_is_played_is_in_the_table() -> None:
    lines = rows()
    for path in SHORT.values():
        for name, test in re.findall(r"def test_([a-f]\d+)_(\w+)\(", path.read_text()):
            assert f"test_{name}_{test}`" in lines[name.upper()], f"{path.name}: {name}_{test}"


def test_every_rule_is_taken_away_by_a_mutant() -> None:
    """K1 to K15, and the names say where to read on."""
    taken = {word for mutant in MUTANTS for word in re.findall(r"K\d+", mutant.origin)}
    assert taken == {f"K{number}" for number in range(1, 16)}
