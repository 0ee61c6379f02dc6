"""Named deadlines. The engine says *when to* do a thing; the shell asks for the next deadline and calls back."""

from __future__ import annotations

from enum import Enum

__all__ = ["Timer", "TimerTable"]


class Timer(Enum):
    """When to ..."""

    JOIN = "send JOIN again (Gather)"
    CONSENSUS = "fail whoever has not agreed (Gather), give up waiting for the commit token"
    TOKEN = "hold the ring for lost (Commit, Recovery, Operational)"
    RETRANSMIT = "send the last token again (Commit, Recovery, Operational)"
    HOLD = "pass on a token that was held as there was nothing to do (Operational)"
    DELIVER = "go on handing messages to the layer above, after a pause for the ring (Operational)"
    MERGE = "probe configured nodes outside the ring (Operational, representative)"

    __hash__ = object.__hash__  # each exists once; that of Enum hashes the name anew at each look-up


class TimerTable:
    """At most one deadline a timer, in µs of the caller's clock."""

    __slots__ = ("_deadlines",)

    def __init__(self) -> None:
        self._deadlines: dict[Timer, int] = {}

    def set(self, timer: Timer, deadline: int) -> None:
        """Start the timer, or move its deadline."""
        self._deadlines[timer] = deadline

    def stop(self, timer: Timer) -> None:
        """Stop the timer; stopping a stopped one is fine."""
        self._deadlines.pop(timer, None)

    def keep(self, *alive: Timer) -> None:
        """Stop every timer but these."""
        for timer in [t for t in self._deadlines if t not in alive]:
            del self._deadlines[timer]

    def running(self, timer: Timer) -> bool:
        """Whether the timer is started."""
        return timer in self._deadlines

    def next_deadline(self) -> int | None:
        """The earliest deadline, or ``None``."""
        return min(self._deadlines.values()) if self._deadlines else None

    def due(self, now: int) -> list[Timer]:
        """The timers whose deadline has come, earliest first; each is to be taken before it is acted on."""
        return [timer for _, _, timer in sorted((d, t.name, t) for t, d in self._deadlines.items() if d <= now)]

    def take(self, timer: Timer, now: int) -> bool:
        """Stop a timer that is due; false if what an earlier one did has stopped or moved it."""
        due = self._deadlines.get(timer, now + 1) <= now
        if due:
            del self._deadlines[timer]
        return due
