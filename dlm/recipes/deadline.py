"""A time-out that several waits share."""

from __future__ import annotations

import threading
import time

__all__ = ["Deadline"]


class Deadline:
    """``timeout`` seconds from now; ``None``: never, 0: at once. Raises ``ValueError`` for what is no time-out."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout is None, 0 or a number of seconds, not {timeout!r}")
        self.timeout = timeout
        self.at = None if timeout is None else time.monotonic() + timeout  #: on the monotonic clock

    def rest(self) -> float | None:
        """Seconds that are left, 0 when it is over; ``None``: no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.rest() == 0
