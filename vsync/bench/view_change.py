"""``vsync bench view-change``: how long it takes from a fault to the view that follows, at the last survivor.

Each round hurts another node, so that every third victim is the representative. The clock is CLOCK_BOOTTIME, read
before the fault and by each watching session when the view arrives; so a figure has in it what a program on the
cluster sees: signal, detection, re-formation, the daemon's socket. ``restart`` includes the start of the process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vsync.bench.subject import Subject
from vsync.clock import boot_us

__all__ = ["FAULTS", "Measured", "measure"]

TIMEOUT_S = 60.0

#: What is measured, in words.
FAULTS = {
    "kill": "kill -9 of a daemon, until the survivors' view",
    "terminate": "SIGTERM (graceful leave), until the others' view",
    "stop": "SIGSTOP (a silent host), until the survivors' view",
    "cont": "SIGCONT, until the view of all",
    "restart": "start of a killed daemon, until the view of all",
}


@dataclass(slots=True)
class Measured:
    """Milliseconds of one subject, by fault."""

    subject: str
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def median(self, fault: str) -> float | None:
        """Of the rounds; ``None`` if it was not measured."""
        times = self.times_ms.get(fault)
        return statistics.median(times) if times else None

    def to_json(self) -> dict[str, Any]:
        """Medians and all single times."""
        medians = {fault: round(statistics.median(times), 1) for fault, times in self.times_ms.items()}
        times = {fault: [round(t, 1) for t in times] for fault, times in self.times_ms.items()}
        return {"subject": self.subject, "median_ms": medians, "times_ms": times}


def measure(name: str, subject: Subject, rounds: int, tell: Callable[[str], None] = lambda text: None) -> Measured:
    """All faults, ``rounds`` times. Raises ``NotSeen``. ``tell`` is told how far it is."""
    measured = Measured(name)
    for number in range(rounds):
        victim = subject.names[number % len(subject.names)]
        tell(f"{name}: round {number + 1} of {rounds}, node {victim}")
        for fault, spent in _round(subject, victim):
            measured.times_ms.setdefault(fault, []).append(spent / 1000)
    return measured


def _round(subject: Subject, victim: str) -> Iterator[tuple[str, int]]:
    names = list(subject.names)
    others = [name for name in names if name != victim]

    def timed(act: Callable[[str], None], members: list[str]) -> int:
        with subject.watch(others) as watch:
            began = boot_us()
            act(victim)
            return watch.until(members, TIMEOUT_S) - began

    subject.settle()
    yield "stop", timed(subject.stop, others)
    yield "cont", timed(subject.cont, names)
    subject.settle()
    yield "kill", timed(subject.kill, others)
    yield "restart", timed(subject.restart, names)
    subject.settle()
    yield "terminate", timed(subject.terminate, others)
    subject.restart(victim)
