"""Long work in small pieces: how much of it a turn of the ring's loop may do (design §2).

Costs are counted, not timed, so that they are the same in a test, in the simulator and on a slow machine.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["ALL", "ITEM", "TURN", "Chores", "spend"]

ITEM = 16  #: what a message, a lock, a name that changes costs: 5 to 10 µs; a look at something costs 1
TURN = 128 * ITEM  #: for one kind of work in one turn
ALL = 1 << 62  #: as much as there is


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


class Chores:
    """Jobs under way, each of which gets its share of a turn, the oldest first."""

    def __init__(self) -> None:
        self._jobs: list[Iterator[int]] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Iterator[int]) -> None:
        """Begun with the next ``run``."""
        self._jobs.append(job)

    def clear(self) -> None:
        """Nobody wants any of them any more."""
        self._jobs.clear()

    def run(self, left: int = ALL) -> int:
        """Go on with all of them until ``left`` is spent; returns what is left. A job may not call this."""
        jobs, self._jobs = self._jobs, []
        for index, job in enumerate(jobs):
            share = max(left // (len(jobs) - index), 1)
            rest, done = spend(job, share)
            left -= share - rest
            if not done:
                self._jobs.append(job)
        return left
