"""The soak test: real daemons, real client processes, counters in files, and a nemesis.

``python -m dlm.testing.soak --rounds 10000 --seed 7``. Reading order: ``counter`` (the guarded resource),
``client`` (a process that locks and counts), ``nemesis`` (what is done to the nodes), ``run`` (all together,
judged by ``dlm.testing.histories``).
"""

from dlm.testing.soak.run import Plan, Result, Soak, SoakError

__all__ = ["Plan", "Result", "Soak", "SoakError"]
