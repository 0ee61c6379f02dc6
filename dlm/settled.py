"""How much of the lock table all members of the ring have, whatever becomes of any of them (pitfalls C14).

A message at a position of the ring below ``Host.stable`` has been received by all members, who will deliver it even
if its sender and all who have delivered it are gone by then. ``Settled`` knows which position of the *table* that
is. What was applied before a regular view is settled in it: its members have carried the same over.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Settled"]


class Settled:
    """Of one node. Positions of the ring come in, positions of the table (``Table.applied``) come out."""

    __slots__ = ("_log", "applied")

    def __init__(self) -> None:
        self.applied = 0  #: all members have what was applied up to here
        self._log: deque[tuple[int, int]] = deque()  #: above it: position in the ring, position in the table

    def delivered(self, position: int, applied: int) -> None:
        """The message at ``position`` of the ring has brought the table to position ``applied``."""
        self._log.append((position, applied))

    def token(self, stable: int) -> bool:
        """A token was accepted. Whether more is settled than before."""
        log, before = self._log, self.applied
        while log and log[0][0] < stable:
            self.applied = log.popleft()[1]
        return self.applied > before

    def whole(self, applied: int) -> None:
        """A regular view, or another table at this position: nothing above it has been delivered yet."""
        self._log.clear()
        self.applied = applied
