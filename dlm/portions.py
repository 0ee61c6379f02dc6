"""Value blocks of several locks, in portions that fit into one message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["VALUES", "by_size"]

R = TypeVar("R")

VALUES = 1 << 19  #: bytes of value blocks in one message that releases several locks


def by_size(rows: Sequence[R], size: Callable[[R], int]) -> Iterator[list[R]]:
    """The rows in their order, in as few portions as there may be, each small enough for one message."""
    portion: list[R] = []
    left = VALUES
    for row in rows:
        left -= size(row)
        if left < 0 and portion:
            yield portion
            portion, left = [], VALUES - size(row)
        portion.append(row)
    if portion:
        yield portion
