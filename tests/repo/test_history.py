"""docs/history.md names tests; each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "tests/vsync/scenarios"
SHORT = {
    "tokens": SCENARIOS / "test_corosync_tokens.py",
    "membership": SCENARIOS / "test_corosync_membership.py",
    "others": SCENARIOS / "test_others.py",
    "found": SCENARIOS / "test_found_here.py",
}


def test_every_test_that_is_named_exists() -> None:
    """``file::test``; a name that begins with … is of the file named before, one that ends with … is cut short."""
    text = (ROOT / "docs/history.md").read_text()
    named, path = 0, ROOT
    for name in re.findall(r"`([^`]*(?:::|…_|…::)[^`]*)`", text):
        if not name.startswith("…"):
            path = SHORT.get(name.split("::")[0], ROOT / name.split("::")[0])
        test = name.split("::")[-1].strip("…")
        assert test in path.read_text(), f"{name}: not in {path}"
        named += 1
    assert named > 60


def test_every_item_has_a_line() -> None:
    """corosync's defects are numbered 1 to 37."""
    text = (ROOT / "docs/history.md").read_text()
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.M)} == set(range(1, 38))
