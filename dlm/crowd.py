"""How many locks this node has on a name: counted by name only where they might be too many.

A counter for each name would be one more index of all names, and nearly all of them would say 1. So the names are
counted in many buckets; as long as a bucket is not over the limit, no name in it is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from zlib import crc32

from dlm.handle import Handle

__all__ = ["Crowd"]

BUCKETS = 1 << 16  #: with 10^7 locks there are some hundred in each


class Crowd:
    """The weights of handles, by bucket of their names."""

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        self._buckets = array("L", bytes(BUCKETS * array("L").itemsize))
        self.total = 0

    def __len__(self) -> int:
        return self.total

    def add(self, handle: Handle) -> None:
        """One more."""
        self._buckets[crc32(handle.key) % BUCKETS] += handle.weight
        self.total += handle.weight

    def remove(self, handle: Handle) -> None:
        """One less."""
        self._buckets[crc32(handle.key) % BUCKETS] -= handle.weight
        self.total -= handle.weight

    def room(self, handle: Handle, limit: int, known: Callable[[], Iterable[Handle]]) -> bool:
        """Whether the name of this handle would not weigh more than ``limit`` with it.

        ``known``: all that there are, but for those of sessions that are being closed. They are looked at only if
        the bucket is that full; what is not among them counts for the name.
        """
        after = self.total + handle.weight
        if after > limit:
            bucket = crc32(handle.key) % BUCKETS
            after = self._buckets[bucket] + handle.weight
        if after > limit:
            others = (each for each in known() if crc32(each.key) % BUCKETS == bucket and each.key != handle.key)
            after -= sum(each.weight for each in others)
        return after <= limit
