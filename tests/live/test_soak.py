"""Real daemons, real clients, files that count, and nodes that are killed: counts exact, no two holders.

The long run by hand: ``python -m dlm.testing.soak --rounds 10000 --seed 7``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlm.testing.histories import What, parse
from dlm.testing.soak import Plan, Result, Soak, SoakError
from dlm.testing.soak.counter import FencedCounter, Refused

pytestmark = pytest.mark.live


def soak(plan: Plan, folder: Path) -> Result:
    """Run it; a failure names the folder with logs, histories and counters."""
    result = Soak(plan, folder).run()
    print("\n".join(result.lines()))
    assert result.good, "\n".join([*result.lines(), f"evidence: {folder}"])
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Unix sockets lie in it, and their paths are short."""
    assert len(os.fsencode(tmp_path)) < 95, f"{tmp_path} is too long for sockets; use pytest --basetemp"
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(180)
def test_counts_are_exact_while_nodes_are_killed(folder: Path) -> None:
    """As many rounds as it takes to have met every kind of trouble a few times."""
    result = soak(Plan(seed=3, rounds=1500, faults=6, fast=True), folder)
    assert result.verdict.acknowledged >= 1500 - result.verdict.unknown
    assert sum(result.faults.values()) >= 6
    assert result.views > 6
    assert not leftovers(folder)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ten_thousand_rounds(folder: Path) -> None:
    """With the timers that a cluster has by default."""
    result = soak(Plan(seed=7, rounds=10_000, faults=12), folder)
    assert result.verdict.acknowledged >= 10_000 - result.verdict.unknown
    assert not leftovers(folder)


def leftovers(folder: Path) -> list[str]:
    """Command lines of processes that still have to do with the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(os.fsencode(folder) in word for word in words) and int(path.parent.name) != os.getpid():
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def test_a_daemon_that_ends_on_its_own_is_a_failure_and_leaves_nothing(folder: Path) -> None:
    """The run must not go on as if it had killed the node itself; and everything is cleaned up."""
    run = Soak(Plan(seed=1, rounds=10**9, fast=True), folder)
    run.cluster.start()
    victim = run.cluster["b"]
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.process is not None
    victim.process.wait()
    run.cluster.start = lambda: None  # type: ignore[method-assign]
    with pytest.raises(SoakError, match="node b has ended on its own"):
        run.run()
    assert not leftovers(folder)


def test_the_command(folder: Path) -> None:
    """A second of it; histories are kept where they were asked for."""
    where = folder / "run"
    done = subprocess.run(
        [sys.executable, "-m", "dlm.testing.soak", "--seconds", "1", "--fast", "--folder", str(where)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good: counts exact, no two holders" in done.stdout
    events = [event for path in where.glob("*.history") for event in parse(path.read_bytes())]
    assert {What.ASK, What.GRANTED, What.READ, What.WROTE, What.RELEASE} <= {event.what for event in events}
    assert not leftovers(folder)


def test_the_counter_refuses_old_fences(tmp_path: Path) -> None:
    """Reading for a write counts as seen; looking does not."""
    counter = FencedCounter(tmp_path / "n")
    assert counter.value() == 0
    assert counter.begin(5) == 0
    counter.write(1, 5)
    assert counter.look(7) == 1
    counter.write(2, 5)
    assert counter.begin(8) == 2
    for access in (lambda: counter.write(3, 5), lambda: counter.begin(7), lambda: counter.look(7)):
        with pytest.raises(Refused, match="seen fence 8"):
            access()
    assert counter.value() == 2
