"""Long work in small pieces: how much of it a turn of the ring's loop may do (design §2).

Costs are counted, not timed, so that they are the same in a test, in the simulator and on a slow machine.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["ITEM", "TURN", "spend"]

ITEM = 16  #: what a message, a lock, a name that changes costs: 5 to 10 µs; a look at something costs 1
TURN = 128 * ITEM  #: for one kind of work in one turn


def spend(job: Iterator[int], left: int) -> tuple[int, bool]:
    """Go on with a job until ``left`` is spent. Returns what is left (less than 0, if the last step was a large
    one), and whether the job is done.
    """
    while left > 0:
        cost = next(job, None)
        if cost is None:
            return left, True
        left -= cost
    return left, False
