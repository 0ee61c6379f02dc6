"""Storms with the timers that a cluster has by default, of three and of five nodes; and faults at random."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.testing.calls import Verb, What, parse
from dlm.testing.storm.faults import FAULTS
from dlm.testing.storm.run import Plan, Storm
from tests.live.arena import Arena, needs_network, short

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=[3, 5], ids=["three", "five"])
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(Plan(seed=request.param, nodes=request.param), tmp_path_factory)
    yield arena
    arena.finish()


@needs_network
@pytest.mark.parametrize("fault", list(FAULTS))
def test_all_is_in_order_after(arena: Arena, fault: str) -> None:
    arena.strike(fault)


@needs_network
def test_faults_at_random_with_stable_answers(tmp_path: Path) -> None:
    """Five nodes; short timers, so that there is more trouble in less time."""
    with Storm(Plan(seed=23, nodes=5, fast=True, stable=True), short(tmp_path)) as storm:
        storm.blow(30)
        verdict = storm.finish()
    assert verdict.good, f"{verdict.report()}\nevidence: {tmp_path}"
    assert sum(storm.counts.values()) > 5


def test_the_command_on_the_loopback(tmp_path: Path) -> None:
    """Without namespaces nobody needs to be root."""
    where = short(tmp_path) / "s"
    words = ["--loopback", "--fast", "--fault", "kill client", "--fault", "leave", "--folder", str(where)]
    done = subprocess.run(
        [sys.executable, "-m", "dlm.testing.storm", *words],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good: linearizable" in done.stdout
    assert "2: 1 kill client, 1 leave" in done.stdout
    notes = [note for path in where.glob("*.notes") for note in parse(path.read_bytes())]
    assert set(Verb) == {note.verb for note in notes if note.what is What.CALL}
    assert {What.DIED, What.LEAVING, What.TROUBLE, What.CALM} <= {note.what for note in notes}
