"""Locks under the simulator for longer than the default selection allows: half fixed seeds, half of the commit."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from dlm.testing.workload import lock_plugins
from vsync.testing import draw, run
from vsync.testing.story import story

ROOT = Path(__file__).parents[2]
LONG_S = 45.0  # real time for each half of the seeds


def commit_seed() -> int:
    """Another start for every commit; 0 outside a git checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout[:7], 16) if done.returncode == 0 else 0


@pytest.mark.long
@pytest.mark.parametrize("first", [1, 1_000 + commit_seed()], ids=["fixed", "commit"])
def test_many_seeds(first: int) -> None:
    """A failure is a bug: it is never run again for luck."""
    began, seed = time.monotonic(), first
    met: Counter[str] = Counter()
    while time.monotonic() - began < LONG_S:
        nodes = (5, 3, 4)[seed % 3]
        plugins = lock_plugins(seed)
        result = run(draw(seed, nodes), plugins)
        met += plugins[0].met
        if result.violation is not None:
            print("\n".join(story(result.trace, nodes)))
            pytest.fail(f"{result.violation}\nagain: python -m dlm.testing --seed {seed} --nodes {nodes}")
        seed += 1
    print(f"seeds {first} to {seed - 1}: {dict(met)}")
    assert seed - first >= 5, "the machine is far too slow for the simulator"
    if seed - first >= 50:
        assert {"demoted", "altmode", "valnotvalid", "orphan", "timeout", "deadlock", "advice"} <= set(met)
