"""The rolling checksum of the lock table.

Everything that the ordered stream does to shared names goes into one CRC (``Rolling``), event by event, in batches:
a fraction of a microsecond each.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgpack

__all__ = ["Rolling"]

BATCH = 256  #: events that are packed at once
_PACK = msgpack.Packer().pack


class Rolling:
    """A checksum of all rows so far, independent of how they came in batches."""

    __slots__ = ("_chain", "_fresh")

    def __init__(self, chain: int = 0) -> None:
        self._chain = chain
        self._fresh: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """One more."""
        self._fresh.append(row)
        if len(self._fresh) >= BATCH:
            self._fold()

    @property
    def value(self) -> int:
        """As of the last row."""
        if self._fresh:
            self._fold()
        return self._chain

    def _fold(self) -> None:
        self._chain = crc32(b"".join(map(_PACK, self._fresh)), self._chain)
        self._fresh.clear()
