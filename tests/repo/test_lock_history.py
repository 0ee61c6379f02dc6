"""docs/lock-history.md names tests; each of them exists, and each of S1 to S73 has a line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "tests/dlm/scenarios"
SHORT = {
    "flight": SCENARIOS / "test_in_flight.py",
    "values": SCENARIOS / "test_values_and_grants.py",
    "members": SCENARIOS / "test_members.py",
    "relatives": SCENARIOS / "test_plocks_and_lck.py",
}


def rows() -> dict[int, str]:
    """The last column by number."""
    text = (ROOT / "docs/lock-history.md").read_text()
    return {int(number): here for number, here in re.findall(r"^\| S(\d+) \|.*\| ([^|]+) \|$", text, re.M)}


def test_every_scenario_has_a_line() -> None:
    assert sorted(rows()) == list(range(1, 74))


def test_every_line_has_a_test_or_a_reason() -> None:
    for number, here in rows().items():
        assert "::test_" in here or here.startswith("Cannot occur: "), f"S{number}"


def test_every_test_that_is_named_exists() -> None:
    """``file::test``; … is the file named before."""
    path, named = ROOT, 0
    for number, here in rows().items():
        for name in re.findall(r"`([^`]*::[^`]*)`", here):
            file, test = name.split("::")[0], name.split("::")[-1]
            if file != "…":
                path = SHORT.get(file, ROOT / file)
            assert re.search(rf"def {test}\(", path.read_text()), f"S{number}: {name} is not in {path}"
            named += 1
    assert named > 73


def test_a_scenario_that_is_told_is_in_the_table() -> None:
    """``test_s27_…`` in the scenarios belongs to the line of S27."""
    lines = rows()
    for path in SHORT.values():
        for number, test in re.findall(r"def (?:test_s(\d+)_\w+)\(|def (test_\w+)\(", path.read_text()):
            assert number, f"{test} in {path.name} tells no scenario"
            assert f"test_s{number}_" in lines[int(number)], f"S{number}"
