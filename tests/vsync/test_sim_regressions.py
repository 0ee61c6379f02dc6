"""What the simulator has found, one test each."""

from __future__ import annotations

from dataclasses import replace

from vsync.testing import Options, run
from vsync.testing.options import LinkOptions, scaled

#: The run that showed it first (nodes stop and go on while the network is cut again and again), in full: it does
#: not depend on how options are drawn.
STORM = Options(
    seed=32,
    nodes=5,
    chaos=1_500_000,
    timing=scaled(0.5),
    links=LinkOptions(delay_low=125, delay_high=500, duplicate=0.1, reorder_delay=750),
    drift_ppm=10_000,
    fault_interval=75_000,
    partition=2,
    pause=2,
    fast_restart=0.0,
    start_spread=100_000,
    send_interval=100_000,
    big=0.02,
)


def test_nodes_that_gave_each_other_up_do_not_ring_alone_for_ever() -> None:
    """Each had failed all others, formed a ring of one, heard a JOIN, failed again: thousands of rings a second."""
    for seed in range(30, 38):
        result = run(replace(STORM, seed=seed))
        assert result.violation is None, f"seed {seed}: {result.violation}"
        assert result.views < 100
