"""Seeds of the simulators for as long as a test may take: half of them always the same, half of the commit.

Which ones were run stands at the end of pytest's output (``tests/conftest.py``), also when all went well. A failure
is a bug, never run again for luck; its message is the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vsync.testing import draw, run
from vsync.testing.hunt import STUCK, Plugins, Sum, hunt
from vsync.testing.story import story

__all__ = ["LONG_S", "SEEDS", "commit_seed", "hunt_for"]

ROOT = Path(__file__).parents[1]
LONG_S = 90.0  #: real time for each simulator in the long selection
LEAST = 8  #: seeds that are run however slow the machine is
SEEDS = "seeds"  #: name of the property of a test's report that says what was run


def commit_seed() -> int:
    """Another start for every commit, the same for everybody who tests it; 0 outside a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(done.stdout[:7], 16)


def hunt_for(
    budget: float,
    prog: str,
    plugins: Plugins,
    nodes: Sequence[int],
    record: Callable[[str, object], None],
    *,
    most: int = 100_000,
    jobs: int = 1,
) -> None:
    """Fixed and fresh seeds in turn, until ``budget`` seconds have passed or ``most`` of each have been run.

    ``nodes``: how many, by seed. ``record``: pytest's ``record_property``. Fails at the first broken property.
    """
    fresh = 1_000 + commit_seed()
    seeds = [seed for pair in zip(range(1, 1 + most), range(fresh, fresh + most), strict=True) for seed in pair]
    began = time.monotonic()
    total = hunt(seeds, nodes, plugins, jobs=min(jobs, os.cpu_count() or 1), until=began + budget, least=LEAST)
    half = total.seeds // 2
    record(
        SEEDS,
        f"{prog}: {total.seeds} seeds in {time.monotonic() - began:.0f} s, "
        f"1 to {total.seeds - half} and, of this commit, {fresh} to {fresh + half - 1}; {_verdict(total)}",
    )
    for seed in total.failed:
        _fail(seed, nodes[seed % len(nodes)], prog, plugins, total)


def _verdict(total: Sum) -> str:
    return f"BROKEN: {total.failed}" if total.failed else "no violation"


def _fail(seed: int, nodes: int, prog: str, plugins: Plugins, total: Sum) -> None:
    again = f"again: python -m {prog} --seed {seed} --nodes {nodes}"
    if total.rules[seed] == STUCK:
        pytest.fail(f"seed {seed} does not end\n{again}")
    result = run(draw(seed, nodes), plugins(seed))
    print("\n".join(story(result.trace, nodes)))
    pytest.fail(f"{result.violation or 'broken in another process only: ' + total.rules[seed]}\n{again}")
