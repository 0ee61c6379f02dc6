"""A deterministic simulator of whole clusters, for the project's own tests and for yours.

Reading order: ``cluster`` (the API for tests), ``node`` (one host with a production core), ``network``,
``options`` (faults drawn from a seed), ``nemesis`` and ``run`` (chaos, then healing), ``checkers`` (what
must hold), ``plugin`` (services with their own workload). The same seed always gives the same run, to the
last byte of every frame.
"""

from vsync.testing.cluster import SimCluster
from vsync.testing.options import Options, draw, quiet
from vsync.testing.plugin import Plugin
from vsync.testing.run import Result, run
from vsync.testing.violation import Violation

__all__ = ["Options", "Plugin", "Result", "SimCluster", "Violation", "draw", "quiet", "run"]
