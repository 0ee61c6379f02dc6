"""Stable storage of one node: the last ``Persist`` record, which survives crashes."""

from __future__ import annotations

__all__ = ["Disk"]


class Disk:
    """Keeps one record. It is lost only when a test says so (``wipe``)."""

    def __init__(self) -> None:
        self.record: bytes | None = None
        self.writes = 0

    def write(self, record: bytes) -> None:
        """Replace the record; when this returns it is on disk."""
        self.record = record
        self.writes += 1

    def wipe(self) -> None:
        """The disk was replaced: nothing is left."""
        self.record = None
