"""The simulator notices deliberate protocol bugs. ``python -m vsync.testing.mutants`` asks it thoroughly."""

from __future__ import annotations

import pytest

from vsync.engine import operational
from vsync.testing.mutants import MUTANTS, Mutant, hunt, main

NEVER_MIND = Mutant("nothing is broken", "", ((operational, "wake", operational.wake),))


#: Take more seeds than there is time for. Scenarios catch them.
RARE = {
    "the old ring's window stays open while committed",  # tests/vsync/engine/test_late_packet.py
    "the nodes change while a view is installed",  # tests/vsync/scenarios/test_roster.py
}


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.name not in RARE], ids=lambda m: m.name.replace(" ", "-")
)
def test_caught(mutant: Mutant) -> None:
    """At the seed that has caught it before; else, as options are drawn anew now and then, at one of many."""
    seeds = [mutant.seed, *range(1, 101)]
    assert hunt(mutant, seeds) is not None, f"survives: {mutant.name}; see python -m vsync.testing.mutants"


def test_there_are_enough() -> None:
    """A dozen at least, six of them corosync's own."""
    assert len(MUTANTS) >= 12
    assert len([m for m in MUTANTS if m.origin.startswith("corosync")]) >= 6
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_the_engine_is_whole_again() -> None:
    """A mutant lives in its context only; a change that breaks nothing survives."""
    before = operational.visit
    with next(m for m in MUTANTS if m.replacements[0][1] == "visit").alive():
        assert operational.visit is not before
    assert operational.visit is before
    assert hunt(NEVER_MIND, range(1, 4)) is None


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each, and the exit code."""
    assert main(["former life"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "EVS-E5" in out[0]
    assert out[-1] == "1 of 1 mutants caught"
    with pytest.raises(SystemExit):
        main(["no such mutant"])


def test_a_survivor_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and it is named."""
    monkeypatch.setattr("vsync.testing.mutants.MUTANTS", (NEVER_MIND,))
    assert main(["--seeds", "2"]) == 1
    assert "nothing is broken" in capsys.readouterr().out
