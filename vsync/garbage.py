"""Python's collector of reference cycles, kept from looking at everything there is again and again.

A full collection looks at all objects of the process: with half a million locks that takes seconds, in the thread
of the ring as in any other. So what has survived one is not looked at any more. Nothing that is replaced in great
numbers while a node runs is part of a cycle; what is not, goes when nobody refers to it, as ever.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

__all__ = ["spare_survivors"]

OLDEST = 2  #: generation: what a full collection looks at, beside all that is younger
THRESHOLDS = 700, 5, 2  #: new objects, then collections of one generation before one of the next: 10000 objects


def spare_survivors() -> None:
    """From now on each object of this process is part of one full collection at most, and each of those takes a few
    ms. For programs that are nothing but a node: it is for the whole process. Idempotent.
    """
    if _after not in gc.callbacks:
        gc.callbacks.append(_after)
        gc.set_threshold(*THRESHOLDS)
        gc.collect()
        gc.collect()  # the next is due after a quarter of what the last one looked at: now of nearly nothing


def _after(phase: str, info: Mapping[str, int]) -> None:
    if phase == "stop" and info["generation"] == OLDEST:
        gc.freeze()
