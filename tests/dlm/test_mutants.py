"""The simulator notices when one of the rules K1–K15 is taken away (``python -m dlm.testing.mutants``)."""

from __future__ import annotations

import pytest

from dlm.testing.mutants import MUTANTS, main
from vsync.testing.mutants import Mutant, hunt

OTHERS = 100  #: seeds to look at if the known one does not catch it any more


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_caught(mutant: Mutant) -> None:
    """At the seed that has caught it before; else, as other changes make other runs of it, at one of many.

    A seed that fails without the mutant, too, is a bug, and ``hunt`` says so.
    """
    seeds = [mutant.seed, *range(1, OTHERS + 1)]
    assert hunt(mutant, seeds) is not None, f"survives: {mutant.name}; see python -m dlm.testing.mutants"


def test_there_are_enough() -> None:
    """A dozen at least. ``tests/repo/test_pitfalls.py``: one for each rule."""
    assert len(MUTANTS) >= 12
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_the_lock_manager_is_whole_again() -> None:
    """A mutant lives in its context only."""
    for mutant in MUTANTS:
        before = [getattr(target, name) for target, name, _ in mutant.replacements]
        with mutant.alive():
            assert all(getattr(target, name) is new for target, name, new in mutant.replacements)
        assert [getattr(target, name) for target, name, _ in mutant.replacements] == before


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each, and the exit code."""
    assert main(["leases of those who"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "K10, D1" in out[0]
    assert "GRANT-Q2" in out[0]
    assert out[-1] == "1 of 1 mutants caught"
