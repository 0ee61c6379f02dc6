"""Logging what strangers do, so that they cannot fill the log."""

from __future__ import annotations

from typing import Any

from vsync.logs import get_logger

__all__ = ["Complaints"]

EVERY_US = 10_000_000  #: the same complaint about the same source is repeated so often
AT_MOST = 20  #: different ones in that time

_log = get_logger("vsync.transport")


class Complaints:
    """Says each complaint once in ten seconds, and no more than twenty of them. ``now`` is the boot clock in µs."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], int] = {}
        self._since = 0

    def say(self, event: str, source: str, why: str, now: int, **more: Any) -> bool:
        """Log a warning, or keep quiet; returns whether it was logged."""
        if now - self._since >= EVERY_US:
            self._since = now
            self._said.clear()
        if (event, source) in self._said or len(self._said) >= AT_MOST:
            return False
        self._said[event, source] = now
        _log.warning(event, source=source, why=why, **more)
        return True
